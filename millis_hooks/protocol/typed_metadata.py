"""Metadata in the query of a prefetch: writing values as text, and reading text into a model.

Text is written unchanged and other values as JSON. The type of the field decides how a text is
read: a field that accepts text gets the text, also where it looks like JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pydantic import BaseModel, ValidationError

from ..exceptions import PayloadError
from .reading import Json, Model, Problem, read_json, read_model, takes_list


def as_text(value: Json) -> str:
    """Return a value as it goes into a query: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def read_metadata(
    model: type[Model], sent: Mapping[str, Sequence[Any]]
) -> tuple[Model, list[Problem]]:
    """Return the model of what was sent, by name, and the problems of what does not fit.

    A list may come as JSON, or as a name that repeats. See `wire.read_model` for what does not fit.
    """
    try:
        return read_model(model, _chosen(model, sent))
    except Exception:  # a validator of the team's takes text alone
        return read_model(model, {name: values[0] for name, values in sent.items()})


def _chosen(model: type[BaseModel], sent: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Choose for each name what fits its field; what is likeliest where nothing does."""
    readings = {name: _readings(model, name, values) for name, values in sent.items()}
    first = {name: each[0] for name, each in readings.items()}
    chosen = dict(first)
    for _ in zip_longest(*readings.values()):
        misfits = _misfits(model, chosen)
        if not misfits:
            break
        for name in misfits & readings.keys():
            readings[name] = readings[name][1:]
            chosen[name] = readings[name][0] if readings[name] else first[name]
    return chosen


def _readings(model: type[BaseModel], name: str, values: Sequence[Any]) -> list[Any]:
    """Return what the values may stand for, the likeliest first."""
    if len(values) > 1 and takes_list(model, name):
        return [list(values), [_parsed(value) for value in values]]
    text = values[0]
    parsed = _parsed(text)
    if parsed is text:
        return [text, [text]]
    is_plain = parsed is not None and not isinstance(parsed, list | dict)
    return [text, parsed, [text]] if is_plain else [parsed, text, [parsed], [text]]


def _parsed(text: Any) -> Any:
    """Return the JSON that a text is; the text itself if it is none, or is JSON of a text."""
    if not isinstance(text, str):
        return text
    try:
        value = read_json(text)
    except PayloadError:
        return text
    is_text = isinstance(value, str) or (value is None and text.strip() != "null")  # as NaN is
    return text if is_text else value


def _misfits(model: type[BaseModel], values: Mapping[str, Any]) -> set[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    return set()

"""The values of settings in words: what fits, what was given, what is in force; secrets hidden."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from .addresses import without_password

#: Characters of a wrong value that an error shows.
_SHOWN_CHARS = 100


def quoted(field: FieldInfo, value: object) -> str:
    """Return the value as it stands in an error, unless it is secret."""
    if "Secret" in str(field.annotation):
        return ""
    text = without_password(repr(value))
    return f" (found: {text if len(text) <= _SHOWN_CHARS else f'{text[:_SHOWN_CHARS]}…'})"


def as_text(field: FieldInfo, value: object) -> str:
    """Return a value as text; of a secret only that it is set."""
    if value is None or value in ((), frozenset(), {}):
        return ""
    if "Secret" in str(field.annotation):
        count = len(value) if isinstance(value, tuple | dict) else 1
        return "set" if count == 1 else f"{count} set"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, frozenset):
        return ",".join(sorted(value))
    return json.dumps(value) if isinstance(value, dict) else without_password(str(value))


def expected(field: FieldInfo) -> str:
    """Say what fits a field."""
    kind = field.annotation
    if isinstance(kind, UnionType):
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return "1 or 0, or true or false"
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        return f"{number} {' and '.join(_bounds(field))}"
    return "text, or several with commas between them" if get_origin(kind) else "text"


def _bounds(field: FieldInfo) -> Iterator[str]:
    for bound in field.metadata:
        for name, words in (("gt", "above"), ("ge", "from"), ("le", "up to")):
            if hasattr(bound, name):
                yield f"{words} {getattr(bound, name):,}"

"""Prefetch answers: what handlers return, read and merged into what Millis takes.

Millis reads `metadata` and `extra_prompt` (https://docs.millis.ai/core-concepts/webhooks). Other
top-level names are the format of 2024; they are passed through and flagged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from ..exceptions import ConfigError, HandlerError
from ..protocol.prefetch import PrefetchRequest, PrefetchResponse
from ..protocol.reading import Json
from ..protocol.results import as_object, as_text
from ..protocol.variables import fill
from ..settings import Settings

#: Values that a handler may keep of a prefetch, and the size of one as JSON.
MOST_KEPT = 50
_MOST_KEPT_BYTES = 4_000

_UNSPEAKABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(slots=True)
class Answer:
    """One answer in the making; `notes` say what is odd about it, and what was left out."""

    metadata: dict[str, Json] = field(default_factory=dict)
    extra_prompts: list[str] = field(default_factory=list)
    flat: dict[str, Json] = field(default_factory=dict)
    #: What stays here.
    keep: dict[str, Json] = field(default_factory=dict)
    #: What the call's page says of it.
    notes: list[str] = field(default_factory=list)
    #: What could not be sent: which value, and why.
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, sent: bytes, kept: str | None = None) -> Answer:
        """Return an answer that was sent before, and what was kept of it."""
        flat: dict[str, Any] = from_json(sent)
        metadata, prompt = flat.pop("metadata", None), flat.pop("extra_prompt", None)
        keep = from_json(kept) if kept else {}
        return cls(metadata or {}, [prompt] if prompt else [], flat, keep)

    @property
    def warnings(self) -> list[str]:
        """What the team has to change: values left out, and names that Millis ignores."""
        flat = [_flat_names(self.flat)] if self.flat else []
        return [*(f"left out {each}" for each in self.left_out), *flat]

    def encode(self) -> bytes:
        """Return the JSON Millis gets."""
        message: dict[str, Any] = dict(self.flat)
        if self.metadata:
            message["metadata"] = self.metadata
        if self.extra_prompts:
            message["extra_prompt"] = "\n\n".join(self.extra_prompts)
        return to_json(message)

    def complete(self, call: PrefetchRequest[Any], variables: Mapping[str, Json]) -> None:
        """Add the default of each variable that neither the call nor a handler gives."""
        sent: Mapping[str, Any] = call.variables if variables else {}
        for name, default in variables.items():
            given = sent.get(name)
            if self.metadata.get(name, given) is None:  # a handler's None is not a value
                self.metadata[name] = default if given is None else given

    def encode_keep(self) -> str | None:
        """Return what stays here as JSON, None if that is nothing."""
        return to_json(self.keep).decode() if self.keep else None


def read_answer(
    value: object,
    call: PrefetchRequest[Any],
    *,
    max_chars: int,
    variables: Mapping[str, Json] = MappingProxyType({}),
) -> Answer:
    """Read what a handler returned; raises `HandlerError` saying what was wrong with it.

    `variables` are the declared ones, with their defaults.
    """
    if value is None:
        return Answer()
    if isinstance(value, str):
        value = PrefetchResponse(extra_prompt=value)
    if isinstance(value, PrefetchResponse):
        return _answer(value, call, max_chars, variables)
    if isinstance(value, Mapping):
        return _read_mapping(value, call, max_chars)
    raise HandlerError(
        f"A prefetch handler returns PrefetchResponse, str, dict or None, not "
        f"{type(value).__name__}."
    )


def encode_default(settings: Settings) -> bytes | None:
    """Return the configured default answer as JSON; raises `ConfigError` if it is invalid."""
    if not settings.prefetch_default:
        if settings.prefetch_fallback == "default":
            raise ConfigError(
                "MILLIS_HOOKS_PREFETCH_FALLBACK=default needs MILLIS_HOOKS_PREFETCH_DEFAULT, "
                'such as {"extra_prompt": "Ask for the caller\'s name."}.'
            )
        return None
    try:
        response = PrefetchResponse(**settings.prefetch_default)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"MILLIS_HOOKS_PREFETCH_DEFAULT: {where}: {first['msg']}.") from error
    left_out: list[str] = []
    response.metadata = as_object(response.metadata, "metadata", left_out)
    if left_out:
        raise ConfigError(f"MILLIS_HOOKS_PREFETCH_DEFAULT: {left_out[0]}.")
    return response.model_dump_json(exclude_defaults=True).encode()


def merge(answers: Iterable[Answer]) -> Answer:
    """Put answers together: the later of two values for one name wins, prompts are joined."""
    answers = list(answers)
    if len(answers) == 1:
        return answers[0]
    merged = Answer()
    for answer in answers:
        merged.keep |= answer.keep
        merged.metadata |= answer.metadata
        merged.extra_prompts += answer.extra_prompts
        merged.flat |= answer.flat
        merged.notes += answer.notes
        merged.left_out += answer.left_out
    return merged


def _read_mapping(value: Mapping[Any, Any], call: PrefetchRequest[Any], max_chars: int) -> Answer:
    metadata, prompt = value.get("metadata"), value.get("extra_prompt")
    answer = _read({} if metadata is None else metadata, prompt, call, max_chars)
    _keep(value.get("keep"), answer)
    flat = {name: item for name, item in value.items() if name not in PrefetchResponse.model_fields}
    if flat:
        answer.flat = as_object(flat, "", answer.left_out)
        answer.notes.append(_flat_names(answer.flat))
    return _checked(answer)


def _flat_names(flat: Mapping[str, object]) -> str:
    return (
        f"Millis ignores {', '.join(sorted(flat)) or 'these names'} at the top level of an answer, "
        "which is the format of 2024; put them into metadata"
    )


def _answer(
    response: PrefetchResponse,
    call: PrefetchRequest[Any],
    max_chars: int,
    variables: Mapping[str, Json],
) -> Answer:
    fills = variables if response.fill_variables else None
    answer = _read(response.metadata, response.extra_prompt, call, max_chars, fills=fills)
    _keep(response.keep, answer)
    return _checked(answer)


def _keep(values: object, answer: Answer) -> None:
    """Keep what can be kept, and note what cannot: the answer is sent in any case."""
    if not values:
        return
    left_out: list[str] = []
    for name, value in as_object(values, "keep", left_out).items():
        size = len(to_json(value)) + len(name.encode())
        if size > _MOST_KEPT_BYTES:
            left_out.append(f"keep.{name[:40]}: it has over {_MOST_KEPT_BYTES:,} bytes")
        elif len(answer.keep) == MOST_KEPT:
            left_out.append(f"keep.{name}: it is beyond the first {MOST_KEPT} values")
        else:
            answer.keep[name] = value
    answer.notes += [f"{each}; it was left out" for each in left_out]


def _read(
    metadata: object,
    prompt: object,
    call: PrefetchRequest[Any],
    max_chars: int,
    *,
    fills: Mapping[str, Json] | None = None,
) -> Answer:
    answer = Answer()
    answer.metadata = as_object(metadata, "metadata", answer.left_out)
    text = as_text(prompt, "extra_prompt", answer.left_out)
    if text and fills is not None:
        given = Answer(dict(answer.metadata))
        given.complete(call, fills)
        filled = fill(text, {**call.variables, **given.metadata})
        text = filled.text
        answer.notes += [
            f"{{{name}}} is not a known variable and was left" for name in filled.unknown
        ]
    if text:
        answer.extra_prompts = [_clean(text, max_chars, answer.notes)]
    return answer


def _checked(answer: Answer) -> Answer:
    """Say what was left out; where that was everything, something better goes out instead."""
    if answer.left_out and not (answer.metadata or answer.extra_prompts or answer.flat):
        raise HandlerError(f"The answer cannot be sent as JSON: {'; '.join(answer.left_out)}.")
    answer.notes += [f"{each}; it was left out" for each in answer.left_out]
    return answer


def _clean(prompt: str, max_chars: int, notes: list[str]) -> str:
    if len(prompt) > max_chars:
        notes.append(f"extra_prompt was cut from {len(prompt)} to {max_chars} characters")
        prompt = prompt[:max_chars]
    return _UNSPEAKABLE.sub("", prompt.replace("\r\n", "\n"))

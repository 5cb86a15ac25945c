"""What a prefetch is answered with: reads what handlers return, merges it, and remembers it.

Millis reads `metadata` and `extra_prompt` (https://docs.millis.ai/core-concepts/webhooks). Other
top-level names are the format of 2024; they are passed through and flagged.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from .events import Json, PrefetchRequest, PrefetchResponse
from .exceptions import HandlerError
from .variables import fill

_UNSPEAKABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(slots=True)
class Answer:
    """One answer in the making; `notes` say what is odd about it."""

    metadata: dict[str, Json] = field(default_factory=dict)
    extra_prompts: list[str] = field(default_factory=list)
    flat: dict[str, Json] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the JSON Millis gets."""
        message: dict[str, Any] = dict(self.flat)
        if self.metadata:
            message["metadata"] = self.metadata
        if self.extra_prompts:
            message["extra_prompt"] = "\n\n".join(self.extra_prompts)
        return to_json(message)


def read_answer(value: object, call: PrefetchRequest[Any], *, max_chars: int) -> Answer:
    """Read what a handler returned; raises `HandlerError` saying what was wrong with it."""
    if value is None:
        return Answer()
    if isinstance(value, str):
        return _answer(PrefetchResponse(extra_prompt=value), call, max_chars)
    if isinstance(value, PrefetchResponse):
        return _answer(value, call, max_chars)
    if isinstance(value, dict):
        return _read_dict(value, call, max_chars)
    raise HandlerError(
        f"A prefetch handler returns PrefetchResponse, str, dict or None, not "
        f"{type(value).__name__}."
    )


def merge(answers: Iterable[Answer]) -> Answer:
    """Put answers together: the later of two values for one name wins, prompts are joined."""
    answers = list(answers)
    if len(answers) == 1:
        return answers[0]
    merged = Answer()
    for answer in answers:
        merged.metadata |= answer.metadata
        merged.extra_prompts += answer.extra_prompts
        merged.flat |= answer.flat
        merged.notes += answer.notes
    return merged


def _read_dict(value: dict[Any, Any], call: PrefetchRequest[Any], max_chars: int) -> Answer:
    known = {
        name: value[name] for name in ("metadata", "extra_prompt") if value.get(name) is not None
    }
    try:
        response = PrefetchResponse(**known)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HandlerError(f"The returned dict does not fit: {where}: {first['msg']}.") from error
    answer = _answer(response, call, max_chars)
    flat = {
        str(name): item for name, item in value.items() if name not in PrefetchResponse.model_fields
    }
    if flat:
        answer.flat = _as_json(flat)
        answer.notes.append(
            f"{', '.join(sorted(flat))}: top-level names are the format of 2024 and may be ignored "
            "by Millis today; put them into metadata"
        )
    return answer


def _answer(response: PrefetchResponse, call: PrefetchRequest[Any], max_chars: int) -> Answer:
    answer = Answer(metadata=_as_json(response.metadata))
    prompt = response.extra_prompt
    if prompt and response.fill_variables:
        filled = fill(prompt, {**call.variables, **response.metadata})
        prompt = filled.text
        answer.notes += [f"{{{name}}} is no known variable and was left" for name in filled.unknown]
    if prompt:
        answer.extra_prompts = [_clean(prompt, max_chars, answer.notes)]
    return answer


def _as_json(value: dict[str, Any]) -> dict[str, Json]:
    """Return a copy that is JSON for certain, whatever becomes of what the handler returned."""
    try:
        copied: dict[str, Json] = from_json(to_json(value, inf_nan_mode="null"))
    except ValueError as error:
        raise HandlerError(f"The answer cannot be sent as JSON: {error}.") from error
    return copied


def _clean(prompt: str, max_chars: int, notes: list[str]) -> str:
    if len(prompt) > max_chars:
        notes.append(f"extra_prompt was cut from {len(prompt)} to {max_chars} characters")
        prompt = prompt[:max_chars]
    return _UNSPEAKABLE.sub("", prompt.replace("\r\n", "\n"))


class LastGood:
    """The last good answer per caller and agent: bounded in number and in age."""

    def __init__(
        self, *, max_entries: int, max_age_s: float, monotonic: Callable[[], float]
    ) -> None:
        self._max_entries = max_entries
        self._max_age_s = max_age_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str | None, ...], tuple[float, bytes]] = OrderedDict()

    def keep(self, call: PrefetchRequest[Any], answer: bytes, *, age_s: float = 0.0) -> None:
        """Remember `answer`, given so long ago, unless there is a newer one for this caller.

        Without a phone number nobody is known. May be called from any thread.
        """
        if not (call.from_phone or call.to_phone):
            return
        key, given_at = _caller(call), self._monotonic() - age_s
        with self._lock:
            if key in self._answers and self._answers[key][0] > given_at:
                return
            self._answers[key] = (given_at, answer)
            self._answers.move_to_end(key)
            if len(self._answers) > self._max_entries:
                self._answers.popitem(last=False)

    def find(self, call: PrefetchRequest[Any]) -> bytes | None:
        """Return the answer this caller got last, unless it is too old."""
        kept_at, answer = self._answers.get(_caller(call), (0.0, None))
        return answer if self._monotonic() - kept_at <= self._max_age_s else None


def _caller(call: PrefetchRequest[Any]) -> tuple[str | None, ...]:
    # Both numbers: where ours are not configured, one alone may be the agent's own on an outbound
    # call, and the next customer would get the last one's answer.
    return call.agent_id, call.from_phone, call.to_phone

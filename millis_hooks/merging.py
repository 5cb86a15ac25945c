"""Several ends of one call, put together to what is known of it.

An end of a call that is over counts for more than one of a call under way, and a later one for more
than an earlier one; but field by field, what says nothing never takes the place of what says
something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from .call_status import UNDER_WAY, CallStatus
from .events import EndOfCall
from .wire import MOST_PROBLEMS, Json, Problem

_NOTHING: tuple[Json, ...] = (None, "", [], {})


def rank_of(call: EndOfCall) -> int:
    """Return how much an end tells by its status: of a call under way the least."""
    if call.call_status in UNDER_WAY:
        return 0
    return 1 if call.call_status == CallStatus.UNKNOWN else 2


def merged(lower: EndOfCall, higher: EndOfCall) -> EndOfCall:
    """Return what two ends of a call come to; where both say something, `higher` counts."""
    raw = dict(lower.raw)
    for name, value in _said(higher):
        before = _value(lower, name)
        raw[name] = _joined(before, value) if _says(before) else value
    call = EndOfCall.from_raw(raw, own_numbers=higher._own_numbers)
    left_out = [each for end in (lower, higher) for each in end.problems if _is_of_parts(each)]
    call._problems = list(dict.fromkeys([*left_out, *call.problems]))[: MOST_PROBLEMS + 1]
    return call


def _said(call: EndOfCall) -> Iterator[tuple[str, Json]]:
    for name in call.raw:
        value = _value(call, name)
        if _says(value) and not (name == "ts" and call.started_at is None):
            yield name, value


def _value(call: EndOfCall, name: str) -> Json:
    """Return a field as it was sent, None where it could not be read; what came as text is read."""
    sent = call.raw.get(name)
    if name not in EndOfCall.model_fields:
        return sent
    read = getattr(call, name)
    if read is None:
        return None
    if isinstance(read, dict):
        return cast("Json", read)
    return sent if read or isinstance(read, int | float) else None


def _joined(lower: Json, higher: Json) -> Json:
    if not isinstance(lower, dict) or not isinstance(higher, dict):
        return higher
    joined = dict(lower)
    for name, value in higher.items():
        if _says(value):
            joined[name] = _joined(lower[name], value) if _says(lower.get(name)) else value
        else:
            joined.setdefault(name, value)
    return joined


def _says(value: Json) -> bool:
    return isinstance(value, bool | int | float) or value not in _NOTHING


def _is_of_parts(problem: Problem) -> bool:
    return problem.why.startswith("the first ")

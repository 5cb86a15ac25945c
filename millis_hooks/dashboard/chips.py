"""The filters that are applied to a list, in words, each of which can be taken away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TypeVar

from ..call_log.filters import CallFilter
from .call_filters import Params, is_midnight, params_of
from .formats import clock, status_label

T = TypeVar("T")

HANDLER_LABELS = {
    "failed": "Failed, will be retried",
    "parked": "Failed for good",
    "none": "None ran",
}


@dataclass(frozen=True, slots=True)
class Chip:
    """One filter in words, and the list's parameters without it."""

    label: str
    value: str
    rest: Params


def chips_of(wanted: CallFilter, page_size: int, zone: tzinfo = UTC) -> tuple[Chip, ...]:
    """Return the filters of a list; its outcome and its range are shown elsewhere."""
    return tuple(
        Chip(label, value, params_of(rest, page_size))
        for label, value, rest in _parts(wanted, zone)
    )


def _parts(wanted: CallFilter, zone: tzinfo) -> Iterator[tuple[str, str, CallFilter]]:
    if wanted.q:
        yield "Call has", wanted.q, replace(wanted, q="")
    yield from _periods(wanted, zone)
    for agent in wanted.agent:
        yield "Agent", agent, replace(wanted, agent=_but(wanted.agent, agent))
    for status in wanted.status:
        yield "Status", status_label(status), replace(wanted, status=_but(wanted.status, status))
    if wanted.channel:
        yield "Channel", wanted.channel, replace(wanted, channel=None)
    if wanted.direction:
        yield "Direction", wanted.direction, replace(wanted, direction=None)
    if wanted.number:
        yield "Number", wanted.number, replace(wanted, number=None)
    yield from _measures(wanted)
    for pair in wanted.metadata:
        yield pair[0], pair[1], replace(wanted, metadata=_but(wanted.metadata, pair))
    yield from _troubles(wanted)


def _periods(wanted: CallFilter, zone: tzinfo) -> Iterator[tuple[str, str, CallFilter]]:
    if wanted.since:
        yield "From", _day(wanted.since, zone), replace(wanted, since=None)
    if wanted.until:
        yield "Until", _day(wanted.until, zone, is_end=True), replace(wanted, until=None)


def _measures(wanted: CallFilter) -> Iterator[tuple[str, str, CallFilter]]:
    if wanted.min_s is not None:
        yield "Length", f"at least {clock(wanted.min_s)}", replace(wanted, min_s=None)
    if wanted.max_s is not None:
        yield "Length", f"at most {clock(wanted.max_s)}", replace(wanted, max_s=None)
    if wanted.cost_min is not None:
        yield "Credits", f"at least {wanted.cost_min:g}", replace(wanted, cost_min=None)
    if wanted.cost_max is not None:
        yield "Credits", f"at most {wanted.cost_max:g}", replace(wanted, cost_max=None)


def _troubles(wanted: CallFilter) -> Iterator[tuple[str, str, CallFilter]]:
    if wanted.handler:
        yield "Handlers", HANDLER_LABELS[wanted.handler], replace(wanted, handler=None)
    if wanted.unparsed:
        yield "Deliveries", "one could not be read", replace(wanted, unparsed=False)
    if wanted.duplicate:
        yield "Deliveries", "the end came twice", replace(wanted, duplicate=False)


def _but(values: tuple[T, ...], one: T) -> tuple[T, ...]:
    return tuple(value for value in values if value != one)


def _day(moment: datetime, zone: tzinfo, *, is_end: bool = False) -> str:
    local = moment.astimezone(zone)
    if not is_midnight(local):
        return local.strftime("%b %d, %H:%M")
    return (local - timedelta(days=is_end)).strftime("%b %d, %Y")

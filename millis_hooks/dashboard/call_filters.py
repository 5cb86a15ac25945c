"""The filters of the list of calls, in an address and back.

`status`, `agent` and `meta` may repeat. `from` and `to` are dates or times, in the operator's zone
unless they say otherwise; a date in `to` is the last day of the list. Addresses that we make name
moments, so that they are the same list to whoever opens them.

The filters that are applied to a list, in words, each of which can be taken away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from ..call_log.queries.filters import (
    CHANNELS,
    DIRECTIONS,
    HANDLER_STATES,
    OUTCOMES,
    RANGES,
    CallFilter,
)
from ..call_log.search import clean_query
from .formats import clock, status_label

PAGE_SIZES = (25, 50, 100)
PAGE_SIZE = 50

#: Parameters of an address; those that repeat are lists.
Params: TypeAlias = dict[str, str | list[str]]

_DATE = len("2026-11-21")
#: What an outcome was called in addresses that may be kept somewhere.
_OLD_OUTCOMES = {"error": "failed"}
#: No call is of another year. Moments at the very ends of the calendar are not in every time zone.
_YEARS = range(1900, 9000)


class TimeField(NamedTuple):
    """The type and the value of a form's field."""

    type: str
    value: str


def read_filter(query: Mapping[str, str], zone: tzinfo = UTC) -> CallFilter:
    """Read the filters of a query string; what it cannot mean is left out."""
    return CallFilter(
        zone=zone,
        q=clean_query(query.get("q", "")),
        outcome=_one_of(OUTCOMES, _OLD_OUTCOMES.get(asked := query.get("outcome", ""), asked)),
        status=every(query, "status"),
        agent=every(query, "agent"),
        channel=_one_of(CHANNELS, query.get("channel")),
        direction=_one_of(DIRECTIONS, query.get("direction")),
        number=clean_query(query.get("number", "")) or None,
        range=_one_of(tuple(RANGES), query.get("range")) or CallFilter().range,
        since=read_time(query.get("from"), zone),
        until=read_time(query.get("to"), zone, end_of_day=True),
        min_s=_number(query.get("min")),
        max_s=_number(query.get("max")),
        cost_min=_number(query.get("cost_min")),
        cost_max=_number(query.get("cost_max")),
        metadata=tuple(_pair(text) for text in every(query, "meta") if "=" in text),
        handler=_one_of(HANDLER_STATES, query.get("handler")),
        unparsed="unparsed" in query,
        duplicate="duplicate" in query,
    )


def read_page_size(query: Mapping[str, str]) -> int:
    """Read how many calls a page has."""
    return next((size for size in PAGE_SIZES if query.get("size") == str(size)), PAGE_SIZE)


def params_of(wanted: CallFilter, page_size: int) -> Params:
    """Return the parameters that say this, without those that are the default."""
    named: dict[str, str | list[str] | None] = {
        "q": wanted.q,
        "outcome": wanted.outcome,
        "agent": _spread(wanted.agent),
        "status": _spread(wanted.status),
        "channel": wanted.channel,
        "direction": wanted.direction,
        "number": wanted.number,
        "range": wanted.range if wanted.range != CallFilter().range else None,
        "from": wanted.since.isoformat() if wanted.since else None,
        "to": wanted.until.isoformat() if wanted.until else None,
        "min": _written(wanted.min_s),
        "max": _written(wanted.max_s),
        "cost_min": _written(wanted.cost_min),
        "cost_max": _written(wanted.cost_max),
        "meta": _spread([f"{key}={value}" for key, value in wanted.metadata]),
        "handler": wanted.handler,
        "unparsed": "1" if wanted.unparsed else None,
        "duplicate": "1" if wanted.duplicate else None,
        "size": str(page_size) if page_size != PAGE_SIZE else None,
    }
    return {name: value for name, value in named.items() if value}


def list_query(wanted: CallFilter) -> str:
    """Return the query string that says this filter, and what a call's address has as `in`."""
    return urlencode(params_of(wanted, PAGE_SIZE), doseq=True, errors="replace")


def read_list(text: str | None, zone: tzinfo = UTC) -> CallFilter:
    """Read the list that a call was opened from: `list_query` of its filter."""
    return read_filter(QueryParams(text or ""), zone)


def every(query: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the values of a parameter that may repeat, each once and none of them empty."""
    values = query.getlist(name) if isinstance(query, QueryParams) else [query.get(name, "")]
    return tuple(dict.fromkeys(filter(None, values)))


def read_time(text: str | None, zone: tzinfo, *, end_of_day: bool = False) -> datetime | None:
    """Read a date or a time, in UTC; `zone` is that of one that names none.

    A date is when that day begins, or with `end_of_day` when it ends. None for anything else.
    """
    try:
        moment = datetime.fromisoformat(text or "")
        moment = moment if moment.tzinfo else moment.replace(tzinfo=zone)
        if end_of_day and len(text or "") == _DATE:
            moment += timedelta(days=1)
        return moment.astimezone(UTC) if moment.year in _YEARS else None
    except (ValueError, OverflowError):
        return None


def time_field(moment: datetime | None, zone: tzinfo, *, is_end: bool = False) -> TimeField:
    """Return the field for `from`, or for `to` (`is_end`): a date where it is a whole day."""
    if moment is None:
        return TimeField("date", "")
    local = moment.astimezone(zone)
    if not is_midnight(local):
        return TimeField("datetime-local", local.replace(tzinfo=None).isoformat())
    return TimeField("date", (local.date() - timedelta(days=is_end)).isoformat())


def is_midnight(local: datetime) -> bool:
    """Whether a day begins then."""
    return local.time() == time()


def _one_of(known: Sequence[str], text: str | None) -> str | None:
    return text if text in known else None


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _spread(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _written(number: float | None) -> str | None:
    """Write a number exactly: the page after this one is of the same list."""
    return None if number is None else repr(number).removesuffix(".0")


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

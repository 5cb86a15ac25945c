"""Filters of the list of calls: read from an address, written to one, and put into words.

`status`, `agent`, `meta` and `result` may repeat, up to twenty times; a result is also written as
`result.booked=true`. `from` and `to` are dates or times, in the operator's time
zone unless they name another; a date in `to` is the last day of the list. Addresses that the pages
make name moments, so that they list the same calls for operators of every zone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from itertools import islice
from typing import NamedTuple, TypeAlias
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from ..call_log.queries.filters import (
    CHANNELS,
    DIRECTIONS,
    HANDLER_STATES,
    OUTCOMES,
    RANGES,
    SOURCES,
    CallFilter,
)
from ..call_log.results import ResultFilter
from ..call_log.sanitize import MAX_KEY_CHARS
from ..call_log.search import clean_query, fold
from .formats import clock, status_label

PAGE_SIZES = (25, 50, 100)
PAGE_SIZE = 50

#: Parameters of an address; those that repeat are lists.
Params: TypeAlias = dict[str, str | list[str]]

_NAME_CHARS = 200
_DATE = len("2026-11-21")
#: Earlier names of outcomes, which bookmarks may have.
_OLD_OUTCOMES = {"error": "failed"}
#: Moments outside are ignored: at the ends of the calendar, not every time zone has them.
_YEARS = range(1900, 9000)

_NO_FILTERS = CallFilter()
_OF_RESULT = "result."
#: Values of a parameter that repeats: each link of a page has all of them.
_MOST_VALUES = 20
#: Columns of results in the list.
_MOST_COLUMNS = 10


class TimeField(NamedTuple):
    """The type and value of a form field."""

    type: str
    value: str


def read_filter(query: Mapping[str, str], zone: tzinfo = UTC) -> CallFilter:
    """Read the filters of a query string; invalid ones are left out."""
    outcome = query.get("outcome", "")
    return CallFilter(
        zone=zone,
        q=clean_query(query.get("q", "")),
        source=_one_of(SOURCES, query.get("source")) or _NO_FILTERS.source,
        outcome=_one_of(OUTCOMES, _OLD_OUTCOMES.get(outcome, outcome)),
        status=every(query, "status"),
        agent=every(query, "agent"),
        channel=_one_of(CHANNELS, query.get("channel")),
        direction=_one_of(DIRECTIONS, query.get("direction")),
        number=clean_query(query.get("number", "")) or None,
        range=_one_of(tuple(RANGES), query.get("range")) or _NO_FILTERS.range,
        since=read_time(query.get("from"), zone),
        until=read_time(query.get("to"), zone, end_of_day=True),
        min_s=_number(query.get("min")),
        max_s=_number(query.get("max")),
        cost_min=_number(query.get("cost_min")),
        cost_max=_number(query.get("cost_max")),
        metadata=tuple(_pair(text) for text in every(query, "meta") if "=" in text),
        results=tuple(_results(query)),
        function=clean_name(query.get("function")),
        provider=clean_name(query.get("provider")),
        handler=_one_of(HANDLER_STATES, query.get("handler")),
        unparsed="unparsed" in query,
        duplicate="duplicate" in query,
    )


def read_page_size(query: Mapping[str, str]) -> int:
    """Read the number of calls on a page."""
    return next((size for size in PAGE_SIZES if query.get("size") == str(size)), PAGE_SIZE)


def read_columns(query: Mapping[str, str]) -> tuple[str, ...]:
    """Read the results that have a column of their own; a text may name several."""
    texts = (name.strip() for text in every(query, "columns") for name in text.split(","))
    return tuple(dict.fromkeys(filter(None, texts)))[:_MOST_COLUMNS]


def params_of(
    filters: CallFilter, page_size: int = PAGE_SIZE, columns: Sequence[str] = ()
) -> Params:
    """Return the parameters of these filters, without those at their defaults."""
    named: dict[str, str | list[str] | None] = {
        "q": filters.q,
        "source": filters.source if filters.source != _NO_FILTERS.source else None,
        "outcome": filters.outcome,
        "agent": _spread(filters.agent),
        "status": _spread(filters.status),
        "channel": filters.channel,
        "direction": filters.direction,
        "number": filters.number,
        "range": filters.range if filters.range != _NO_FILTERS.range else None,
        "from": filters.since.isoformat() if filters.since else None,
        "to": filters.until.isoformat() if filters.until else None,
        "min": _written(filters.min_s),
        "max": _written(filters.max_s),
        "cost_min": _written(filters.cost_min),
        "cost_max": _written(filters.cost_max),
        "meta": _spread([f"{key}={value}" for key, value in filters.metadata]),
        "result": _spread([str(each) for each in filters.results]),
        "function": filters.function,
        "provider": filters.provider,
        "handler": filters.handler,
        "unparsed": "1" if filters.unparsed else None,
        "duplicate": "1" if filters.duplicate else None,
        "columns": _spread(columns),
        "size": str(page_size) if page_size != PAGE_SIZE else None,
    }
    return {name: value for name, value in named.items() if value}


def list_query(filters: CallFilter) -> str:
    """Return the query string of these filters, which a call's address has as `in`."""
    return urlencode(params_of(filters), doseq=True, errors="replace")


def read_list(text: str | None, zone: tzinfo = UTC) -> CallFilter:
    """Read what `list_query` wrote: the filters of the list that a call was opened from."""
    return read_filter(QueryParams(text or ""), zone)


def every(query: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Return the first distinct values of a repeated parameter, without empty ones.

    Each is cut to the length of the longest key in the call log.
    """
    values = query.getlist(name) if isinstance(query, QueryParams) else [query.get(name, "")]
    return _first(values)


def _first(values: Iterable[str]) -> tuple[str, ...]:
    distinct = dict.fromkeys(value[:MAX_KEY_CHARS] for value in values if value)
    return tuple(islice(distinct, _MOST_VALUES))


def read_time(text: str | None, zone: tzinfo, *, end_of_day: bool = False) -> datetime | None:
    """Read a date or time as a moment in UTC; `zone` applies if the text names none.

    A date is the beginning of that day, or its end with `end_of_day`. None for any other text.
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
    """Return the form field of `from`, or of `to` (`is_end`): a date if the moment is midnight."""
    if moment is None:
        return TimeField("date", "")
    local = moment.astimezone(zone)
    if local.time() != time():
        return TimeField("datetime-local", local.replace(tzinfo=None).isoformat())
    return TimeField("date", (local.date() - timedelta(days=is_end)).isoformat())


def clean_name(text: str | None) -> str | None:
    """Return a name that calls are filtered by; None for one without a character to compare."""
    name = (text or "").strip()[:_NAME_CHARS]
    return name if fold(name) else None


def _one_of(values: Sequence[str], text: str | None) -> str | None:
    return text if text in values else None


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _results(query: Mapping[str, str]) -> Iterator[ResultFilter]:
    """Yield the conditions of `result=score>=4`, and of `result.score>=4`."""
    texts = list(every(query, "result"))
    items = query.multi_items() if isinstance(query, QueryParams) else query.items()
    for name, value in items:
        if name.startswith(_OF_RESULT):
            texts.append("=".join(filter(None, (name.removeprefix(_OF_RESULT), value))))
    yield from filter(None, map(ResultFilter.read, _first(texts)))


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _spread(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _written(number: float | None) -> str | None:
    """Write a number exactly, so that the next page is of the same list."""
    return None if number is None else repr(number).removesuffix(".0")


#: Labels of `CallFilter.handler`.
HANDLER_LABELS = {"retrying": "Retrying", "failed": "Failed", "none": "None ran"}

#: Labels of `CallFilter.source`.
SOURCE_LABELS = {
    "real": "Real calls",
    "sandbox": "Sandbox",
    "test": "Tests",
    "all": "All, with sandbox and tests",
}

#: The parameters that are shown as active filters: their labels, and their values in words.
_ACTIVE: Mapping[str, tuple[str, Callable[[str, tzinfo], str]]] = {
    "q": ("Contains", lambda text, _: f"“{text}”"),
    "source": ("Calls", lambda text, _: SOURCE_LABELS[text]),
    "from": ("From", lambda text, zone: _day(text, zone)),
    "to": ("Until", lambda text, zone: _day(text, zone, is_end=True)),
    "channel": ("Channel", lambda text, _: text),
    "direction": ("Direction", lambda text, _: text),
    "number": ("Number", lambda text, _: text),
    "min": ("Length", lambda text, _: f"at least {clock(float(text))}"),
    "max": ("Length", lambda text, _: f"at most {clock(float(text))}"),
    "cost_min": ("Credits", lambda text, _: f"at least {float(text):g}"),
    "cost_max": ("Credits", lambda text, _: f"at most {float(text):g}"),
    "function": ("Function", lambda text, _: text),
    "provider": ("Provider", lambda text, _: text),
    "handler": ("Handlers", lambda text, _: HANDLER_LABELS[text]),
    "unparsed": ("Deliveries", lambda *_: "one is unparsed"),
    "duplicate": ("Deliveries", lambda *_: "more than one end-of-call"),
    "agent": ("Agent", lambda text, _: text),
    "status": ("Status", lambda text, _: status_label(text)),
    "meta": ("{}", lambda text, _: text.partition("=")[2]),
    "result": ("Result", lambda text, _: text),
}


@dataclass(frozen=True, slots=True)
class ActiveFilter:
    """One filter in words, and the list's parameters without it."""

    name: str
    label: str
    value: str
    rest: Params


def active_filters(params: Params, zone: tzinfo = UTC) -> Iterator[ActiveFilter]:
    """Yield the filters that `params_of` wrote; outcome and range are shown elsewhere."""
    for name, (label, words) in _ACTIVE.items():
        texts = params.get(name, [])
        texts = [texts] if isinstance(texts, str) else texts
        for text in texts:
            others = _spread([other for other in texts if other != text])
            rest = {each: others if each == name else value for each, value in params.items()}
            yield ActiveFilter(
                name,
                label.format(text.partition("=")[0]),
                words(text, zone),
                {each: value for each, value in rest.items() if value},
            )


def _day(text: str, zone: tzinfo, *, is_end: bool = False) -> str:
    local = datetime.fromisoformat(text).astimezone(zone)
    if local.time() != time():
        return local.strftime("%b %d, %H:%M")
    return (local - timedelta(days=is_end)).strftime("%b %d, %Y")

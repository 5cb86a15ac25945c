"""The filters of the list of calls, in an address and back.

`status`, `agent` and `meta` may repeat. `from` and `to` are dates or times, in UTC unless they say
otherwise; a date in `to` is the last day of the list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from starlette.datastructures import QueryParams

from ..call_log.filters import CHANNELS, DIRECTIONS, HANDLER_STATES, OUTCOMES, RANGES, CallFilter
from ..call_log.search import clean_query

PAGE_SIZES = (25, 50, 100)
PAGE_SIZE = 50

#: Parameters of an address; those that repeat are lists.
Params: TypeAlias = dict[str, str | list[str]]

_DATE = len("2026-11-21")


def read_filter(query: Mapping[str, str]) -> CallFilter:
    """Read the filters of a query string; what it cannot mean is left out."""
    return CallFilter(
        q=clean_query(query.get("q", "")),
        outcome=_one_of(OUTCOMES, query.get("outcome")),
        status=_every(query, "status"),
        agent=_every(query, "agent"),
        channel=_one_of(CHANNELS, query.get("channel")),
        direction=_one_of(DIRECTIONS, query.get("direction")),
        number=clean_query(query.get("number", "")) or None,
        range=_one_of(tuple(RANGES), query.get("range")) or CallFilter().range,
        since=_time(query.get("from")),
        until=_time(query.get("to"), end_of_day=True),
        min_s=_number(query.get("min")),
        max_s=_number(query.get("max")),
        cost_min=_number(query.get("cost_min")),
        cost_max=_number(query.get("cost_max")),
        metadata=tuple(_pair(text) for text in _every(query, "meta") if "=" in text),
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


def _one_of(known: Sequence[str], text: str | None) -> str | None:
    return text if text in known else None


def _every(query: Mapping[str, str], name: str) -> tuple[str, ...]:
    values = query.getlist(name) if isinstance(query, QueryParams) else [query.get(name, "")]
    return tuple(dict.fromkeys(filter(None, values)))


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(text: str | None, *, end_of_day: bool = False) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if end_of_day and len(text or "") == _DATE:
            moment += timedelta(days=1)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _spread(values: Sequence[str]) -> str | list[str]:
    return values[0] if len(values) == 1 else list(values)


def _written(number: float | None) -> str | None:
    return None if number is None else f"{number:g}"

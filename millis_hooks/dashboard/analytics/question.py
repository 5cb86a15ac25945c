"""What the analytics page is asked, in an address and back.

`range` names a period that ends now; `from` and `to` are dates or times of the time zone and take
its place, and a date in `to` is the last day. `agent` may repeat. `tz` is the name of a time zone,
`split` how costs are told apart and `interval` how long a bar is. What makes no sense is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Literal, NamedTuple, TypeAlias

from ...call_log.analytics.analytics import Scope, Split
from ...call_log.analytics.buckets import INTERVALS, last_days
from ..call_filters import Params, every, read_time
from ..formats import iso
from ..parameters import Parameter
from ..zones import zone_named

Range: TypeAlias = Literal["24h", "7d", "30d", "90d", "12mo"]


class Span(NamedTuple):
    """A range, on its button and in a sentence; its days are those of the calendar, with today."""

    label: str
    words: str
    days: int


RANGES: Mapping[Range, Span] = {
    "24h": Span("24 h", "24 hours", 1),
    "7d": Span("7 d", "7 days", 7),
    "30d": Span("30 d", "30 days", 30),
    "90d": Span("90 d", "90 days", 90),
    "12mo": Span("12 mo", "12 months", 365),
}
DEFAULT_RANGE: Range = "30d"

#: What `read_question` reads of an address.
QUERY = (
    Parameter("range", "The period, unless `from` or `to` is given.", choices=tuple(RANGES)),
    Parameter("from", "The first day or moment."),
    Parameter("to", "The last day, or the moment before which."),
    Parameter("agent", "The agent's id.", repeats=True),
    Parameter("tz", "The name of a time zone, as Europe/Berlin."),
    Parameter("split", "How costs are told apart.", choices=("type", "provider")),
    Parameter("interval", "How long a bar is.", choices=tuple(INTERVALS)),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A period, chosen by its range unless that is None, and what is asked of it.

    `params` say the same in an address, without what is the default.
    """

    range: Range | None
    scope: Scope
    params: Params

    @property
    def key(self) -> str:
        """What the same question has in common with this one, whenever it is asked."""
        period = self.range or (self.scope.since, self.scope.until)
        return repr((period, str(self.scope.zone), sorted(self.params.items())))


def read_question(query: Mapping[str, str], *, now: datetime, zone: tzinfo) -> Question:
    """Read what a query string asks; `zone` is that of the operator."""
    zone = zone_named(query.get("tz", "")) or zone
    split: Split = "provider" if query.get("split") == "provider" else "type"
    interval = next((each for each in INTERVALS if each == query.get("interval")), None)
    scope = _told_scope(query, now, zone)
    range_ = None if scope else _range(query.get("range"))
    scope = scope or _scope(range_ or DEFAULT_RANGE, now, zone)
    scope = replace(scope, agents=every(query, "agent"), split=split, interval=interval)
    return Question(range_, scope, _params(query, scope, range_))


def _params(query: Mapping[str, str], scope: Scope, range_: Range | None) -> Params:
    named: dict[str, str | list[str] | None] = {
        "range": range_ if range_ != DEFAULT_RANGE else None,
        "from": None if range_ else query.get("from") or iso(scope.since),
        "to": None if range_ else query.get("to"),
        "agent": list(scope.agents),
        "tz": str(scope.zone) if query.get("tz") == str(scope.zone) else None,
        "split": scope.split if scope.split != "type" else None,
        "interval": scope.interval,
    }
    return {name: value for name, value in named.items() if value}


def _told_scope(query: Mapping[str, str], now: datetime, zone: tzinfo) -> Scope | None:
    since = read_time(query.get("from"), zone)
    until = read_time(query.get("to"), zone, end_of_day=True)
    if not since and not until:
        return None
    until = min(until or now, now)
    try:
        return Scope(since=since or until - timedelta(days=30), until=until, zone=zone)
    except ValueError:
        return None


def _scope(range_: Range, now: datetime, zone: tzinfo) -> Scope:
    if range_ == "24h":
        return Scope(since=now - timedelta(hours=24), until=now, zone=zone)
    since, until = last_days(RANGES[range_].days, now=now, zone=zone)
    return Scope(since=since, until=until, zone=zone)


def _range(text: str | None) -> Range:
    return next((each for each in RANGES if each == text), DEFAULT_RANGE)

"""Hours, days and weeks of a period, as the clocks of a time zone show them.

A day on which clocks change has 23 or 25 hours and is still one bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal, get_args

Interval = Literal["hour", "day", "week"]
INTERVALS: tuple[Interval, ...] = get_args(Interval)

#: More cannot be told apart in a chart; a finer interval gives way to the next.
MOST_BUCKETS = 800
_LONGEST: dict[Interval, timedelta] = {"hour": timedelta(days=2), "day": timedelta(days=120)}
_LENGTH = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}


def last_days(count: int, *, now: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """Return when the last `count` days there began, today among them, and `now`."""
    first = now.astimezone(zone).date() - timedelta(days=count - 1)
    return _midnight(first, zone), now


def interval_for(span: timedelta, chosen: Interval | None = None) -> Interval:
    """Return the interval that suits a period, or the chosen one unless it is too fine."""
    for interval in INTERVALS[:-1]:
        fits = span <= _LONGEST[interval] if chosen is None else interval == chosen
        if fits and span / _LENGTH[interval] <= MOST_BUCKETS:
            return interval
        if fits:
            chosen = INTERVALS[INTERVALS.index(interval) + 1]
    return "week"


def cut(
    since: datetime, until: datetime, interval: Interval, zone: tzinfo
) -> Iterator[tuple[datetime, datetime]]:
    """Yield the buckets of a period in turn, each from when (inclusive) to when (exclusive).

    All times are aware and of `zone`. The first and the last may be cut short by the period.
    """
    start, end = since.astimezone(UTC), until.astimezone(UTC)
    while start < end:
        following = min(_NEXT[interval](start.astimezone(zone)), end)
        yield start.astimezone(zone), following.astimezone(zone)
        start = following


def _next_hour(local: datetime) -> datetime:
    past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    return local.astimezone(UTC) + _LENGTH["hour"] - past


def _next_day(local: datetime) -> datetime:
    return _midnight(local.date() + timedelta(days=1), local.tzinfo)


def _next_monday(local: datetime) -> datetime:
    return _midnight(local.date() + timedelta(days=7 - local.weekday()), local.tzinfo)


def _midnight(day: date, zone: tzinfo | None) -> datetime:
    """Return when the day begins, in UTC: later than at midnight where clocks skip that."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


_NEXT: dict[Interval, Callable[[datetime], datetime]] = {
    "hour": _next_hour,
    "day": _next_day,
    "week": _next_monday,
}

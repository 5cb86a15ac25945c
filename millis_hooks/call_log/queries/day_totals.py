"""Totals of whole past days, so that a report of a long period need not read every call.

A day is one of UTC, cut into half hours: days and hours of nearly all time zones are made up of
these, and what is left is read from the calls. Totals are made from the same statement as reports,
and used until the day is marked, see `changed_days.py`; a day without totals and without a mark has
no calls.
"""

from __future__ import annotations

import sys
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, partial
from itertools import compress
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Engine, delete, func, insert, select

from ..changed_days import changed
from ..tables import changed_days, day_divisions, day_totals
from .divisions import day_rows
from .tally import SAMPLED, Tally, read_by_agent, read_tally

#: Runs work in a transaction that writes.
Write: TypeAlias = Callable[[Callable[[Connection], object]], object]

#: By then calls have ended and most handlers are done with them.
SETTLED_AFTER = timedelta(hours=3)

#: The totals of all calls, among those by agent.
_ALL_AGENTS = ""

_SLOT = timedelta(minutes=30)
_SLOTS = 48
_DAY = _SLOT * _SLOTS


class Period(NamedTuple):
    """From `since` until just before `until`, and the tally of what was received then."""

    since: datetime
    until: datetime
    tally: Tally


@dataclass(slots=True)
class _Plan:
    """What is read from totals, by day and half hours (first, end), and what from calls."""

    of_days: defaultdict[date, list[tuple[Tally, int, int]]]
    of_calls: list[Period]

    def add(self, period: Period, midnight: datetime) -> None:
        """Add a period within the UTC day that begins at `midnight`."""
        first = -((midnight - period.since) // _SLOT)
        end = (period.until - midnight) // _SLOT
        if first >= end:
            self.add_calls(period)
            return
        since, until = midnight + first * _SLOT, midnight + end * _SLOT
        self.add_calls(period._replace(until=since))
        self.of_days[midnight.date()].append((period.tally, first, end))
        self.add_calls(period._replace(since=until))

    def add_calls(self, period: Period) -> None:
        last = self.of_calls[-1] if self.of_calls else None
        if last and last.tally is period.tally and last.until == period.since:
            self.of_calls[-1] = last._replace(until=period.until)
        elif period.since < period.until:
            self.of_calls.append(period)


def read_periods(
    connection: Connection,
    periods: Sequence[Period],
    agents: Sequence[str],
    source: str = "real",
) -> None:
    """Add to the tally of each period the calls received in it: all of a source, or of `agents`.

    Totals are of real calls. The others are few, and are read one by one.
    """
    if source in ("real", "all"):
        _read_real(connection, periods, agents)
    if source != "real":
        made_up = "made_up" if source == "all" else source
        for since, until, tally in periods:
            read_tally(connection, since, until, agents, into=tally, source=made_up)


def _read_real(connection: Connection, periods: Sequence[Period], agents: Sequence[str]) -> None:
    plan = _plan(periods, changed(connection))
    if plan.of_days:
        t = day_totals.c
        stored = select(t.day, t.measure, t.name, t.slots, t.amounts).where(
            t.agent_id.in_(agents or [_ALL_AGENTS]),
            t.day.between(min(plan.of_days), max(plan.of_days)),
        )
        for day, measure, name, slots, amounts in connection.execute(stored).all():
            for tally, first, end in plan.of_days[day]:
                if values := _unpack(slots, amounts, first, end):
                    tally.add(measure, name, values)
    for since, until, tally in plan.of_calls:
        read_tally(connection, since, until, agents, into=tally)


def roll_up(reader: Engine, write: Write, *, now: datetime) -> Iterator[int]:
    """Make the totals of the marked days that are over, newest first; yield 1 after each.

    Calls are read by `reader`, and only the result is written in a transaction of `write`.
    """
    write(_merge_marks)
    over = changed_days.c.day < (now - SETTLED_AFTER).astimezone(UTC).date()
    days = select(changed_days.c.day).where(over).distinct().order_by(changed_days.c.day.desc())
    with reader.connect() as connection:
        marked = connection.scalars(days).all()
    for day in marked:
        with reader.connect() as connection:
            marks = select(changed_days.c.id).where(changed_days.c.day == day)
            seen = connection.scalars(marks).all()
            totals, divisions = _read_day(connection, day), day_rows(connection, day)
        write(partial(_store, day=day, totals=totals, divisions=divisions, marks=seen))
        yield 1


def _plan(periods: Iterable[Period], changed: set[date]) -> _Plan:
    plan = _Plan(defaultdict(list), [])
    for since, until, tally in periods:
        start, end = since.astimezone(UTC), until.astimezone(UTC)
        while start < end:
            midnight = _midnight(start.date())
            period = Period(start, min(midnight + _DAY, end), tally)
            if midnight.date() in changed:
                plan.add_calls(period)
            else:
                plan.add(period, midnight)
            start = period.until
    return plan


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _unpack(slots: bytes, amounts: bytes, first: int, end: int) -> array[float]:
    values = array("d")
    values.frombytes(amounts)
    if sys.byteorder == "big":
        values.byteswap()
    if (first, end) == (0, _SLOTS):
        return values
    return array("d", compress(values, slots.translate(_is_between(first, end))))


@cache
def _is_between(first: int, end: int) -> bytes:
    """Return a table that turns a slot into 1 if it is one of these, else into 0."""
    return bytes(first <= slot < end for slot in range(256))


_Series: TypeAlias = defaultdict[tuple[str, str, str], list[tuple[float, int]]]


def _read_day(connection: Connection, day: date) -> list[dict[str, Any]]:
    """Return the totals of a day: a number for each half hour that has one, and all samples."""
    series: _Series = defaultdict(list)
    midnight = _midnight(day)
    for slot in range(_SLOTS):
        since = midnight + slot * _SLOT
        for agent_id, measure, name, values in read_by_agent(connection, since, since + _SLOT):
            for agent in {_ALL_AGENTS, agent_id or _ALL_AGENTS}:
                series[agent, measure, name] += [(value, slot) for value in values]
    return [
        dict(zip(("agent_id", "measure", "name"), key, strict=True), day=day, **_pack(key[1], each))
        for key, each in series.items()
    ]


def _pack(measure: str, series: list[tuple[float, int]]) -> dict[str, bytes]:
    if measure in SAMPLED:
        ordered = sorted(series)
    else:
        sums: defaultdict[int, float] = defaultdict(float)
        for amount, slot in series:
            sums[slot] += amount
        ordered = [(amount, slot) for slot, amount in sums.items()]
    amounts = array("d", [amount for amount, _ in ordered])
    if sys.byteorder == "big":
        amounts.byteswap()
    return {"slots": bytes(slot for _, slot in ordered), "amounts": amounts.tobytes()}


def _store(
    connection: Connection,
    *,
    day: date,
    totals: list[dict[str, Any]],
    divisions: list[dict[str, Any]],
    marks: Sequence[int],
) -> None:
    for table, rows in ((day_totals, totals), (day_divisions, divisions)):
        connection.execute(delete(table).where(table.c.day == day))
        if rows:
            connection.execute(insert(table), rows)
    connection.execute(delete(changed_days).where(changed_days.c.id.in_(marks)))


def _merge_marks(connection: Connection) -> None:
    """Leave one mark of each day, the newest."""
    newest = select(func.max(changed_days.c.id)).group_by(changed_days.c.day)
    connection.execute(delete(changed_days).where(changed_days.c.id.not_in(newest)))

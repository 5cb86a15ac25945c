"""Tallies of whole UTC hours, stored so that long periods need not be read call by call.

The summary of an hour is valid until something of that hour changes, see `triggers.py`. The last
hours change often and are not summarized.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeAlias

from sqlalchemy import Connection, Engine, and_, bindparam, delete, insert, or_, select, update

from ..tables import hours, summaries
from ..upkeep.removal import Write
from .buckets import HOUR, ceil_hour, floor_hour
from .tally import EVERYBODY, Stretch, Tally, tally_by_agent, tally_rows

#: When it begins, and when it ends; both aware.
Period: TypeAlias = tuple[datetime, datetime]

#: By then calls have ended and most handlers are done with them.
SETTLED_AFTER = timedelta(hours=3)

_HOURS_IN_BATCH = 8
_OUT_OF_DATE = or_(hours.c.summed.is_(None), hours.c.summed != hours.c.changes)
_BETWEEN = and_(hours.c.hour >= bindparam("first"), hours.c.hour < bindparam("last"))

# Made once: a report executes them for each of its buckets.
_CHANGED = select(hours.c.hour).where(_BETWEEN, _OUT_OF_DATE).order_by(hours.c.hour)
_STORED = (
    select(summaries.c.numbers, summaries.c.samples)
    .join(hours, hours.c.hour == summaries.c.hour)
    .where(
        summaries.c.agent_id.in_(bindparam("agents", expanding=True)),
        summaries.c.hour >= bindparam("first"),
        summaries.c.hour < bindparam("last"),
        hours.c.summed == hours.c.changes,
    )
)


@dataclass(frozen=True, slots=True)
class _Summary:
    """What an hour held, by agent, when its rows had changed so many times."""

    hour: str
    changes: int
    tallies: dict[str, Tally]


def summarize(reader: Engine, write: Write, *, now: datetime) -> Iterator[int]:
    """Summarize the hours that need it, newest first; yield how many after each small batch.

    The rows are read by `reader` and only the result is written in a transaction of `write`. An
    hour that changes meanwhile is left for another time. Between two batches it is the caller's to
    rest.
    """
    settled = hours.c.hour < hour_key(now - SETTLED_AFTER)
    wanted = select(hours.c.hour).where(settled, _OUT_OF_DATE).order_by(hours.c.hour.desc())
    with reader.connect() as connection:
        keys = connection.scalars(wanted).all()
    for start in range(0, len(keys), _HOURS_IN_BATCH):
        with reader.connect() as connection:
            batch = [_read(connection, key) for key in keys[start : start + _HOURS_IN_BATCH]]
        yield write(partial(_store, batch=batch))


def tally_periods(
    connection: Connection, periods: Sequence[Period], agents: Sequence[str]
) -> list[Tally]:
    """Tally the calls received in each period, from summaries as far as there are true ones.

    Each period begins where the one before it ends.
    """
    tallies = [Tally() for _ in periods]
    changed = _changed_hours(connection, periods[0][0], periods[-1][1])
    stretches: list[Stretch] = []
    for (since, until), tally in zip(periods, tallies, strict=True):
        first, last = ceil_hour(since), floor_hour(until)
        if first < last:
            _add_summaries(connection, first, last, agents, tally)
        parts = _unsummarized(since, until, changed)
        stretches += [Stretch(start, end, tally) for start, end in parts]
    tally_rows(connection, stretches, agents)
    return tallies


def hour_key(moment: datetime) -> str:
    """Return the name of the UTC hour of that moment, as the triggers write it."""
    return moment.astimezone(UTC).isoformat(sep=" ")[:13]


def _add_summaries(
    connection: Connection, first: datetime, last: datetime, agents: Sequence[str], into: Tally
) -> None:
    period = {"first": hour_key(first), "last": hour_key(last)}
    stored = connection.execute(_STORED, period | {"agents": agents or [EVERYBODY]})
    for numbers, samples in stored:
        into.add_packed(numbers, samples)


def _changed_hours(connection: Connection, since: datetime, until: datetime) -> list[datetime]:
    between = {"first": hour_key(since), "last": hour_key(until)}
    return list(map(_read_key, connection.scalars(_CHANGED, between)))


def _unsummarized(
    since: datetime, until: datetime, changed: Sequence[datetime]
) -> Iterator[Period]:
    """Yield the parts of that time without true summaries, those that touch as one."""
    joined: Period | None = None
    for start, end in _parts(since, until, changed):
        if joined and joined[1] == start:
            joined = joined[0], end
            continue
        if joined:
            yield joined
        joined = start, end
    if joined:
        yield joined


def _parts(since: datetime, until: datetime, changed: Sequence[datetime]) -> Iterator[Period]:
    first, last = ceil_hour(since), floor_hour(until)
    if first >= last:
        yield since, until
        return
    if since < first:
        yield since, first
    for hour in changed[bisect_left(changed, first) : bisect_left(changed, last)]:
        yield hour, hour + HOUR
    if last < until:
        yield last, until


def _read_key(key: str) -> datetime:
    return datetime.fromisoformat(f"{key}:00+00:00")


def _read(connection: Connection, key: str) -> _Summary:
    changes = connection.scalar(select(hours.c.changes).where(hours.c.hour == key)) or 0
    hour = _read_key(key)
    return _Summary(key, changes, tally_by_agent(connection, hour, hour + HOUR))


def _store(connection: Connection, batch: Sequence[_Summary]) -> int:
    return sum(_store_one(connection, summary) for summary in batch)


def _store_one(connection: Connection, summary: _Summary) -> bool:
    unchanged = (hours.c.hour == summary.hour, hours.c.changes == summary.changes)
    made = connection.execute(update(hours).where(*unchanged).values(summed=summary.changes))
    if not made.rowcount:
        return False
    connection.execute(delete(summaries).where(summaries.c.hour == summary.hour))
    packed = {agent: tally.pack() for agent, tally in summary.tallies.items()}
    rows = [
        {"agent_id": agent, "hour": summary.hour, "numbers": numbers, "samples": samples}
        for agent, (numbers, samples) in packed.items()
    ]
    if rows:
        connection.execute(insert(summaries), rows)
    return True

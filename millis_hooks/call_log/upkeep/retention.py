"""Removes calls with all their deliveries, and deliveries without a call, by their age.

Age is counted from the first delivery of a call. Memory stays flat however long the log is.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    and_,
    delete,
    exists,
    literal,
    select,
    tuple_,
)

from ..tables import (
    IS_UNPARSED,
    audit_log,
    calls,
    deliveries,
    operator_sessions,
    rejection_counts,
    rejections,
)
from .removal import (
    BATCH_S,
    Removal,
    Write,
    in_batches,
    planned,
    remove_deliveries,
    remove_sessions,
    survey_deliveries,
    survey_sessions,
)

_A_DAY = timedelta(days=1)

#: Rows read at a time. Nothing is held open between two reads, so the service can tidy its file.
_READ_ROWS = 500


def prune(
    reader: Engine, write: Write, *, before: datetime, now: datetime, batch_s: float = BATCH_S
) -> Iterator[Removal]:
    """Remove what was received before `before`, a batch with each step of the iterator.

    So does what was refused or done by operators before then; and operators' sessions that are over
    by `now`. Stopping between two batches is safe, and so is pruning twice at once. Raises what
    `write` raises.
    """
    over = delete(operator_sessions).where(operator_sessions.c.expires_at <= now)
    write(lambda connection: connection.execute(over))
    write(lambda connection: _remove_rejections(connection, before))
    done = delete(audit_log).where(audit_log.c.at < before)
    write(lambda connection: connection.execute(done))
    yield from in_batches(write, remove_sessions, _old_sessions(reader, before), batch_s=batch_s)
    yield from in_batches(write, remove_deliveries, _old_loose(reader, before), batch_s=batch_s)


def doubt_of_clock(connection: Connection, *, kept: timedelta, now: datetime) -> str | None:
    """Return why nothing should be removed by the time of the clock; None if it can be believed.

    A machine that starts with a wrong clock would take every call for too old. Deliveries of the
    last day are not asked: they may have come after it went wrong.
    """
    newest = select(deliveries.c.received_at).order_by(deliveries.c.id.desc()).limit(1)
    last: datetime | None = connection.scalar(newest)
    earlier: datetime | None = connection.scalar(
        newest.where(deliveries.c.received_at <= now - _A_DAY)
    )
    if last is not None and last > now + _A_DAY:
        return f"it is {now:%Y-%m-%d %H:%M} UTC, and the newest delivery is of {last:%Y-%m-%d}"
    if earlier is not None and now - earlier > max(kept / 2, _A_DAY):
        return (
            f"it is {now:%Y-%m-%d %H:%M} UTC, and until a day ago nothing came in since "
            f"{earlier:%Y-%m-%d}"
        )
    return None


def plan(reader: Engine, *, before: datetime) -> Removal:
    """Count what `prune` would remove."""
    sessions = planned(reader, survey_sessions, _old_sessions(reader, before))
    return sessions + planned(reader, survey_deliveries, _old_loose(reader, before))


def _remove_rejections(connection: Connection, before: datetime) -> None:
    for table in (rejections, rejection_counts):
        connection.execute(delete(table).where(table.c.last_at < before))


def _old_sessions(reader: Engine, before: datetime) -> Iterator[str]:
    """Name the sessions of calls received before then, oldest first."""
    key = (calls.c.received_at, calls.c.id)
    oldest = select(*key, calls.c.session_id).where(calls.c.received_at < before)
    last = (datetime.min.replace(tzinfo=UTC), 0)
    while True:
        place = [literal(value, column.type) for value, column in zip(last, key, strict=True)]
        newer = oldest.where(tuple_(*key) > tuple_(*place))
        rows = _read(reader, newer.order_by(*key).limit(_READ_ROWS))
        yield from (row.session_id for row in rows)
        if not rows:
            return
        last = (rows[-1].received_at, rows[-1].id)


def _old_loose(reader: Engine, before: datetime) -> Iterator[int]:
    """Return the ids of deliveries received before then that are of no call."""
    is_nobodys = deliveries.c.session_id.is_(None)
    is_of_call = exists().where(calls.c.session_id == deliveries.c.session_id)
    # Two questions, since each has an index that answers it.
    yield from _old_ids(reader, before, is_nobodys)
    yield from _old_ids(reader, before, and_(IS_UNPARSED, ~is_nobodys, ~is_of_call))


def _old_ids(reader: Engine, before: datetime, kind: ColumnElement[bool]) -> Iterator[int]:
    id_ = deliveries.c.id
    oldest = select(id_).where(kind, deliveries.c.received_at < before)
    last = 0
    while rows := _read(reader, oldest.where(id_ > last).order_by(id_).limit(_READ_ROWS)):
        yield from (row.id for row in rows)
        last = rows[-1].id


def _read(reader: Engine, query: Select[Any]) -> list[Row[Any]]:
    with reader.connect() as connection:
        return list(connection.execute(query))

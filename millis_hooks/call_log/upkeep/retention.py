"""Retention: removes calls with all their deliveries, and deliveries without a call, by their age.

Age is counted from the first delivery of a call. Memory stays flat however long the log is. A
thread of the service does it every hour, makes totals of past days, and compresses old bodies.
Deliveries come first: a batch is small, and after each the thread rests for many times as long as
it took.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

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

from ...masking.error_report import describe_failure
from ..tables import (
    IS_UNPARSED,
    audit_log,
    calls,
    deliveries,
    operator_sessions,
    rejections,
)
from ..writer import Write, Writer
from .removal import (
    BATCH_S,
    Removal,
    in_batches,
    plan_removal,
    remove_deliveries,
    remove_sessions,
)

logger = logging.getLogger("millis_hooks.housekeeping")

T = TypeVar("T")

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
    refused = delete(rejections).where(rejections.c.received_at < before)
    write(lambda connection: connection.execute(refused))
    done = delete(audit_log).where(audit_log.c.at < before)
    write(lambda connection: connection.execute(done))
    yield from in_batches(write, remove_sessions, _old_sessions(reader, before), batch_s=batch_s)
    yield from in_batches(write, remove_deliveries, _old_loose(reader, before), batch_s=batch_s)


def doubt_of_clock(connection: Connection, *, kept: timedelta, now: datetime) -> str | None:
    """Return why nothing should be removed by the time of the clock; None if it can be believed.

    A machine that starts with a wrong clock would take every call for too old. Deliveries of the
    last day do not count: they may have come after it went wrong.
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
    return plan_removal(reader, _old_sessions(reader, before), _old_loose(reader, before))


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
    is_alone = deliveries.c.session_id.is_(None)
    is_of_call = exists().where(calls.c.session_id == deliveries.c.session_id)
    # Two questions, since each has an index that answers it.
    yield from _old_ids(reader, before, is_alone)
    yield from _old_ids(reader, before, and_(IS_UNPARSED, ~is_alone, ~is_of_call))


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


#: After a start there is other work to do.
FIRST_S = 60.0
EVERY_S = 3600.0
#: How many times as long as a batch took is rested after it, and how long in a flood.
REST = 9
REST_IN_FLOOD_S = 1.0


_DOUBTED = (
    "nothing is removed, because the clock may be wrong: %s. If it is right, remove what is old "
    "with `millis-hooks prune --clock-is-right`, or wait until calls have come in for a day"
)


class Housekeeper:
    """Sees to the call log every hour, in the one process of several that `is_ours` says."""

    def __init__(
        self,
        reader: Engine,
        writer: Writer,
        *,
        retention_days: int,
        pack_after_days: int,
        is_ours: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`retention_days` of 0 keeps everything, `pack_after_days` of 0 as it came."""
        self._reader = reader
        self._writer = writer
        self._retention = timedelta(days=retention_days)
        self._packed_after = timedelta(days=pack_after_days)
        self._is_ours = is_ours
        self._now = now
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-housekeeping", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish the batch at hand; the rest goes another time."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def tidy(self) -> Removal:
        """Prune once, and return what went; nothing goes while the clock is in doubt.

        Raises `StorageError`.
        """
        now = self._now()
        if not self._retention:
            return Removal()
        with self._reader.connect() as connection:
            doubt = doubt_of_clock(connection, kept=self._retention, now=now)
        if doubt is not None:
            logger.error(_DOUBTED, doubt)
            return Removal()
        before = now - self._retention
        gone = Removal()
        for removed in self._unhurried(
            prune(self._reader, self._writer.run, before=before, now=now)
        ):
            gone += removed
        if gone.total:
            logger.info("%s removed, received before %s", gone, f"{before:%Y-%m-%d %H:%M} UTC")
        return gone

    def roll_up(self) -> None:
        """Make the totals of past days that changed, for the analytics. Raises `StorageError`."""
        from ..queries.day_totals import roll_up

        for _ in self._unhurried(roll_up(self._reader, self._writer.run, now=self._now())):
            pass

    def pack(self) -> int:
        """Compress old bodies; return the bytes it saved. Raises `StorageError`."""
        from .file import pack_older

        if not self._packed_after:
            return 0
        before = self._now() - self._packed_after
        return sum(self._unhurried(pack_older(self._reader, self._writer.run, before=before)))

    def _unhurried(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batch after batch, with a rest after each, until all is done or closing."""
        began = time.perf_counter()
        for batch in batches:
            yield batch
            if self._closing.wait(self._rest_s(time.perf_counter() - began)):
                break
            began = time.perf_counter()

    def _run(self) -> None:
        wait_s = FIRST_S
        while not self._closing.wait(wait_s):
            wait_s = EVERY_S
            try:
                if self._is_ours():
                    self.tidy()
                    self.roll_up()
                    self.pack()
            except Exception as error:  # whatever it is: the thread must live
                logger.error(
                    "old calls are not removed for another hour: %s", describe_failure(error)
                )

    def _rest_s(self, took_s: float) -> float:
        return max(REST * took_s, REST_IN_FLOOD_S if self._writer.is_flooded else 0.0)

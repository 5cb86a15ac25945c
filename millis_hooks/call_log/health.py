"""Health of the call log: whether a delivery can be stored now, and how much work waits.

The check stores a delivery and takes it back.
"""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import DatabaseError

from ..exceptions import StorageError, StorageOutageError, WrongFileError
from .database import DAMAGED, Database
from .deliveries import Delivery, insert_deliveries
from .dialects import describe, is_damage, is_postgresql, upsert
from .tables import IS_OPEN, deliveries, handler_runs, inbox, keys, metadata
from .writer import Writer

#: How long an answer holds; within that time the last one is given again.
FRESH_S = 1.0
#: How long is waited for it. Who has to wait for the disk that long is not ready.
WAIT_S = 2.0
#: About as many bytes go to the disk as for a delivery.
_PROBE_BYTES = 16 * 1024
_PROBE_NAME = "readiness"


class Readiness:
    """Asks the writer; may be asked from any thread."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._lock = threading.Lock()
        self._asked_at = 0.0
        self._answer: Future[None] | None = None

    def check(self) -> None:
        """Return if a delivery would be stored now, else raise `StorageError`. Blocks a little."""
        try:
            self._ask().result(timeout=WAIT_S)
        except TimeoutError:
            reason = f"The call log has not answered for {WAIT_S:g} s."
            raise StorageOutageError(reason) from None

    def _ask(self) -> Future[None]:
        with self._lock:
            answer, now = self._answer, time.monotonic()
            if answer is None or (answer.done() and now >= self._asked_at + FRESH_S):
                answer = self._answer = self._writer.submit(_try)
                self._asked_at = now
            return answer


def require_sound(database: Database) -> None:
    """Raise `WrongFileError` where a damaged file would be written to; looks at a few pages only.

    Nothing is changed.
    """
    try:
        with database.writer.connect() as connection, connection.begin() as trial:
            # All at once: who starts the service waits for this.
            hint = " NOT INDEXED" if database.is_file else ""
            tables = [f"{table.name}{hint}" for table in metadata.sorted_tables]
            looks = ", ".join(f"(SELECT 1 FROM {table} LIMIT 1)" for table in tables)  # noqa: S608
            connection.exec_driver_sql(f"SELECT {looks}").all()
            _try_to_insert(connection)
            trial.rollback()
    except DatabaseError as error:
        if is_damage(error) and database.is_file:
            raise WrongFileError(DAMAGED.format(path=database.path, why=error.orig)) from error
        raise StorageError(f"The call log cannot be used: {describe(error)}.") from error


def _try(connection: Connection) -> None:
    with connection.begin_nested() as trial:
        _try_to_insert(connection)
        trial.rollback()
    # What is taken back never reaches the disk, and the disk is what this is about.
    new = upsert(connection, keys).values(name=_PROBE_NAME, value=secrets.token_bytes(_PROBE_BYTES))
    changed = {"value": new.excluded.value}
    connection.execute(new.on_conflict_do_update(index_elements=["name"], set_=changed))


def _try_to_insert(connection: Connection) -> None:
    # PostgreSQL gives an id away for good, also to what is taken back.
    if is_postgresql(connection):
        connection.execute(insert(inbox).values(delivery_id=0))
    else:
        insert_deliveries(connection, [_DELIVERY])


_DELIVERY = Delivery(
    kind="end_of_call",
    received_at=datetime(2000, 1, 1, tzinfo=UTC),
    outcome="stored",
    status_code=200,
    session_id=_PROBE_NAME,
)


class OpenRuns(NamedTuple):
    """How many runs of a handler are in a state, and since when the oldest of them is."""

    hook: str
    handler: str
    state: str
    number: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Backlog:
    """Runs that are not done, and deliveries that are stored and not processed yet."""

    runs: tuple[OpenRuns, ...]
    unprocessed: int
    unprocessed_since: datetime | None

    @property
    def pending(self) -> int:
        """How many runs could begin now."""
        return sum(runs.number for runs in self.runs if runs.state == "pending")

    @property
    def pending_since(self) -> datetime | None:
        """Since when the first of them could."""
        return min((runs.since for runs in self.runs if runs.state == "pending"), default=None)


def read_backlog(connection: Connection) -> Backlog:
    """Read how much waits; runs whose place a replay has taken wait for nothing."""
    r = handler_runs.c
    open_runs = (
        select(r.hook, r.handler, r.state, func.count(), func.min(r.state_since))
        .where(IS_OPEN, r.is_latest)
        .group_by(r.hook, r.handler, r.state)
    )
    oldest = select(func.min(inbox.c.delivery_id)).scalar_subquery()
    since = select(deliveries.c.received_at).where(deliveries.c.id == oldest)
    return Backlog(
        runs=tuple(OpenRuns(*row) for row in connection.execute(open_runs)),
        unprocessed=connection.scalar(select(func.count()).select_from(inbox)) or 0,
        unprocessed_since=connection.scalar(since),
    )

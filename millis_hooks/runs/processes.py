"""Decides which processes execute the runs of a call log, and takes over those of dead processes.

On SQLite, the process that holds a lock file executes all runs. On PostgreSQL every process does,
and writes a heartbeat once a second. A process whose heartbeat has not changed for ten seconds is
considered dead: it is deleted from the list, and its runs are pending again. If it was only slow,
the ends of its attempts are ignored, and it adds itself to the list again. Clocks are not compared:
a process measures by its own clock how long a heartbeat has not changed, and starts measuring again
after it could not read.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from sqlalchemy import Connection, and_, delete, func, select

from ..call_log.database import Database
from ..call_log.dialects import upsert
from ..call_log.locks import FileHolder
from ..call_log.tables import runners
from ..call_log.writer import Writer
from ..exceptions import StorageError
from . import store

logger = logging.getLogger("millis_hooks.runs")


class Coordinator(Protocol):
    """The part of this process among all. For one thread; `is_active` and `leads` for any."""

    @property
    def runner(self) -> str | None:
        """The name that this process claims runs under; None where only one process does."""

    @property
    def is_active(self) -> bool:
        """Whether this process executes runs."""

    @property
    def leads(self) -> bool:
        """Whether this process, of all, does the work that one process does for all."""

    def check_in(self, now: datetime) -> bool:
        """Return whether this process may execute runs; called before every turn.

        Makes runs of dead processes pending. Raises `StorageError`, and OSError if the lock file
        cannot be made.
        """

    def leave(self) -> None:
        """Leave runs to other processes; none of this process may be running."""


def coordinator_of(database: Database, writer: Writer, *, takes_part: bool = True) -> Coordinator:
    """Return the coordinator for a call log; without `takes_part` other processes execute runs."""
    if not takes_part:
        return Inactive()
    if database.is_file:
        return SingleProcess(writer, FileHolder(database.runner_lock))
    return Heartbeats(writer)


class Inactive:
    """For a process that leaves all runs to others."""

    runner = None
    is_active = False
    leads = False

    def check_in(self, now: datetime) -> bool:
        return False

    def leave(self) -> None:
        """Do nothing."""


class SingleProcess:
    """For a call log in a file: the process that holds its lock executes all runs."""

    runner = None

    def __init__(self, writer: Writer, holder: FileHolder) -> None:
        self._writer = writer
        self._holder = holder

    @property
    def is_active(self) -> bool:
        return self._holder.is_held

    leads = is_active

    def check_in(self, now: datetime) -> bool:
        if self._holder.is_held:
            return True
        if not self._holder.hold():
            return False
        try:
            log_interrupted(self._writer.run(partial(_take_over, now=now)))
        except BaseException:
            self._holder.let_go()
            raise
        return True

    def leave(self) -> None:
        self._holder.let_go()


def _take_over(connection: Connection, now: datetime) -> int:
    store.wake_stranded(connection, now)
    return store.take_over(connection, now)


def log_interrupted(runs: int) -> None:
    """Log how many runs were interrupted, if any."""
    if runs:
        logger.warning("%d runs were interrupted when their process ended", runs)


BEAT_S = 1.0
DEAD_AFTER_S = 10.0
#: After a longer break between two readings, heartbeats are measured again.
_MAX_BREAK_S = 3 * BEAT_S


class Heartbeats:
    """For a call log in PostgreSQL: all processes with a recent heartbeat execute runs."""

    def __init__(
        self, writer: Writer, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.runner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.is_active = False
        self.leads = False
        self._writer = writer
        self._monotonic_s = monotonic_s
        self._read_at_s: float | None = None
        self._watched: dict[str, tuple[datetime, float]] = {}

    def check_in(self, now: datetime) -> bool:
        now_s = self._monotonic_s()
        if self._read_at_s is not None and now_s < self._read_at_s + BEAT_S:
            return self.is_active
        if self._read_at_s is None or now_s > self._read_at_s + _MAX_BREAK_S:
            self._watched.clear()
        beats = self._writer.run(self._beat)
        self.is_active, self._read_at_s = True, now_s
        dead = self._dead(beats, now_s)
        alive = beats.keys() - dead.keys()
        leads = min(alive, key=lambda name: (beats[name].started_at, name)) == self.runner
        if leads and not self.leads:
            self._writer.run(partial(store.wake_stranded, now=now))
        self.leads = leads
        if dead or leads:
            log_interrupted(self._writer.run(partial(_take_over_from_dead, dead=dead, now=now)))
        return True

    def leave(self) -> None:
        self.is_active = self.leads = False
        deletion = delete(runners).where(runners.c.name == self.runner)
        with suppress(StorageError):  # then another process deletes it
            self._writer.run(lambda connection: connection.execute(deletion))

    def _beat(self, connection: Connection) -> dict[str, Any]:
        """Write a heartbeat, and return the rows of all processes by name."""
        now = func.clock_timestamp()
        row = upsert(connection, runners).values(name=self.runner, started_at=now, beat_at=now)
        again = {"beat_at": row.excluded.beat_at}
        connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=again))
        return {each.name: each for each in connection.execute(select(runners))}

    def _dead(self, beats: dict[str, Any], now_s: float) -> dict[str, datetime]:
        """Return the dead processes by name, each with its last heartbeat."""
        for name, row in beats.items():
            if self._watched.get(name, (None,))[0] != row.beat_at:
                self._watched[name] = row.beat_at, now_s
        self._watched = {name: self._watched[name] for name in beats}
        return {
            name: beat_at
            for name, (beat_at, since_s) in self._watched.items()
            if now_s - since_s >= DEAD_AFTER_S
        }


def _take_over_from_dead(connection: Connection, dead: dict[str, datetime], now: datetime) -> int:
    for name, beat_at in dead.items():
        unchanged = and_(runners.c.name == name, runners.c.beat_at == beat_at)
        # A process that stopped while writing holds a lock until the server ends its session.
        free = select(runners.c.name).where(unchanged).correlate(None)
        free = free.with_for_update(skip_locked=True)
        connection.execute(delete(runners).where(runners.c.name.in_(free)))
    return store.take_over(connection, now)


def processes_at_work(connection: Connection) -> list[str]:
    """Return the names of the processes with a recent heartbeat, by the database's clock."""
    lately = func.clock_timestamp() - timedelta(seconds=DEAD_AFTER_S)
    alive = select(runners.c.name).where(runners.c.beat_at > lately)
    return list(connection.scalars(alive.order_by(runners.c.started_at)))

"""Decides which of the processes on a call log do its runs, and sees to it that those of a process
that has died are done by another.

On PostgreSQL every process does runs, and says once a second that it is there.

Whose beat stands still for ten seconds is taken for dead: it is struck off the list, and what it
was at is pending again. If it was only held up, it finds the ends of its attempts refused, and puts
itself on the list again. No clock is compared with another: a beat is old when this process has
watched it stand still, and who could not watch, because the server was gone, begins anew.
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


class Dispatcher(Protocol):
    """What a runner asks about the others. Used by one thread; `is_in` and `leads` by any."""

    @property
    def runner(self) -> str | None:
        """The name under which this process takes runs; None where it is the only one."""

    @property
    def is_in(self) -> bool:
        """Whether this process does runs."""

    @property
    def leads(self) -> bool:
        """Whether this process, of all that do runs, sees to what one has to."""

    def check_in(self, now: datetime) -> bool:
        """Say, before every turn, that this process is there; return whether it may do runs.

        Runs that were at work in a process that has died are pending again. Raises `StorageError`,
        and OSError where the call log is a file beside which none can be made.
        """

    def leave(self) -> None:
        """Leave the place to others; nothing that this process has taken may be at work."""


def dispatcher_of(database: Database, writer: Writer, *, takes_part: bool = True) -> Dispatcher:
    """Return the one for this call log; a process that takes no part leaves all runs to others."""
    if not takes_part:
        return Bystander()
    if database.is_file:
        return OneProcess(writer, FileHolder(database.runner_lock))
    return ManyProcesses(writer)


class Bystander:
    """For a process whose handlers are called by others."""

    runner = None
    is_in = False
    leads = False

    def check_in(self, now: datetime) -> bool:
        return False

    def leave(self) -> None:
        """There is no place to leave."""


class OneProcess:
    """For a call log in a file: the process that holds its lock does all runs."""

    runner = None

    def __init__(self, writer: Writer, holder: FileHolder) -> None:
        self._writer = writer
        self._holder = holder

    @property
    def is_in(self) -> bool:
        return self._holder.is_held

    leads = is_in

    def check_in(self, now: datetime) -> bool:
        if self._holder.is_held:
            return True
        if not self._holder.hold():
            return False
        try:
            tell_interrupted(self._writer.run(partial(_take_over, now=now)))
        except BaseException:
            self._holder.let_go()
            raise
        return True

    def leave(self) -> None:
        self._holder.let_go()


def _take_over(connection: Connection, now: datetime) -> int:
    store.wake_stranded(connection, now)
    return store.take_over(connection, now)


def tell_interrupted(runs: int) -> None:
    """Write into the log how many runs were taken over, if any were."""
    if runs:
        logger.warning("%d runs were interrupted when their process ended", runs)


BEAT_S = 1.0
DEAD_AFTER_S = 10.0
#: Who has not looked for so long has not watched.
_BLINK_S = 3 * BEAT_S


class ManyProcesses:
    """The place of this process among those that do the runs of a call log."""

    def __init__(
        self, writer: Writer, *, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.runner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.is_in = False
        self.leads = False
        self._writer = writer
        self._monotonic_s = monotonic_s
        self._looked_at_s: float | None = None
        self._watched: dict[str, tuple[datetime, float]] = {}

    def check_in(self, now: datetime) -> bool:
        at_s = self._monotonic_s()
        if self._looked_at_s is not None and at_s < self._looked_at_s + BEAT_S:
            return self.is_in
        if self._looked_at_s is None or at_s > self._looked_at_s + _BLINK_S:
            self._watched.clear()
        beats = self._writer.run(self._beat)
        self.is_in, self._looked_at_s = True, at_s
        dead = self._standing_still(beats, at_s)
        alive = beats.keys() - dead.keys()
        leads = min(alive, key=lambda name: (beats[name].started_at, name)) == self.runner
        if leads and not self.leads:
            self._writer.run(partial(store.wake_stranded, now=now))
        self.leads = leads
        if dead or leads:
            tell_interrupted(self._writer.run(partial(_take_over_from_dead, dead=dead, now=now)))
        return True

    def leave(self) -> None:
        self.is_in = self.leads = False
        strike_off = delete(runners).where(runners.c.name == self.runner)
        with suppress(StorageError):  # then another does
            self._writer.run(lambda connection: connection.execute(strike_off))

    def _beat(self, connection: Connection) -> dict[str, Any]:
        """Say that this process is there, and return the rows of all that said so, by name."""
        now = func.clock_timestamp()
        row = upsert(connection, runners).values(name=self.runner, started_at=now, beat_at=now)
        again = {"beat_at": row.excluded.beat_at}
        connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=again))
        return {each.name: each for each in connection.execute(select(runners))}

    def _standing_still(self, beats: dict[str, Any], at_s: float) -> dict[str, datetime]:
        """Return who has not beaten for too long, and when each did last."""
        for name, row in beats.items():
            if self._watched.get(name, (None,))[0] != row.beat_at:
                self._watched[name] = row.beat_at, at_s
        self._watched = {name: self._watched[name] for name in beats}
        return {
            name: beat_at
            for name, (beat_at, since_s) in self._watched.items()
            if at_s - since_s >= DEAD_AFTER_S
        }


def _take_over_from_dead(connection: Connection, dead: dict[str, datetime], now: datetime) -> int:
    for name, beat_at in dead.items():
        unchanged = and_(runners.c.name == name, runners.c.beat_at == beat_at)
        # One that was stopped while it wrote has its row locked until the server ends its session.
        free = select(runners.c.name).where(unchanged).correlate(None)
        free = free.with_for_update(skip_locked=True)
        connection.execute(delete(runners).where(runners.c.name.in_(free)))
    return store.take_over(connection, now)


def processes_at_work(connection: Connection) -> list[str]:
    """Name the processes that do runs now, by the database's clock."""
    lately = func.clock_timestamp() - timedelta(seconds=DEAD_AFTER_S)
    alive = select(runners.c.name).where(runners.c.beat_at > lately)
    return list(connection.scalars(alive.order_by(runners.c.started_at)))

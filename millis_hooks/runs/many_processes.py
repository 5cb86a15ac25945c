"""On PostgreSQL every process does runs, and says once a second that it is there.

Whose beat stands still for ten seconds is taken for dead: it is struck off the list, and what it
was at is pending again. If it was only held up, it finds the ends of its attempts refused, and puts
itself on the list again. No clock is compared with another: a beat is old when this process has
watched it stand still, and who could not watch, because the server was gone, begins anew.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select

from ..call_log.dialects import upsert
from ..call_log.tables import runners
from ..call_log.writer import Writer
from ..exceptions import StorageError
from . import ledger
from .dispatcher import tell_interrupted

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
            self._writer.run(partial(ledger.wake_stranded, now=now))
        self.leads = leads
        if dead or leads:
            tell_interrupted(self._writer.run(partial(_take_over, dead=dead, now=now)))
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


def _take_over(connection: Connection, dead: dict[str, datetime], now: datetime) -> int:
    for name, beat_at in dead.items():
        unchanged = and_(runners.c.name == name, runners.c.beat_at == beat_at)
        # One that was stopped while it wrote has its row locked until the server ends its session.
        free = select(runners.c.name).where(unchanged).correlate(None)
        free = free.with_for_update(skip_locked=True)
        connection.execute(delete(runners).where(runners.c.name.in_(free)))
    return ledger.take_over(connection, now)


def processes_at_work(connection: Connection) -> list[str]:
    """Name the processes that do runs now, by the database's clock."""
    lately = func.clock_timestamp() - timedelta(seconds=DEAD_AFTER_S)
    alive = select(runners.c.name).where(runners.c.beat_at > lately)
    return list(connection.scalars(alive.order_by(runners.c.started_at)))

"""How much waits in the call log, and for how long: questions for what watches the service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from .tables import IS_OPEN, deliveries, handler_runs, inbox


class OpenRuns(NamedTuple):
    """How many runs of a handler are in a state, and since when the oldest of them is."""

    hook: str
    handler: str
    state: str
    number: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Backlog:
    """Runs that nobody is done with, and deliveries that are stored and not processed yet."""

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
    found = (
        select(r.hook, r.handler, r.state, func.count(), func.min(r.state_since))
        .where(IS_OPEN, r.is_latest)
        .group_by(r.hook, r.handler, r.state)
    )
    oldest = select(func.min(inbox.c.delivery_id)).scalar_subquery()
    since = select(deliveries.c.received_at).where(deliveries.c.id == oldest)
    return Backlog(
        runs=tuple(OpenRuns(*row) for row in connection.execute(found)),
        unprocessed=connection.scalar(select(func.count()).select_from(inbox)) or 0,
        unprocessed_since=connection.scalar(since),
    )

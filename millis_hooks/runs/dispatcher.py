"""Decides which of the processes on a call log do its runs, and sees to it that those of a process
that has died are done by another."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial
from typing import Protocol

from sqlalchemy import Connection

from ..call_log.database import Database
from ..call_log.holder import FileHolder
from ..call_log.writer import Writer
from . import ledger

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
    from .many_processes import ManyProcesses

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
    ledger.wake_stranded(connection, now)
    return ledger.take_over(connection, now)


def tell_interrupted(runs: int) -> None:
    """Write into the log how many runs were taken over, if any were."""
    if runs:
        logger.warning("%d runs were interrupted when their process ended", runs)

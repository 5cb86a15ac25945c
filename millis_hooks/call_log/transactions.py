"""Runs the writer's transactions; on PostgreSQL again, if a lost connection has undone them.

A connection that is lost while COMMIT is on its way leaves open whether it was carried out. So each
transaction writes a number of its own into a row of its writer: if the number is there, so is all
the rest. Whoever repeats locks that row first, and waits until the server is through with the
transaction that was given up.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from sqlalchemy import Connection, Engine, Update, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import StorageOutageError
from . import database
from .dialects import SQLITE, upsert
from .sqlstates import is_worth_repeating
from .tables import keys

#: Between two tries, in seconds.
_PAUSE_S = 0.1


class Transactions:
    """The transactions of one writer, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._name = f"commit of {secrets.token_hex(8)}"
        self._number = 0
        self._has_row = False

    def run(self, work: Callable[[Connection], object]) -> None:
        """Return once what `work` did is synced; on PostgreSQL `work` may be called several times.

        Raises `StorageOutageError` where the server was not to be had for `BUSY_TIMEOUT_S`.
        """
        if self._engine.dialect.name == SQLITE:
            with self._engine.begin() as connection:
                work(connection)
            return
        self._number += 1
        deadline = time.monotonic() + database.BUSY_TIMEOUT_S
        is_first = True
        while not self._try(work, deadline, is_first=is_first):
            is_first = False
            time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Leave no row behind."""
        if self._has_row:
            with self._engine.begin() as connection:
                connection.execute(delete(keys).where(keys.c.name == self._name))

    def _try(
        self, work: Callable[[Connection], object], deadline: float, *, is_first: bool
    ) -> bool:
        try:
            if not self._has_row:
                self._make_row()
            with self._engine.begin() as connection:
                if is_first or not self._is_done(connection):
                    work(connection)
                    connection.execute(self._row_of_ours.values(value=self._value))
        except SQLAlchemyError as error:
            if not is_worth_repeating(error):
                raise
            if time.monotonic() >= deadline:
                raise StorageOutageError(database.describe(error)) from error
            return False
        return True

    def _make_row(self) -> None:
        with self._engine.begin() as connection:
            new = upsert(connection, keys).values(name=self._name, value=b"0")
            connection.execute(new.on_conflict_do_nothing())
        self._has_row = True

    def _is_done(self, connection: Connection) -> bool:
        told = select(keys.c.value).where(keys.c.name == self._name).with_for_update()
        return connection.scalar(told) == self._value

    @property
    def _row_of_ours(self) -> Update:
        return update(keys).where(keys.c.name == self._name)

    @property
    def _value(self) -> bytes:
        return b"%d" % self._number

"""Runs the writer's transactions; on PostgreSQL again, if a lost connection has undone them.

A connection that is lost while COMMIT is on its way leaves open whether it was carried out. So each
transaction writes its number into a row of its writer: if the number is there, so is all the rest.
Whoever repeats writes it first, and so waits until the server is through with the transaction that
was given up. A statement the server comes to only later finds the number there, and does nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import StorageOutageError
from . import database
from .dialects import SQLITE
from .sqlstates import is_worth_repeating

#: Between two tries, in seconds.
_PAUSE_S = 0.1

#: Made with the schema on PostgreSQL; SQLite loses no connections.
CREATE_WRITERS = (
    "CREATE TABLE writers (name TEXT PRIMARY KEY, number BIGINT NOT NULL, "
    "at TIMESTAMPTZ NOT NULL DEFAULT now()) WITH (fillfactor = 50)"
)
_NOTE = (
    "INSERT INTO writers (name, number) VALUES (%s, %s) ON CONFLICT (name) "
    "DO UPDATE SET number = excluded.number, at = now() WHERE writers.number < excluded.number "
    "RETURNING number"
)
_LEAVE = "DELETE FROM writers WHERE name = %s"
#: Those of processes that were killed.
_TIDY = "DELETE FROM writers WHERE at < now() - interval '7 days'"


#: Does it all in one statement, if what it is given returns a row in the same one: a statement that
#: notes the transaction's number, and its parameters.
Shortcut: TypeAlias = Callable[[Connection, str, tuple[object, ...]], object]


class Transactions:
    """The transactions of one writer, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at_once = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._is_sure = engine.dialect.name == SQLITE
        self._name = secrets.token_hex(8)
        self._number = 0

    def open(self) -> None:
        """Begin, where that is needed; what cannot be reached now may be later."""
        if not self._is_sure:
            with suppress(SQLAlchemyError), self._engine.begin() as connection:
                connection.exec_driver_sql(_TIDY)
                self._note(connection)

    def run(
        self, work: Callable[[Connection], object], *, shortcut: Shortcut | None = None
    ) -> None:
        """Return once what `work` did is synced; on PostgreSQL `work` may be called several times.

        There `shortcut` is tried before, which does the same in one statement: it saves three ways
        to the server and back, after each of which the interpreter's lock has to be had again.

        Raises `StorageOutageError` where the server was not to be had for `BUSY_TIMEOUT_S`.
        """
        if self._is_sure:
            with self._engine.begin() as connection:
                work(connection)
            return
        self._number += 1
        deadline = time.monotonic() + database.BUSY_TIMEOUT_S
        is_done = self._try(partial(self._transact, work, shortcut), deadline)
        while not is_done:
            time.sleep(_PAUSE_S)
            is_done = self._try(partial(self._transact_again, work), deadline)

    def close(self) -> None:
        """Leave no row behind."""
        if not self._is_sure:
            with suppress(SQLAlchemyError), self._engine.begin() as connection:
                connection.exec_driver_sql(_LEAVE, (self._name,))

    def _try(self, transact: Callable[[], None], deadline: float) -> bool:
        """Return False if it was undone, or may have been, and is worth repeating."""
        try:
            transact()
        except SQLAlchemyError as error:
            if not is_worth_repeating(error):
                raise
            if time.monotonic() >= deadline:
                raise StorageOutageError(database.describe(error)) from error
            return False
        return True

    def _transact(self, work: Callable[[Connection], object], shortcut: Shortcut | None) -> None:
        if shortcut is None:
            with self._engine.begin() as connection:
                work(connection)
                self._note(connection)
        else:
            with self._at_once.begin() as connection:
                shortcut(connection, _NOTE, (self._name, self._number))

    def _transact_again(self, work: Callable[[Connection], object]) -> None:
        with self._engine.begin() as connection:
            if self._note(connection):
                work(connection)

    def _note(self, connection: Connection) -> bool:
        """Return False if it was noted before."""
        noted = connection.exec_driver_sql(_NOTE, (self._name, self._number))
        return noted.first() is not None

"""Opens a call log in PostgreSQL, and runs the transactions of its writer.

Whatever the defaults of the server are, nothing is acknowledged before it is on its disk. When the
connection is lost during COMMIT, nobody knows whether the transaction took place. So each
transaction writes its number into a row of its writer: if the number is there, so is all the rest.
A repetition writes that row first, and so waits until the server has finished the transaction that
was given up; a statement that reaches the server only later finds the number, and does nothing.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from ..exceptions import ConfigError, StorageOutageError
from . import database
from .database import VERSION_TABLE
from .dialects import SQLITE, is_of_another_session, is_worth_repeating, must_reconnect

logger = logging.getLogger("millis_hooks.call_log")

#: How a server that is gone is noticed: a connection is tried for so long, and a silent one is
#: given up after about as long. https://www.postgresql.org/docs/current/libpq-connect.html
_CONNECT = {
    "application_name": "millis_hooks",
    "connect_timeout": 5,
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 5_000,
}
#: Whatever the address or PGCLIENTENCODING says.
_ENCODING = {"client_encoding": "utf8"}
#: What the connection is called that waits for notes of other replicas.
LISTENING = "millis_hooks listening"
#: In every session. A plan for long queries would take longer to compile than most of ours run; and
#: what a lost client had locked shall not stay locked for long.
_SETTINGS = {
    "TimeZone": "UTC",
    "jit": "off",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_SYNCHRONOUS = (
    "SELECT current_setting('fsync'), set_config('synchronous_commit', "
    "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, false), set_config('lock_timeout', %s, false)"
)
#: Bodies are compressed by the quicker way, where the server has it: since 14, if built so.
_QUICK_COMPRESSION = (
    "SELECT set_config(name, 'lz4', false) FROM pg_settings "
    "WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)"
)
#: Any number that no other program takes for its advisory locks.
MIGRATION_LOCK = 0x4D494C4C49530001
_READERS, _MORE_READERS, _READER_WAIT_S = 5, 10, 5.0


class PostgresDatabase(database.Database):
    """Two ways into one database: `writer` for the thread that writes, `reader` for everybody.

    A question is answered from one state of the log, as a file's is.
    """

    is_file = False

    def __init__(self, url: str) -> None:
        """Reach the server; raises `ConfigError` without its driver, and `StorageOutageError`."""
        self.url = driver_url(url)
        _require_known_options(self.url)
        self._is_pooled = False
        self.writer = self._engine_with(_set_up_writer, pool_size=1, max_overflow=4)
        self.reader = self._engine_with(
            _set_up_reader,
            pool_size=_READERS,
            max_overflow=_MORE_READERS,
            pool_timeout=_READER_WAIT_S,
            pool_pre_ping=True,
        )
        try:
            self.schema_version()
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        raise ConfigError(
            "The call log is in PostgreSQL, and this is for one that is a file. There, copies are "
            "made by pg_dump, and space is seen to by its own VACUUM."
        )

    @property
    def runner_lock(self) -> Path:
        return self.path

    def open_for_migration(self) -> Engine:
        return self._engine_with(_set_up_writer, poolclass=NullPool)

    def open_for_listening(self) -> Engine:
        """A way in for a connection that only listens, for as long as it lasts."""
        return self._engine_with(_set_up_listener, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def lock_for_migration(self, connection: Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})

    def schema_version(self) -> str | None:
        try:
            with self.reader.connect() as connection:
                require_utf8(select_one(connection, "SHOW server_encoding"))
                return _version_in(connection)
        except SQLAlchemyError as error:
            reason = database.describe(error).rstrip(".")
            raise StorageOutageError(
                f"MILLIS_HOOKS_DATABASE_URL: the database cannot be reached: {reason}."
            ) from error

    def _engine_with(self, set_up: Any, **options: Any) -> Engine:
        try:
            engine = create_engine(
                self.url,
                hide_parameters=True,  # they are payloads, and exceptions end up in logs
                use_native_hstore=False,
                connect_args={key: _CONNECT[key] for key in _CONNECT.keys() - self.url.query}
                | _ENCODING,
                **options,
            )
        except (ImportError, NoSuchModuleError) as error:
            raise ConfigError(
                "A call log in PostgreSQL needs its driver: pip install 'millis-hooks[postgres]'."
            ) from error
        event.listen(engine, "connect", set_up)
        event.listen(engine, "connect", self._prepare_nothing)
        event.listen(engine, "handle_error", self._note_error)
        return engine

    def _prepare_nothing(self, session: Any, _record: object) -> None:
        if self._is_pooled:
            session.prepare_threshold = None

    def _note_error(self, context: ExceptionContext) -> None:
        error = context.original_exception
        if is_of_another_session(error):
            if not self._is_pooled:
                logger.warning("a pooler takes sessions away: no statements are prepared any more")
            self._is_pooled = True
            context.is_disconnect = True
        elif must_reconnect(error):
            context.is_disconnect = True


def driver_url(url: str) -> URL:
    """Return the URL with the driver we use, under whatever name it was given."""
    return make_url(url.replace("postgres://", "postgresql://", 1)).set(
        drivername="postgresql+psycopg"
    )


def _require_known_options(url: URL) -> None:
    """Raise `ConfigError` naming an option in the address that the driver does not have."""
    try:
        from psycopg.pq import Conninfo
    except ImportError:  # is said when it is needed
        return
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    for name in sorted(url.query.keys() - known):
        near = get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Leave it out of the address."
        raise ConfigError(
            f"MILLIS_HOOKS_DATABASE_URL: PostgreSQL has no connection option {name!r}. {hint}"
        )


def require_utf8(encoding: str) -> None:
    """Raise `ConfigError` for a database that does not take every text."""
    if encoding != "UTF8":
        raise ConfigError(
            f"MILLIS_HOOKS_DATABASE_URL: the database has the encoding {encoding}, which has no "
            "room for what people say. Make another for the call log: CREATE DATABASE millis_hooks "
            "ENCODING 'UTF8' TEMPLATE template0"
        )


def _version_in(connection: Connection) -> str | None:
    there = select_one(connection, f"SELECT to_regclass('{VERSION_TABLE}')")
    if there is None:
        return None
    version = select_one(connection, f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
    return None if version is None else str(version)


def select_one(connection: Connection, question: str) -> Any:
    """Ask for one value."""
    return connection.execute(text(question)).scalar()


def _set_up_writer(session: Any, _record: object) -> None:
    usual, session.autocommit = session.autocommit, True
    _configure(session)
    lock_timeout = f"{int(database.BUSY_TIMEOUT_S * 1000)}ms"
    fsync, _, _ = session.execute(_SYNCHRONOUS, [lock_timeout]).fetchone()
    if fsync == "off":
        logger.warning(
            "this PostgreSQL has fsync off: calls that were acknowledged are lost when its machine "
            "stops"
        )
    session.execute(_QUICK_COMPRESSION)
    session.autocommit = usual


def _set_up_reader(session: Any, _record: object) -> None:
    from psycopg import IsolationLevel

    session.autocommit = True
    _configure(session)
    session.autocommit = False
    session.isolation_level = IsolationLevel.REPEATABLE_READ
    session.read_only = True


def _set_up_listener(session: Any, _record: object) -> None:
    session.autocommit = True
    _configure(session)
    session.execute(f"SET application_name = '{LISTENING}'")
    session.prepare_threshold = None  # a pooler may give it another session each time


def _configure(session: Any) -> None:
    settings = ", ".join(
        f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items()
    )
    session.execute(f"SELECT {settings}")


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

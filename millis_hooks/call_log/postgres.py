"""Opens a call log in PostgreSQL, and creates its schema where it differs from SQLite's.

Whatever the defaults of the server are, nothing is acknowledged before it is on its disk. Text is
compared by its bytes, as SQLite does, so lists have the same order on both and indexes are small.
Search uses trigrams where the extension pg_trgm is available, and reads every text where it is not.
"""

from __future__ import annotations

import logging
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    MetaData,
    NullPool,
    Text,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from ..exceptions import ConfigError, StorageOutageError
from ..version import requirement
from . import database
from .database import VERSION_TABLE
from .dialects import POSTGRESQL, SQLITE, describe, is_of_another_session, must_reconnect
from .tables import Key, metadata

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
#: In every session. A plan for long queries would take longer to compile than most queries here
#: run; and what a lost client had locked must not stay locked for long.
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
    """Two ways into one database: `writer` for the thread that writes, `reader` for all others.

    A question is answered from one state of the log, as a file's is.
    """

    is_file = False

    def __init__(self, url: str) -> None:
        """Reach the server; raises `ConfigError` without its driver, and `StorageOutageError`."""
        self.url = driver_url(url)
        _require_known_options(self.url)
        self._is_pooled = False
        # One for the thread that writes, one for processing.
        self.writer = self._engine_with(_set_up_writer, pool_size=2, max_overflow=3)
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

    def lock_for_migration(self, connection: Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})

    def schema_version(self) -> str | None:
        try:
            with self.reader.connect() as connection:
                require_utf8(select_one(connection, "SHOW server_encoding"))
                return _version_in(connection)
        except SQLAlchemyError as error:
            reason = describe(error).rstrip(".")
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
                "A call log in PostgreSQL needs its driver. Install the extra: "
                f"pip install '{requirement('postgres')}'"
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
                logger.warning("a connection pooler was noticed: statements are no longer prepared")
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
    except ImportError:  # reported when the engine is made
        return
    options = {option.keyword.decode() for option in Conninfo.get_defaults()}
    for name in sorted(url.query.keys() - options):
        near = get_close_matches(name, options, n=1)
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


def _configure(session: Any) -> None:
    settings = ", ".join(
        f"set_config('{name}', '{value}', false)" for name, value in _SETTINGS.items()
    )
    session.execute(f"SELECT {settings}")


CREATE_EXTENSION = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
CREATE_SEARCH_INDEX = (
    "CREATE INDEX ix_call_search_folded ON call_search USING gin (folded gin_trgm_ops)"
)
_CREATE_CALL_SEARCH = """
CREATE TABLE call_search (
    rowid BIGINT PRIMARY KEY,
    folded TEXT NOT NULL
)
"""


def create_schema(connection: Connection) -> None:
    """Create everything but the table of the version."""
    _by_bytes().create_all(connection, checkfirst=False)
    connection.execute(text(_CREATE_CALL_SEARCH))
    _create_search_index(connection)


def _by_bytes() -> MetaData:
    copy = MetaData()
    for table in metadata.sorted_tables:
        for column in table.to_metadata(copy).columns:
            if isinstance(column.type, Text | Key):
                column.type = TEXT(collation="C")
    for index in chain.from_iterable(table.indexes for table in copy.tables.values()):
        index.dialect_options[POSTGRESQL]["where"] = index.dialect_options[SQLITE]["where"]
    return copy


def _create_search_index(connection: Connection) -> None:
    try:
        with connection.begin_nested():
            connection.execute(text(CREATE_EXTENSION))
            connection.execute(text(CREATE_SEARCH_INDEX))
    except SQLAlchemyError as error:
        logger.warning("searches read every text, because pg_trgm is missing: %s", describe(error))

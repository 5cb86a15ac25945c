"""Checks of a call log in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.dialects import describe
from ..call_log.migrations import HEAD
from ..call_log.postgres import (
    CREATE_EXTENSION,
    CREATE_SEARCH_INDEX,
    PostgresDatabase,
    select_one,
)
from ..exceptions import ConfigError, StorageError
from ..runs.processes import processes_at_work
from . import CheckResult, bad, ok, warn
from .database import NO_RUNNER, check_content, check_schema, compare_clock

#: The first that lets an ordinary user install pg_trgm.
_OLDEST = 13


def check_postgres(
    url: str, now: Callable[[], datetime], *, kept_days: int = 0
) -> Iterator[CheckResult]:
    """Check the server, and the call log in it."""
    try:
        database = PostgresDatabase(url)
    except (ConfigError, StorageError) as error:
        yield bad("call log", str(error), "Until then no call is kept.")
        return
    try:
        with database.reader.connect() as connection:
            yield ok("call log", f"in PostgreSQL, database {database.url.database}")
            yield from _check_server(connection, now)
            version = database.schema_version()
            yield check_schema(version)
            if version == HEAD:
                yield _search(connection)
                yield _runner(connection)
                yield from check_content(connection, now, kept_days=kept_days)
    except SQLAlchemyError as error:
        yield bad(
            "call log", f"it cannot be read: {describe(error)}", "The server's log says more."
        )
    finally:
        database.close()


def _check_server(connection: Connection, now: Callable[[], datetime]) -> Iterator[CheckResult]:
    yield check_release(_setting(connection, "server_version"))
    if select_one(connection, "SELECT pg_is_in_recovery()"):
        yield bad(
            "role",
            "this server is a standby: nothing can be stored in it",
            "Let MILLIS_HOOKS_DATABASE_URL name the primary; "
            "?target_session_attrs=read-write chooses it among several hosts.",
        )
    yield check_durability(
        {name: _setting(connection, name) for name in ("fsync", "full_page_writes")},
        _setting(connection, "synchronous_commit"),
    )
    server_time: datetime = select_one(connection, "SELECT clock_timestamp()")
    yield compare_clock("the database server's", server_time - now())


def check_release(version: str) -> CheckResult:
    """Check the server's version, as `server_version` has it."""
    number = version.partition(" ")[0]
    if int(number.partition(".")[0]) < _OLDEST:
        return bad("server", f"PostgreSQL {number}", "Use PostgreSQL 13 or newer.")
    return ok("server", f"PostgreSQL {number}")


def check_durability(settings: dict[str, str], synchronous_commit: str) -> CheckResult:
    """Check that acknowledged calls survive a power cut."""
    off = [name for name, value in settings.items() if value == "off"]
    if off:
        return bad(
            "durability",
            f"{' and '.join(off)} off: acknowledged calls are lost when the machine stops",
            "Set it on in postgresql.conf, and reload the server.",
        )
    if synchronous_commit == "off":
        return warn(
            "durability",
            "synchronous_commit is off by default; the service sets it on for itself",
            "Behind a pooler it cannot: ALTER ROLE <user> SET synchronous_commit = on",
        )
    return ok("durability", "commits are on disk when they are acknowledged")


def _search(connection: Connection) -> CheckResult:
    if select_one(connection, "SELECT to_regclass('ix_call_search_folded')") is None:
        return warn(
            "search",
            "there is no trigram index: a search reads every call",
            f"As its owner: {CREATE_EXTENSION}; {CREATE_SEARCH_INDEX}",
        )
    return ok("search", "by pg_trgm")


def _runner(connection: Connection) -> CheckResult:
    names = processes_at_work(connection)
    return ok("runner", f"handlers run in {', '.join(names)}") if names else NO_RUNNER


def _setting(connection: Connection, name: str) -> str:
    return str(select_one(connection, f"SELECT current_setting('{name}')"))

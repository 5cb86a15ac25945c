"""Checks of a call log that is in PostgreSQL. Nothing in it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.database import describe
from ..call_log.migrations import HEAD
from ..call_log.postgres import PostgresDatabase, select_one
from ..call_log.postgres_schema import CREATE_EXTENSION, CREATE_SEARCH_INDEX
from ..exceptions import ConfigError, StorageError
from ..runs.processes import processes_at_work
from . import Finding, bad, ok, warn
from .database import examine_schema, examine_work
from .machine import examine_clock, examine_retention, judge

#: The first that lets an ordinary user have pg_trgm.
_OLDEST = 13


def examine_postgres(
    url: str, now: Callable[[], datetime], *, kept_days: int = 0
) -> Iterator[Finding]:
    """Look at the server, and at the call log in it."""
    try:
        database = PostgresDatabase(url)
    except (ConfigError, StorageError) as error:
        yield bad("call log", str(error), "Until then no call is kept.")
        return
    try:
        with database.reader.connect() as connection:
            yield ok("call log", f"in PostgreSQL, database {database.url.database}")
            version = database.schema_version()
            yield from _examine(connection, version, now)
            if version == HEAD:
                yield from examine_retention(connection, kept_days, now())
    except SQLAlchemyError as error:
        yield bad(
            "call log", f"it cannot be read: {describe(error)}", "Look into the server's log."
        )
    finally:
        database.close()


def _examine(
    connection: Connection, version: str | None, now: Callable[[], datetime]
) -> Iterator[Finding]:
    yield examine_release(_setting(connection, "server_version"))
    yield ok("encoding", _setting(connection, "server_encoding"))
    yield _examine_role(connection)
    yield from examine_durability(
        {name: _setting(connection, name) for name in ("fsync", "full_page_writes")},
        _setting(connection, "synchronous_commit"),
    )
    yield judge(select_one(connection, "SELECT clock_timestamp()") - now(), "the server's")
    yield examine_schema(version)
    if version == HEAD:
        yield _examine_search(connection)
        yield _examine_runner(connection)
        yield from examine_clock(connection, now)
        yield from examine_work(connection, now())


def examine_release(written: str) -> Finding:
    """Judge the server's release."""
    number = written.partition(" ")[0]
    if int(number.partition(".")[0]) < _OLDEST:
        return bad("server", f"PostgreSQL {number}", "Use PostgreSQL 13 or newer.")
    return ok("server", f"PostgreSQL {number}")


def examine_durability(settings: dict[str, str], commits: str) -> Iterator[Finding]:
    """Tell whether what was acknowledged is there after a power cut."""
    off = [name for name, value in settings.items() if value == "off"]
    if off:
        yield bad(
            "durability",
            f"{' and '.join(off)} off: acknowledged calls are lost when the machine stops",
            "Set it on in postgresql.conf, and reload the server.",
        )
    elif commits == "off":
        yield warn(
            "durability",
            "synchronous_commit is off by default; the service sets it on for itself",
            "Behind a pooler it cannot: ALTER ROLE <user> SET synchronous_commit = on",
        )
    else:
        yield ok("durability", "commits are on disk when they are acknowledged")


def _examine_role(connection: Connection) -> Finding:
    if select_one(connection, "SELECT pg_is_in_recovery()"):
        return bad(
            "role",
            "this server is a standby, and nothing can be stored in it",
            "Have MILLIS_HOOKS_DATABASE_URL name the primary; "
            "?target_session_attrs=read-write chooses it among several hosts.",
        )
    return ok("role", "the primary server")


def _examine_search(connection: Connection) -> Finding:
    if select_one(connection, "SELECT to_regclass('ix_call_search_folded')") is None:
        return warn(
            "search",
            "there is no index of trigrams: a search reads every call",
            f"As its owner: {CREATE_EXTENSION}; {CREATE_SEARCH_INDEX}",
        )
    return ok("search", "by pg_trgm")


def _examine_runner(connection: Connection) -> Finding:
    names = processes_at_work(connection)
    if not names:
        return warn(
            "runner", "no process runs handlers now", "Start the service: millis-hooks run app.py"
        )
    return ok("runner", f"handlers run in {', '.join(names)}")


def _setting(connection: Connection, name: str) -> str:
    return str(select_one(connection, f"SELECT current_setting('{name}')"))

"""All checks that need nothing but the settings and the call log, in the order of the report."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.database import connect, describe, is_file, require_writable_folder, schema_version
from ..call_log.migrations import HEAD
from ..exceptions import StorageError
from ..settings import Settings
from . import Finding, bad, ok
from .configuration import examine_settings
from .database import (
    RESTORE,
    examine_integrity,
    examine_mode,
    examine_runner,
    examine_schema,
    examine_sqlite,
    examine_work,
)
from .machine import examine_clock, examine_disk, examine_retention

_BUSY_TIMEOUT_S = 5.0


def examine(
    settings: Settings,
    now: Callable[[], datetime],
    *,
    reads_all: bool = True,
    measures: bool = True,
) -> Iterator[Finding]:
    """Look everything over that is on this machine.

    `now` is asked when a clock is looked at: what comes before may take minutes. Without
    `reads_all` the call log is not read to its end, which takes seconds for each GB; without
    `measures` the disk is not made to work.
    """
    yield from examine_settings(settings)
    if not is_file(settings.database_url):
        from .postgres import examine_postgres

        yield from examine_postgres(settings.database_url, now, kept_days=settings.retention_days)
        return
    log = Path(str(make_url(settings.database_url).database)).resolve()
    yield from examine_disk(log, measures=measures)
    yield from examine_sqlite(sqlite3.sqlite_version_info)
    if log.parent.is_dir():
        days = settings.retention_days
        yield from _examine_log(log, now, reads_all=reads_all, kept_days=days)


def _examine_log(
    log: Path, now: Callable[[], datetime], *, reads_all: bool, kept_days: int
) -> Iterator[Finding]:
    if not log.exists():
        yield ok("call log", f"none yet; the service makes {log} when it starts")
        return
    try:
        require_writable_folder(log)
        version = schema_version(log, busy_timeout_s=_BUSY_TIMEOUT_S)
        with _looking_into(log) as connection:
            yield ok("call log", str(log))
            yield examine_schema(version)
            yield from _examine_content(connection, log, version, now, reads_all=reads_all)
            if version == HEAD:
                yield from examine_retention(connection, kept_days, now())
    except StorageError as error:
        yield bad("call log", str(error), "Until then no call is kept.")
    except SQLAlchemyError as error:
        yield bad("call log", f"{log} cannot be read: {describe(error)}", RESTORE)


def _examine_content(
    connection: Connection,
    log: Path,
    version: str | None,
    now: Callable[[], datetime],
    *,
    reads_all: bool,
) -> Iterator[Finding]:
    yield examine_mode(connection)
    if reads_all:
        yield examine_integrity(connection, log)
    if version == HEAD:
        yield from examine_clock(connection, now)
        yield examine_runner(Path(f"{log}-runner"))
        yield from examine_work(connection, now())


@contextmanager
def _looking_into(log: Path) -> Iterator[Connection]:
    """A connection that cannot change anything."""
    engine = create_engine(
        "sqlite://",
        creator=lambda: connect(log, busy_timeout_s=_BUSY_TIMEOUT_S, mode="ro"),
        poolclass=NullPool,
        hide_parameters=True,
    )
    with engine.connect() as connection:
        yield connection

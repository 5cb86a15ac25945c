"""All checks that need only the settings and the call log, in the order of the report."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.database import connect, is_file, require_writable_folder, schema_version
from ..call_log.dialects import describe
from ..call_log.migrations import HEAD
from ..exceptions import StorageError
from ..settings import Settings
from . import CheckResult, bad, ok
from .configuration import check_settings
from .database import RESTORE, check_content, check_file, check_runner, check_schema, check_sqlite
from .machine import check_disk

_BUSY_TIMEOUT_S = 5.0


def check_installation(
    settings: Settings,
    now: Callable[[], datetime],
    *,
    reads_all: bool = True,
    measures: bool = True,
) -> Iterator[CheckResult]:
    """Run the checks of this machine.

    `now` is called for each comparison of clocks: the checks before it may take minutes. Without
    `reads_all` the call log is not read to its end, which takes seconds for each GB; without
    `measures` the disk's speed is not measured.
    """
    yield from check_settings(settings)
    days = settings.retention_days
    if not is_file(settings.database_url):
        from .postgres import check_postgres  # psycopg is an extra

        yield from check_postgres(settings.database_url, now, kept_days=days)
        return
    log = Path(str(make_url(settings.database_url).database)).resolve()
    yield from check_disk(log, measures=measures)
    yield from check_sqlite(sqlite3.sqlite_version_info)
    if not log.parent.is_dir():
        return
    if log.exists():
        yield from _check_log(log, now, reads_all=reads_all, kept_days=days)
    else:
        yield ok("call log", f"none yet; the service creates {log} when it starts")


def _check_log(
    log: Path, now: Callable[[], datetime], *, reads_all: bool, kept_days: int
) -> Iterator[CheckResult]:
    try:
        require_writable_folder(log)
        version = schema_version(log, busy_timeout_s=_BUSY_TIMEOUT_S)
        with _read_only(log) as connection:
            yield ok("call log", str(log))
            yield from check_file(connection, log, reads_all=reads_all)
            yield check_schema(version)
            if version == HEAD:
                yield check_runner(Path(f"{log}-runner"))
                yield from check_content(connection, now, kept_days=kept_days)
    except StorageError as error:
        yield bad("call log", str(error), "Until then no call is kept.")
    except SQLAlchemyError as error:
        yield bad("call log", f"{log} cannot be read: {describe(error)}", RESTORE)


@contextmanager
def _read_only(log: Path) -> Iterator[Connection]:
    engine = create_engine(
        "sqlite://",
        creator=lambda: connect(log, busy_timeout_s=_BUSY_TIMEOUT_S, mode="ro"),
        poolclass=NullPool,
        hide_parameters=True,
    )
    with engine.connect() as connection:
        yield connection

"""Checks of the call log itself, and of the SQLite that reads it. Nothing in it is changed.

Checks of what is done after the acknowledgement: reading deliveries, and handler runs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, and_, func, select

from ..call_log.locks import FileHolder, Version, has_wal_reset_bug
from ..call_log.migrations import HEAD
from ..call_log.tables import IS_OPEN, IS_UNPARSED, deliveries, handler_runs, handlers, inbox
from . import Finding, bad, ok, warn

_UNREAD_FOR = timedelta(minutes=1)
_PENDING_FOR = timedelta(minutes=10)
_runs = handler_runs.c


def examine_runner(lock: Path) -> Finding:
    """Tell whether a process does the runs, by its lock."""
    if not _is_held(lock):
        return warn(
            "runner",
            "no process runs handlers now",
            "Start the service: millis-hooks run app.py",
        )
    return ok("runner", "a process runs handlers")


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    holder = FileHolder(lock)
    try:
        return not holder.hold()
    except OSError:  # it is another user's
        return True
    finally:
        holder.let_go()


def examine_work(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Look at what waits; on an up-to-date call log only."""
    yield _unread(connection, now)
    yield _unparsed(connection)
    counted = select(_runs.state, func.count()).where(IS_OPEN, _runs.is_latest)
    counts: dict[str, int] = dict(connection.execute(counted.group_by(_runs.state)).all())
    yield _parked(counts.get("parked", 0))
    yield _pending(connection, counts.get("pending", 0), now)
    yield from _unknown(connection)


def _unread(connection: Connection, now: datetime) -> Finding:
    count = connection.scalar(select(func.count()).select_from(inbox)) or 0
    oldest = connection.scalar(
        select(deliveries.c.received_at)
        .join(inbox, inbox.c.delivery_id == deliveries.c.id)
        .order_by(deliveries.c.id)
        .limit(1)
    )
    if oldest is not None and now - oldest > _UNREAD_FOR:
        return warn(
            "inbox",
            f"{count:,} deliveries wait to be read, the oldest since {oldest:%Y-%m-%d %H:%M} UTC",
            "Start the service. If it runs, its log says what keeps it from reading them.",
        )
    return ok("inbox", f"{count:,} deliveries wait to be read")


def _unparsed(connection: Connection) -> Finding:
    count = connection.scalar(select(func.count()).select_from(deliveries).where(IS_UNPARSED))
    if count:
        return warn(
            "unparsed",
            f"{count:,} deliveries could not be read; they are kept",
            "The dashboard's /deliveries says why. After an upgrade: millis-hooks reparse "
            "--unparsed",
        )
    return ok("unparsed", "every delivery could be read")


def _parked(count: int) -> Finding:
    if count:
        return warn(
            "parked runs",
            f"{count:,} wait for a person",
            "See why: millis-hooks runs --status parked. Then: millis-hooks replay --status parked",
        )
    return ok("parked runs", "none")


def _pending(connection: Connection, count: int, now: datetime) -> Finding:
    pending = select(func.min(_runs.state_since)).where(IS_OPEN, _runs.state == "pending")
    oldest = connection.scalar(pending)
    if oldest is not None and now - oldest > _PENDING_FOR:
        return warn(
            "pending runs",
            f"{count:,}, the oldest since {oldest:%Y-%m-%d %H:%M} UTC",
            "Start the service. If it runs, its handlers are too slow or too few at a time: see "
            "MILLIS_HOOKS_HANDLER_CONCURRENCY.",
        )
    return ok("pending runs", f"{count:,}")


def _unknown(connection: Connection) -> Iterator[Finding]:
    known = and_(handlers.c.hook == _runs.hook, handlers.c.name == _runs.handler)
    unknown = (
        select(_runs.handler, func.count())
        .select_from(handler_runs.outerjoin(handlers, known))
        .where(IS_OPEN, _runs.is_latest, handlers.c.name.is_(None))
        .group_by(_runs.handler)
        .order_by(_runs.handler)
    )
    found = [f"{name} ({count:,})" for name, count in connection.execute(unknown)]
    if found:
        yield warn(
            "unknown handlers",
            f"runs are left of handlers that the application has no more: {', '.join(found)}",
            "Bring them back under these names, or leave their runs parked.",
        )


RESTORE = (
    "Stop the service, move the file away together with its -wal and -shm, and put a backup in its "
    "place; `sqlite3 FILE .recover` may save what is newer."
)


def examine_sqlite(version: Version) -> Iterator[Finding]:
    """Look at the SQLite that this Python has."""
    written = ".".join(map(str, version))
    if has_wal_reset_bug(version):
        yield ok(
            "SQLite",
            f"{written} has the WAL-reset bug, so the programs of millis_hooks write to the call "
            "log one at a time; not so other programs that write to it, as Litestream does",
            link="https://www.sqlite.org/wal.html#walresetbug",
        )
    else:
        yield ok("SQLite", f"{written}, without the WAL-reset bug")
    if not _can_search():
        yield bad(
            "search",
            f"SQLite {written} has no FTS5 with trigrams",
            "Use a Python whose SQLite is 3.34 or newer and was built with FTS5.",
        )


def _can_search() -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='trigram')")
        except sqlite3.OperationalError:
            return False
    return True


def examine_schema(version: str | None) -> Finding:
    """Compare the schema with the one this program knows."""
    if version is None:
        return ok("schema", f"none yet; the service makes {HEAD} when it starts")
    if version > HEAD:
        return bad(
            "schema",
            f"{version}, of a newer millis_hooks than this one, which knows up to {HEAD}",
            "Install the newer millis_hooks that wrote it.",
        )
    if version < HEAD:
        return warn(
            "schema",
            f"{version}, of an older millis_hooks",
            f"Make a copy of the files; the service upgrades it to {HEAD} when it starts.",
        )
    return ok("schema", version)


def examine_mode(connection: Connection) -> Finding:
    """Tell whether readers and the writer get along without waiting for each other."""
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if mode == "wal":
        return ok("journal", "WAL")
    return warn(
        "journal",
        f"{mode}, not WAL: another program has changed it",
        "Restart the service: it sets WAL when it starts.",
    )


def examine_integrity(connection: Connection, file: Path) -> Finding:
    """Read the whole file, as `PRAGMA quick_check` does; that takes seconds for each GB."""
    found = list(connection.exec_driver_sql("PRAGMA quick_check(5)").scalars())
    if found == ["ok"]:
        return ok("integrity", "the whole file can be read")
    return bad("integrity", f"{file} is damaged: {'; '.join(map(str, found))}", RESTORE)

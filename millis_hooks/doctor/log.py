"""Checks of the call log itself, and of the SQLite that reads it. Nothing in it is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection

from ..call_log.migrations import HEAD
from ..call_log.write_lock import Version, has_wal_reset_bug
from ..finding import Finding, bad, ok, warn

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

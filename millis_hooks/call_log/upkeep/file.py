"""Work on the file of a call log: a backup, a vacuum, and the compression of old bodies.

A backup is made by SQLite's online backup. One read transaction holds from the first page to the
last, so the copy is the log as it was at the beginning, with every call that was acknowledged by
then, and no writer waits; until the end the -wal file grows by what is written meanwhile. Ctrl-C
ends it within a statement.

A vacuum rewrites the search index and the file without deleted rows. It keeps all others from
writing, and takes twice the size of the file on the disk for a time: once for the copy, and once
for the -wal file that the copy goes through. Compressed bodies take about a fifth; new rows use
the space they leave, and a vacuum gives it back.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    LargeBinary,
    Row,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from ...environment.private_files import make_private
from ...exceptions import ConfigError, StorageError
from ..database import BUSY_TIMEOUT_S, Database
from ..dialects import is_postgresql
from ..locks import LockedConnection
from ..raw_body import length_of, pack
from ..tables import deliveries, keys
from ..writer import Write
from .removal import PAGES_ALONE, empty_wal, overwriting, rewrite_search_index, writing_by

#: Instructions of SQLite between two looks for an interrupt.
_INSTRUCTIONS = 1_000_000


@contextmanager
def interruptible(connection: sqlite3.Connection) -> Iterator[None]:
    """Raise `KeyboardInterrupt` out of a statement too, not only once it is done."""
    # Python handles signals when it runs again, and SQLite ends at an exception in the handler.
    connection.set_progress_handler(lambda: 0, _INSTRUCTIONS)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise KeyboardInterrupt from error
        raise
    finally:
        connection.set_progress_handler(None, 0)


_PAGES_AT_ONCE = 512

#: Called with how many pages are copied, and how many there are.
Copied = Callable[[int, int], None]


def back_up(
    database: Database,
    target: Path,
    *,
    force: bool = False,
    copied: Copied = lambda done, total: None,
) -> int:
    """Copy the log to `target`, for its owner only, and return the copy's size in bytes.

    `target` is there once it is complete, checked and synced, or not at all; one that exists is
    only replaced with `force`. Raises `ConfigError` for a target that cannot be, and
    `StorageError`.
    """
    _require_free(database, target, force=force)
    _require_space(database, target.parent)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with suppress(FileNotFoundError):
            part.unlink()
        make_private(part, must_be_new=True)
        _copy(database, part, copied)
        _check(part)
        _require_free(database, target, force=force)
        part.replace(target)
        _sync(target.parent)
        return target.stat().st_size
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"The call log could not be copied to {target}") from error
    finally:
        part.unlink(missing_ok=True)


def _require_free(database: Database, target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise ConfigError(f"There is no folder {target.parent}.")
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target} is not a file.")
    if target.exists() and target.samefile(database.path):
        raise ConfigError(f"{target} is the call log itself.")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists. Add --force to replace it.")
    # It would be taken for part of the copy.
    if Path(f"{target}-wal").exists():
        raise ConfigError(f"{target} is in use, or was not closed: there is a {target.name}-wal.")


def _require_space(database: Database, folder: Path) -> None:
    needed, free = database.path.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(f"{needed:,} bytes are needed in {folder}, {free:,} are free there.")


def _copy(database: Database, part: Path, copied: Copied) -> None:
    with closing(database.reader.raw_connection()) as pooled, closing(sqlite3.connect(part)) as to:
        log = pooled.driver_connection
        assert isinstance(log, sqlite3.Connection)  # noqa: S101
        log.execute("BEGIN")
        try:
            log.execute("SELECT 1 FROM sqlite_master").fetchone()  # the transaction starts here
            log.backup(
                to,
                pages=_PAGES_AT_ONCE,
                progress=lambda _status, left, total: copied(total - left, total),
            )
        finally:
            log.execute("ROLLBACK")


def _check(part: Path) -> None:
    """Raise `StorageError` unless the copy is sound."""
    # Nobody else has it: opened as a file that never changes it gets no -wal beside it.
    uri = f"{part.resolve().as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as copy, interruptible(copy):
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StorageError(f"The copy is not sound: {verdict}. See millis-hooks doctor.")


def _sync(folder: Path) -> None:
    """Sync the folder, that the new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: What one transaction looks through and may write: so much takes it a few ms.
_BATCH_ROWS = 100
_BATCH_BYTES = 100_000
_PLACE = "packed up to"

_kept_place = select(keys.c.value).where(keys.c.name == _PLACE)
_d = deliveries.c
_shrink = (
    update(deliveries)
    .where(_d.id == bindparam("of"))
    .values(body=bindparam("packed", type_=LargeBinary))
)
#: SQLite leaves a page as empty as a row that shrinks has made it, up to two thirds. So all rows go
#: out of their pages, and come back one after the other.
_take_out = (
    update(deliveries).where(_d.id.between(bindparam("first"), bindparam("last"))).values(id=-_d.id)
)
_taken_out = select(-_d.id).where(_d.id < 0).order_by(_d.id.desc())
_put_back = (
    update(deliveries)
    .where(_d.id == -bindparam("of", type_=Integer))
    .values(id=bindparam("of", type_=Integer))
)


def pack_older(reader: Engine, write: Write, *, before: datetime) -> Iterator[int]:
    """Pack the bodies received before then, a batch with each step; yield the bytes it saved.

    What they were is overwritten, since nobody could forget it later. Stopping between two batches
    is safe: it continues where it was. Raises what `write` raises.
    """
    write = overwriting(write)
    with reader.connect() as connection:
        place = int(connection.scalar(_kept_place) or b"0")
    while batch := _read(reader, place, before):
        first, place = batch[0].id, batch[-1].id
        smaller = [(row, packed) for row in batch if (packed := pack(row.body))]
        changes = [{"of": row.id, "packed": packed} for row, packed in smaller]
        write(lambda connection: _save(connection, changes, first, place))  # noqa: B023
        yield sum(len(row.body) - len(packed) for row, packed in smaller)


def _read(reader: Engine, place: int, before: datetime) -> Sequence[Row[Any, Any]]:
    d = deliveries.c
    following = select(d.id, d.received_at, length_of(d.body).label("size")).where(d.id > place)
    with reader.connect() as connection:
        rows = connection.execute(following.order_by(d.id).limit(_BATCH_ROWS)).all()
        old = list(takewhile(lambda row: row.received_at < before, rows))
        sizes = accumulate(row.size for row in old)
        few = [row.id for row, size in zip(old, sizes, strict=True) if size <= _BATCH_BYTES]
        last = few[-1] if few else old[0].id if old else place
        batch = select(d.id, d.body).where(d.id > place, d.id <= last)
        return connection.execute(batch.order_by(d.id)).all()


def _save(connection: Connection, changes: Sequence[dict[str, Any]], first: int, last: int) -> None:
    if changes:
        connection.execute(_shrink, changes)
        if not is_postgresql(connection):
            _close_up(connection, first, last)
    connection.execute(delete(keys).where(keys.c.name == _PLACE))
    connection.execute(insert(keys).values(name=_PLACE, value=b"%d" % last))


def _close_up(connection: Connection, first: int, last: int) -> None:
    """Have rows that follow one another take as few pages as they can."""
    # Calls refer to them, and do again at the end.
    connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
    try:
        connection.execute(_take_out, {"first": first, "last": last})
        ids = connection.scalars(_taken_out).all()
        connection.execute(_put_back, [{"of": id_} for id_ in ids])
    finally:
        # Other work of the same transaction is told at once what it may not do.
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=OFF")


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes: of the file, of them unused, needed for a vacuum, and free on the disk."""

    file_bytes: int
    unused_bytes: int
    needed_bytes: int
    free_bytes: int


def space(database: Database) -> Space:
    """Tell what a vacuum would gain and what it needs; raises `ConfigError` if it is not a file."""
    file = database.path
    with database.reader.connect() as connection:

        def pragma(name: str) -> int:
            return int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

        page_bytes = pragma("page_size")
        unused = pragma("freelist_count") * page_bytes
        used = pragma("page_count") * page_bytes - unused
    free = shutil.disk_usage(file.parent).free
    return Space(file.stat().st_size, unused, 2 * used, free)


def vacuum(database: Database) -> Space:
    """Rewrite index and file, and return what the file takes now.

    Raises `StorageError` if it cannot; nothing is lost then.
    """
    writer = database.writer
    try:
        for _ in rewrite_search_index(writing_by(writer), pages=PAGES_ALONE):
            pass
        _rewrite(writer, database.path.parent)
        empty_wal(writer)
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise StorageError("The call log could not be rewritten, and is as it was") from error
    return space(database)


def _rewrite(writer: Engine, folder: Path) -> None:
    with closing(writer.raw_connection()) as pooled:
        log = pooled.driver_connection
        assert isinstance(log, LockedConnection)  # noqa: S101
        # Our connections keep temporary tables in memory, others in /tmp, which may be memory too;
        # this one is as large as the log. The pragma is deprecated, and the only way to say so.
        log.execute("PRAGMA temp_store=FILE")
        log.execute(f"PRAGMA temp_store_directory={_quoted(str(folder))}")
        with interruptible(log), log.alone(wait_s=BUSY_TIMEOUT_S):
            log.execute("VACUUM")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

"""Rewrites the search index and the file without deleted rows, and compresses old bodies.

A vacuum keeps all others from writing, and takes twice the size of the file on the disk for a time:
once for the copy, and once for the -wal file that the copy goes through. Compressed bodies take
about a quarter; new rows use the space they leave, and a vacuum gives it back.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    LargeBinary,
    Row,
    bindparam,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from ...exceptions import StorageError
from ..database import BUSY_TIMEOUT_S, Database
from ..locks import LockedConnection
from ..raw_body import length_of, pack
from ..tables import deliveries, keys
from ..writer import Write
from .backup import interruptible
from .removal import PAGES_ALONE, empty_wal, rewrite_search_index, writing_by

#: What one transaction looks through and may write: so much takes it a few ms.
_BATCH_ROWS = 200
_BATCH_BYTES = 200_000
_PLACE = "packed up to"

_kept_place = select(keys.c.value).where(keys.c.name == _PLACE)
_shrink = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("of"))
    .values(body=bindparam("packed", type_=LargeBinary))
)


def pack_older(reader: Engine, write: Write, *, before: datetime) -> Iterator[int]:
    """Pack the bodies received before then, a batch with each step; yield the bytes it saved.

    Stopping between two batches is safe: it continues where it was. Raises what `write` raises.
    """
    with reader.connect() as connection:
        place = int(connection.scalar(_kept_place) or b"0")
    while batch := _read(reader, place, before):
        place = batch[-1].id
        smaller = [(row, packed) for row in batch if (packed := pack(row.body))]
        changes = [{"of": row.id, "packed": packed} for row, packed in smaller]
        write(lambda connection: _save(connection, changes, place))  # noqa: B023
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


def _save(connection: Connection, changes: Sequence[dict[str, Any]], place: int) -> None:
    if changes:
        connection.execute(_shrink, changes)
    connection.execute(delete(keys).where(keys.c.name == _PLACE))
    connection.execute(insert(keys).values(name=_PLACE, value=b"%d" % place))


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

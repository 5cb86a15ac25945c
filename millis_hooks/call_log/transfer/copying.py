"""Makes one call log the copy of another, on either kind of database.

Table by table, in the order of the primary keys, a batch of rows is held against what the copy has
between the same keys, and what differs is written. So a copy that was cut short is simply begun
again, and a second time takes over what has changed since the first. What is read is one state of
the source, however long it takes. Rows are copied as they are stored: ids stay, and so do packed
bodies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Table, func, select, text

from ..database import Database
from ..dialects import is_postgresql
from ..tables import reconciled
from .mending import Changes, apply_changes, remove_after
from .plain_tables import COPIED, Key, key_of, selected, stream

#: Written in one transaction: so many rows, or about so many bytes.
_ROWS = 500
_BYTES = 2 * 1024 * 1024
#: Between two words of how far it is, in rows.
_TOLD_EVERY = 1000


class Fingerprint(NamedTuple):
    """How many rows a table has, and a hash over all that is in them."""

    rows: int
    digest: str


@contextmanager
def snapshot(database: Database) -> Iterator[Connection]:
    """Open the log as it is now, for as long as it takes."""
    with database.reader.connect() as connection:
        if is_postgresql(connection):
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        connection.execute(select(reconciled).limit(1))  # it is as it was at the first question
        yield connection


def count_rows(source: Connection) -> int:
    """Return how many rows there are to copy."""
    return sum(source.scalar(select(func.count()).select_from(table)) or 0 for table in COPIED)


def copy_rows(source: Connection, target: Database) -> Iterator[int]:
    """Make `target` what `source` shows; yield how many rows are done after each batch.

    Raises `StorageError` naming a row that the target refuses, and what SQLAlchemy raises.
    """
    done = 0
    for table in COPIED:
        last: Key | None = None
        for batch in _batches(stream(source, table, selected(table))):
            until = key_of(table, batch[-1])
            changes = _differences(target, table, batch, after=last, until=until)
            if changes:
                apply_changes(target, table, changes)
            last = until
            done += len(batch)
            yield done
        remove_after(target, table, last)


def fingerprint(connection: Connection, table: Table) -> Iterator[Fingerprint]:
    """Yield the fingerprint of the rows so far, now and then, and at last that of all."""
    digest, count = blake2b(digest_size=16), 0
    for count, row in enumerate(stream(connection, table, selected(table)), start=1):
        digest.update(repr(tuple(map(_short, row))).encode("utf-8", "surrogatepass"))
        if count % _TOLD_EVERY == 0:
            yield Fingerprint(count, digest.hexdigest())
    yield Fingerprint(count, digest.hexdigest())


def _short(value: object) -> object:
    return blake2b(value, digest_size=16).digest() if isinstance(value, bytes) else value


def _batches(rows: Iterable[Row[Any]]) -> Iterator[list[Row[Any]]]:
    batch: list[Row[Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _differences(
    target: Database, table: Table, batch: Sequence[Row[Any]], *, after: Key | None, until: Key
) -> Changes:
    """Return what makes the target hold exactly these rows between these keys."""
    missing = {key_of(table, row): row for row in batch}
    changes = Changes()
    with target.reader.connect() as connection:
        for row in stream(connection, table, selected(table, after=after, until=until)):
            key = key_of(table, row)
            wanted = missing.pop(key, None)
            if wanted is None:
                changes.gone.append(key)
            elif wanted != row:
                changes.changed.append(wanted)
    changes.new += missing.values()
    return changes

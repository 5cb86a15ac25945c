"""Makes one call log a copy of another, on either kind of database.

Table by table, in the order of the primary keys, a batch of rows is compared with the rows of the
copy between the same keys, and what differs is written. A copy that was interrupted is simply begun
again; repeating it takes over what has changed since. The source is read in one state, however long
that takes. Rows are copied as they are stored, with their ids, and the copy never gives an id that
the source has given. From the first step to the last the target is marked as unfinished, and no
service starts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError

from ...exceptions import ConfigError, StorageError
from .. import tables
from ..database import Database, describe, is_outage
from ..dialects import is_postgresql
from ..health import MARK, mark, name_of, origin_of, unmark
from ..raw_body import RawBytes
from ..tables import calls, deliveries, metadata, operators, reconciled

Key = tuple[Any, ...]

#: Tells of the processes on a log, and not of its calls.
_NOT_COPIED = {"runners"}

#: Fetched at once; where bodies are among them, any may have many megabytes.
_FETCHED, _FETCHED_BODIES = 200, 10


def _as_stored() -> list[Table]:
    plain = MetaData()
    every = tables.metadata.sorted_tables
    copied = [table.to_metadata(plain) for table in every if table.name not in _NOT_COPIED]
    for table in copied:
        for column in table.columns:
            if isinstance(column.type, RawBytes):
                column.type = LargeBinary()
            elif isinstance(column.type, tables.Key):
                column.type = Text()
    rowid = Column("rowid", BigInteger, primary_key=True)
    texts = (Column("text", Text), Column("folded", Text))
    copied.append(Table("call_search", plain, rowid, *texts))
    return copied


#: What others refer to comes before them.
COPIED = _as_stored()


def key_of(table: Table, row: Row[Any]) -> Key:
    """Return the primary key of a row of `selected`."""
    return tuple(getattr(row, column.name) for column in table.primary_key)


def selected(table: Table, *, after: Key | None = None, until: Key | None = None) -> Select[Any]:
    """Select the rows behind one key and not behind another."""
    return select(table).where(between(table, after=after, until=until))


def between(table: Table, *, after: Key | None, until: Key | None) -> ColumnElement[bool]:
    """Say of a row that it is behind one key and not behind another, and is to be copied."""
    key = tuple_(*table.primary_key)
    types = [column.type for column in table.primary_key]
    bounds: list[ColumnElement[bool]] = [true()]
    if after is not None:
        bounds.append(key > tuple_(*after, types=types))
    if until is not None:
        bounds.append(key <= tuple_(*until, types=types))
    if table.name == "keys":
        bounds.append(table.c.name != MARK)
    return and_(*bounds)


def stream(connection: Connection, table: Table, rows: Select[Any]) -> Iterator[Row[Any]]:
    """Yield the rows by primary key, with few of them in memory."""
    fetched = _FETCHED_BODIES if table.name == "deliveries" else _FETCHED
    streaming = rows.execution_options(stream_results=True, yield_per=fetched)
    with connection.execute(streaming.order_by(*table.primary_key)) as found:
        yield from found


#: The tables whose ids are counted up, and never given twice.
COUNTED = [
    table.name
    for table in metadata.sorted_tables
    if table.dialect_options["sqlite"]["autoincrement"]
]

_LAST = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
_FORGET = text("DELETE FROM sqlite_sequence WHERE name = :name")
_REMEMBER = text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)")
_LAST_DRAWN = "SELECT CASE WHEN is_called THEN last_value END FROM {name}_id_seq"
_DRAW_AFTER = text("SELECT setval(CAST(:sequence AS regclass), :last)")


def last_ids(connection: Connection) -> dict[str, int]:
    """Return the last id that was given away, by table."""
    found = {name: _last(connection, name) for name in COUNTED}
    return {name: last for name, last in found.items() if last is not None}


def give_after(connection: Connection, last: dict[str, int]) -> None:
    """Have the next ids follow these."""
    for name, value in last.items():
        if is_postgresql(connection):
            connection.execute(_DRAW_AFTER, {"sequence": f"{name}_id_seq", "last": value})
        else:
            connection.execute(_FORGET, {"name": name})
            connection.execute(_REMEMBER, {"name": name, "last": value})


def _last(connection: Connection, name: str) -> int | None:
    question = text(_LAST_DRAWN.format(name=name)) if is_postgresql(connection) else _LAST
    last: int | None = connection.scalar(question, {"name": name})
    return last


#: Removed in one transaction.
_ROWS = 500


@dataclass(slots=True)
class Changes:
    """Rows of one table: what is missing, what is to be otherwise, and the keys of what is not to
    be there."""

    new: list[Row[Any]] = field(default_factory=list)
    changed: list[Row[Any]] = field(default_factory=list)
    gone: list[Key] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.gone)


def apply_changes(target: Database, table: Table, changes: Changes) -> None:
    """Write them in one transaction; raises `StorageError` naming a row that is refused."""
    try:
        with target.writer.begin() as connection:
            _write(connection, table, changes)
    except DBAPIError as error:
        if not is_outage(error):
            _name_refused(target, table, changes)
        raise


def remove_after(target: Database, table: Table, last: Key | None) -> None:
    """Remove the rows behind the one of this key; all, if there is none."""
    behind = select(*table.primary_key).where(between(table, after=last, until=None)).limit(_ROWS)
    while gone := _keys(target, behind):
        with target.writer.begin() as connection:
            _remove(connection, table, gone)


def _keys(target: Database, question: Any) -> list[Key]:
    with target.reader.connect() as connection:
        return [tuple(row) for row in connection.execute(question)]


def _write(connection: Connection, table: Table, changes: Changes) -> None:
    # First what goes: what comes may be unique only then.
    if changes.gone:
        _remove(connection, table, changes.gone)
    if changes.changed:
        of = [column == bindparam(f"new {column.name}") for column in table.primary_key]
        values: dict[str, Any] = {
            column.name: bindparam(f"new {column.name}") for column in table.columns
        }
        rows = [_parameters(row, prefix="new ") for row in changes.changed]
        connection.execute(update(table).where(*of).values(values), rows)
    if changes.new:
        connection.execute(insert(table), list(map(_parameters, changes.new)))


def _parameters(row: Row[Any], prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in zip(row._fields, row, strict=True)}


def _remove(connection: Connection, table: Table, gone: Sequence[Key]) -> None:
    """Remove rows and what belongs to them; what only refers to them is copied after them."""
    for column in _referring_to(table):
        these = column.in_([key[0] for key in gone])
        connection.execute(update(column.table).where(these).values({column: None}))
    names = [column.name for column in table.primary_key]
    of = [table.c[name] == bindparam(f"old {name}") for name in names]
    keys = [{f"old {name}": value for name, value in zip(names, key, strict=True)} for key in gone]
    connection.execute(delete(table).where(*of), keys)


def _referring_to(table: Table) -> Iterator[Any]:
    for other in COPIED:
        for foreign in other.foreign_keys:
            if foreign.column.table is table and foreign.ondelete is None:
                yield foreign.parent


def _name_refused(target: Database, table: Table, changes: Changes) -> None:
    """Raise `StorageError` for the first row that is refused by itself."""
    alone = [Changes(changed=[row]) for row in changes.changed]
    alone += [Changes(new=[row]) for row in changes.new]
    for change in alone:
        try:
            with target.writer.connect() as connection, connection.begin() as trial:
                _write(connection, table, change)
                trial.rollback()
        except DBAPIError as error:
            key = ", ".join(map(str, key_of(table, (change.changed or change.new)[0])))
            raise StorageError(
                f"The copy refuses the row {key} of {table.name}: {describe(error)}."
            ) from error


#: Written in one transaction: so many rows, or about so many bytes.
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


class Compared(NamedTuple):
    """What a table has on both sides."""

    table: str
    source: Fingerprint
    target: Fingerprint

    @property
    def is_same(self) -> bool:
        return self.source == self.target


def begin(source: Database, target: Database) -> bool:
    """Mark the target as unfinished; return whether it was, by an earlier copy of this source.

    Raises `ConfigError` where one must not be copied into the other.
    """
    if name_of(source) == name_of(target):
        raise ConfigError("Both are the same call log.")
    with source.reader.connect() as connection:
        if (origin := origin_of(connection)) is not None:
            raise ConfigError(f"{name_of(source)} is itself an unfinished copy, of {origin}.")
    with target.writer.begin() as connection:
        origin = origin_of(connection)
        if origin == name_of(source):
            return True
        if origin is not None:
            raise ConfigError(f"{name_of(target)} is an unfinished copy of another log, {origin}.")
        _require_empty(connection, name_of(target))
        mark(connection, name_of(source))
    return False


def compare(
    source: Connection, target: Connection, tell_done: Callable[[int], None]
) -> Iterator[Compared]:
    """Compare table by table; `tell_done` is told how many rows of both are read by now."""
    done = 0
    for table in COPIED:
        both = []
        for side in (source, target):
            for found in fingerprint(side, table):
                tell_done(done + found.rows)
            both.append(found)
            done += found.rows
        yield Compared(table.name, *both)


def finish(target: Database, last_ids: dict[str, int]) -> None:
    """Make it a call log like any other, whose new ids follow the last ones of the source."""
    with target.writer.begin() as connection:
        give_after(connection, last_ids)
        unmark(connection)
        if is_postgresql(connection):
            connection.execute(text("ANALYZE"))  # it plans by what it knows of the tables


def _require_empty(connection: Connection, name: str) -> None:
    for table in (calls, deliveries, operators):
        if connection.execute(select(table).limit(1)).first() is not None:
            raise ConfigError(
                f"{name} has {table.name} of its own. A copy goes into an empty database, or on "
                "where an earlier copy of the same log was stopped."
            )

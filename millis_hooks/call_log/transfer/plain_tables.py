"""The tables that hold data, with their values as they are stored, and ways to go through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
    select,
    true,
    tuple_,
)

from .. import tables
from ..raw_bytes import RawBytes
from ..unfinished import MARK

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
    return sorted(copied, key=lambda table: table.name == "hours")


#: What others refer to comes before them, and `hours` at the end: triggers change it.
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

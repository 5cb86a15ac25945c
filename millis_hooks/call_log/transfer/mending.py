"""Writes the rows in which a copy of a call log differs from what it is a copy of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Table, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from ...exceptions import StorageError
from ..database import Database, describe, is_outage
from .plain_tables import COPIED, Key, between, key_of

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

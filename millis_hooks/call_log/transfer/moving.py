"""The steps of copying a call log: who may be copied where, the comparison, and the end.

From the first step to the last the target is marked as unfinished, and no service starts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sqlalchemy import Connection, select, text

from ...exceptions import ConfigError
from ..database import Database
from ..dialects import is_postgresql
from ..tables import calls, deliveries, operators
from ..unfinished import mark, name_of, origin_of, unmark
from .copying import Fingerprint, fingerprint
from .ids import give_after
from .plain_tables import COPIED


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

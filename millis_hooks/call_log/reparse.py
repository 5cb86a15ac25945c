"""Reads stored deliveries again with the code there is now: after an upgrade, a fix, a setting.

Session by session, so that each comes out as in a fresh call log: a session is taken at its first
delivery that is chosen, with all of its deliveries that were processed. Those that still wait in
the inbox are left to the service, which adds them as it always does.

How far it came is kept in the call log; an interrupted one goes on there. Memory stays flat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
)

from .database import Database
from .deliveries import content_hash
from .digest import digest_delivery
from .ends import RunsFor
from .raw_bytes import length_of
from .rederived import Scratch
from .rereading import Reread, derive_again, read_again, write_again
from .tables import deliveries, handlers, keys
from .values import clean_text

#: Deliveries whose sessions go into one transaction, by number and by size.
BATCH_DELIVERIES = 50
BATCH_BYTES = 2 * 1024 * 1024
#: It may keep others from writing for so long, in seconds; down to so many deliveries.
_WRITE_S = 0.01
_LEAST_DELIVERIES = 4

#: Where the place is kept that an interrupted one had come to.
_PLACE = "reparse"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which deliveries are read again: all, unless it says which; `since` is inclusive."""

    unparsed: bool = False
    since: datetime | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """How far it came, in ids of deliveries: up to `after`, of those up to `last`."""

    after: int
    last: int


class Reparse:
    """Reads what is chosen again, batch by batch."""

    def __init__(
        self,
        database: Database,
        chosen: Chosen,
        *,
        version: str,
        own_numbers: frozenset[str] = frozenset(),
        runs_for: RunsFor = lambda call: (),
        afresh: bool = False,
    ) -> None:
        """Go on where the last one was that chose the same and did not end, unless `afresh`.

        `version` names the code that reads; another one begins at the beginning.
        """
        self._database = database
        self._chosen = chosen
        self._digest = partial(digest_delivery, own_numbers=own_numbers, runs_for=runs_for)
        self._size = BATCH_DELIVERIES
        self._task = _name_task(chosen, version, own_numbers)
        with database.writer.begin() as connection:
            place = None if afresh else _read_place(connection, self._task)
            self.is_resumed = place is not None
            self.place = place or _beginning(connection)
            _write_place(connection, self._task, self.place)

    def batches(self, *, rest: Callable[[float], None] | None = None) -> Iterator[Reread]:
        """Read a batch with each step.

        Where others write too, give what to `rest` with: it is called after each batch with the
        seconds they had to wait for it, and batches are made smaller to keep that short.
        """
        scratch = Scratch()
        try:
            while self.place.after < self.place.last:
                reread, wrote_s = self._do_batch(scratch)
                if rest is not None:
                    rest(wrote_s)
                    self._size = _next_size(self._size, wrote_s)
                yield reread
        finally:
            scratch.close()
        with self._database.writer.begin() as connection:
            connection.execute(delete(keys).where(keys.c.name == _PLACE))

    def _do_batch(self, scratch: Scratch) -> tuple[Reread, float]:
        while True:
            with self._database.reader.connect() as connection:
                chosen = self._choose(connection)
                batch = read_again(connection, chosen, self._digest)
            come_to = chosen[-1].id if chosen else self.place.last
            batch, fresh = derive_again(scratch, batch)
            with self._database.writer.begin() as connection:
                began = time.perf_counter()
                reread = write_again(connection, batch, fresh)
                if reread is not None:
                    self.place = Place(come_to, self.place.last)
                    _write_place(connection, self._task, self.place)
            if reread is not None:  # else something was processed or removed meanwhile
                return reread, time.perf_counter() - began

    def _choose(self, connection: Connection) -> list[Row[Any]]:
        """Take the next deliveries, of each session the first of those that are chosen."""
        earlier = deliveries.alias()
        first = ~exists().where(
            earlier.c.session_id == deliveries.c.session_id,
            earlier.c.id < deliveries.c.id,
            *_conditions(earlier, self._chosen),
        )
        found = (
            select(
                deliveries.c.id,
                deliveries.c.session_id,
                length_of(deliveries.c.body).label("body_bytes"),
            )
            .where(
                deliveries.c.id > self.place.after,
                deliveries.c.id <= self.place.last,
                *_conditions(deliveries, self._chosen),
                first,
            )
            .order_by(deliveries.c.id)
            .limit(self._size)
        )
        return _bounded(list(connection.execute(found)))


def registered_runs(connection: Connection) -> RunsFor:
    """Return which handlers want a call, as far as the application that started last wrote it down:
    a handler's own `when` is asked once its turn comes."""
    chosen = select(handlers.c.name, handlers.c.filters).where(handlers.c.hook == "end_of_call")
    registered = [(name, json.loads(filters)) for name, filters in connection.execute(chosen)]
    return lambda call: [
        name
        for name, filters in registered
        if all(getattr(call, field) in wanted for field, wanted in filters.items())
    ]


def _conditions(table: FromClause, chosen: Chosen) -> Iterator[ColumnElement[bool]]:
    # Spelled out, not bound: SQLite then sees that the index of the unparsed answers it.
    if chosen.unparsed:
        yield table.c.outcome == literal_column("'unparsed'")
    else:
        yield table.c.outcome != literal_column("'rejected'")
    if chosen.since is not None:
        yield table.c.received_at >= chosen.since
    if chosen.session_id is not None:
        yield table.c.session_id == clean_text(chosen.session_id)


def _bounded(chosen: list[Row[Any]]) -> list[Row[Any]]:
    """Take as many as go into one batch by their size, at least one."""
    sizes = accumulate(row.body_bytes for row in chosen)
    within = sum(size <= BATCH_BYTES for size in sizes)
    return chosen[: max(within, 1)]


def _next_size(size: int, wrote_s: float) -> int:
    if wrote_s > _WRITE_S:
        return max(size // 2, _LEAST_DELIVERIES)
    return min(size * 2, BATCH_DELIVERIES) if wrote_s < _WRITE_S / 2 else size


def _name_task(chosen: Chosen, version: str, own_numbers: frozenset[str]) -> str:
    named = [version, *map(str, astuple(chosen)), *sorted(own_numbers)]
    return content_hash(json.dumps(named).encode()).hex()


def _beginning(connection: Connection) -> Place:
    return Place(0, connection.scalar(select(func.max(deliveries.c.id))) or 0)


def _read_place(connection: Connection, task: str) -> Place | None:
    kept = connection.scalar(select(keys.c.value).where(keys.c.name == _PLACE))
    named, *place = json.loads(kept) if kept else [None]
    return Place(*place) if named == task else None


def _write_place(connection: Connection, task: str, place: Place) -> None:
    connection.execute(delete(keys).where(keys.c.name == _PLACE))
    value = json.dumps([task, place.after, place.last]).encode()
    connection.execute(insert(keys).values(name=_PLACE, value=value))

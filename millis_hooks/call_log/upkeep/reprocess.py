"""Reads stored deliveries again with the present code: after an upgrade, a fix, a new setting.

They are put into the queue `rereads`, which is processed while the inbox is empty: by the service,
or by the command itself where no service runs. Calls then are as in a new call log, and no handler
is called again. The selection and the position in it are stored: an interrupted command continues.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
)

from ..call_ends import RunsFor
from ..database import Database
from ..deliveries import content_hash
from ..dialects import upsert
from ..sanitize import clean_text
from ..tables import IS_NOT_BEST, deliveries, handlers, inbox, keys, rereads

#: The most deliveries that one transaction puts into the queue.
STEP = 5_000
#: The key of the position that an interrupted command had reached.
_PLACE = "reparse"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Selects the deliveries to read again: all without conditions; `since` is inclusive."""

    unparsed: bool = False
    since: datetime | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reread:
    """The result: the deliveries read, those that became readable (`recovered`), and those that are
    not readable (`unreadable`)."""

    deliveries: int = 0
    recovered: int = 0
    unreadable: int = 0


class Reparse:
    """Puts the selected deliveries into the queue, and counts those that still wait."""

    def __init__(
        self,
        database: Database,
        chosen: Chosen,
        *,
        version: str,
        own_numbers: frozenset[str] = frozenset(),
        afresh: bool = False,
    ) -> None:
        """Go on where an interrupted command with the same selection was, unless `afresh`.

        `version` names the code that reads; with another version it begins at the beginning.
        """
        self._database = database
        self._selection = chosen
        named = [version, *map(str, astuple(chosen)), *sorted(own_numbers)]
        self._task = content_hash(json.dumps(named).encode()).hex()
        with database.reader.connect() as connection:
            kept = connection.scalar(select(keys.c.value).where(keys.c.name == _PLACE))
            newest = connection.scalar(select(func.max(deliveries.c.id))) or 0
            task, after, last = json.loads(kept) if kept and not afresh else (None, 0, newest)
            self.is_resumed = task == self._task
            self._after: int = after if self.is_resumed else 0
            self._last: int = last if self.is_resumed else newest
            self._outcomes_before = self._outcomes(connection)
            self.total = _count(connection, self._chosen())
            if self.is_resumed:
                self.total += _count(connection, select(rereads.c.delivery_id))

    def put_back(self) -> None:
        """Put the selected deliveries into the queue, step by step."""
        while self._after < self._last:
            with self._database.writer.begin() as connection:
                end = min(self._after + STEP, self._last)
                _put_back(connection, self._chosen().where(deliveries.c.id <= end))
                self._after = end
                _write_place(connection, [self._task, self._after, self._last])

    def waiting(self) -> int:
        """Return how many deliveries wait to be read again."""
        with self._database.reader.connect() as connection:
            return _count(connection, select(rereads.c.delivery_id))

    def end(self) -> None:
        """Forget the position, once nothing waits."""
        with self._database.writer.begin() as connection:
            connection.execute(delete(keys).where(keys.c.name == _PLACE))

    def result(self, *, waiting: int) -> Reread:
        """Return the result so far."""
        with self._database.reader.connect() as connection:
            outcomes = self._outcomes(connection)
        done = self._outcomes_before - outcomes
        refused = outcomes["rejected"] - self._outcomes_before["rejected"]
        return Reread(
            deliveries=max(self.total - waiting, 0),
            recovered=max(done["unparsed"] - refused, 0),
            unreadable=outcomes["unparsed"],
        )

    def _chosen(self) -> Select[tuple[int]]:
        """Select what is not in the queue yet. What waits in the inbox will be read anyway."""
        is_ahead = deliveries.c.id > self._after, deliveries.c.id <= self._last
        waits = exists().where(inbox.c.delivery_id == deliveries.c.id)
        return select(deliveries.c.id).where(*is_ahead, *_conditions(self._selection), ~waits)

    def _outcomes(self, connection: Connection) -> Counter[str]:
        """Count the outcomes of the selected deliveries, without the best one."""
        outcome = deliveries.c.outcome
        counted = select(outcome, func.count()).where(IS_NOT_BEST, *_limits(self._selection))
        rows = connection.execute(counted.group_by(outcome))
        return Counter(dict(map(tuple, rows)))


def _count(connection: Connection, chosen: Select[tuple[int]]) -> int:
    return connection.scalar(select(func.count()).select_from(chosen.subquery())) or 0


def _put_back(connection: Connection, chosen: Select[tuple[int]]) -> None:
    new = upsert(connection, rereads).from_select(["delivery_id"], chosen)
    connection.execute(new.on_conflict_do_nothing())


def put_back_one(connection: Connection, delivery_id: int) -> bool:
    """Have a delivery read again; False if there is none that was not rejected."""
    this = select(deliveries.c.id).where(deliveries.c.id == delivery_id, *_conditions(Chosen()))
    if connection.scalar(this) is None:
        return False
    waits = exists().where(inbox.c.delivery_id == deliveries.c.id)
    _put_back(connection, this.where(~waits))
    return True


def registered_runs(connection: Connection) -> RunsFor:
    """Return which handlers match a call, by the filters that the last application to start stored.
    A handler's own `when` is asked when the handler is called."""
    chosen = select(handlers.c.name, handlers.c.filters).where(handlers.c.hook == "end_of_call")
    registered = [(name, json.loads(filters)) for name, filters in connection.execute(chosen)]
    return lambda call: [
        name
        for name, filters in registered
        if all(getattr(call, field) in wanted for field, wanted in filters.items())
    ]


def _conditions(chosen: Chosen) -> Iterator[ColumnElement[bool]]:
    # Spelled out, not bound: SQLite then sees that the index of the unparsed answers it.
    if chosen.unparsed:
        yield deliveries.c.outcome == literal_column("'unparsed'")
    else:
        yield deliveries.c.outcome != literal_column("'rejected'")
    yield from _limits(chosen)


def _limits(chosen: Chosen) -> Iterator[ColumnElement[bool]]:
    if chosen.since is not None:
        yield deliveries.c.received_at >= chosen.since
    if chosen.session_id is not None:
        yield deliveries.c.session_id == clean_text(chosen.session_id)


def _write_place(connection: Connection, place: list[object]) -> None:
    connection.execute(delete(keys).where(keys.c.name == _PLACE))
    connection.execute(insert(keys).values(name=_PLACE, value=json.dumps(place).encode()))

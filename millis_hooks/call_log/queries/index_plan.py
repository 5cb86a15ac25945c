"""Chooses how to find the newest calls that match some filters without reading all calls.

SQLite does not know how many calls a condition leaves, and a plan that is quick for one agent takes
seconds for another. So the log is asked: a filter that leaves few calls names them, and they are
sorted; otherwise an index in the order of time is followed, and all other filters are checked on
the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice
from math import isqrt
from typing import Any, NamedTuple, Protocol, TypeAlias

from sqlalchemy import ColumnElement, Connection, Select, func, literal, not_, select, true, tuple_

from ..search import call_search
from ..tables import calls
from .filters import Lane, Wish, aside

#: So many calls are few: to look at each takes little longer than a page does.
FEW = 500
_PAGE = 50
#: Calls that a search looks through at first, in order of time, and how many times more after that.
_FIRST_PART = 256
_GROWTH = 4

Conditions = Sequence[ColumnElement[bool]]


class Key(NamedTuple):
    """A call's place in the list."""

    received_at: datetime
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of the list, and the direction it is read in.

    It was received from `since` (inclusive) to `until` (exclusive), begins next to `after`, which
    was read before, and ends with `last`.
    """

    since: datetime | None = None
    until: datetime | None = None
    after: Key | None = None
    last: Key | None = None
    newest_first: bool = True

    def holds(self, at: ColumnElement[Any], id_: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        """Say that a call received `at`, of this id, is part of it."""
        inside = [at >= self.since] if self.since else []
        if self.until:
            inside.append(at < self.until)
        if self.after:
            inside.append(self._is_beyond(self.after, at, id_))
        if self.last:
            inside.append(not_(self._is_beyond(self.last, at, id_)))
        return inside

    def order(self, *key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        return [each.desc() if self.newest_first else each.asc() for each in key]

    def _is_beyond(self, key: Key, at: ColumnElement[Any], id_: Any) -> ColumnElement[bool]:
        here = tuple_(at, id_)
        there = tuple_(literal(key.received_at, at.type), literal(key.id, id_.type))
        return here < there if self.newest_first else here > there


class Way(Protocol):
    """A way to the calls that are wanted."""

    @property
    def where(self) -> Conditions:
        """What is checked on the way."""

    def keys(self, connection: Connection, stretch: Stretch, limit: int) -> list[Key]:
        """Return the first `limit` calls of the stretch."""

    def candidates(self, stretch: Stretch, limit: int) -> list[Select[Any]]:
        """Select the ids of the calls on the way, wanted or not, the first `limit` of each lane."""


def choose(connection: Connection, wishes: Sequence[Wish], where: Conditions) -> Way:
    """Choose the way to the calls of which all `wishes` hold, and `where`."""
    named = _named(connection, wishes)
    few = min((each for each in named if len(each[1]) <= FEW), key=_size, default=None)
    if few is not None:
        wish, ids = few
        return _Walk((_sorted(ids),), _without(wish, wishes, where))
    for wish, newest in named:
        if wish.search is not None:
            return _Search(wish.search, newest, _without(wish, wishes, where))
    followed = next((wish for wish in wishes if wish.lanes), None)
    if followed is not None:
        return _Walk(followed.lanes, _without(followed, wishes, where))
    for wish in wishes:
        if wish.ids is not None and wish.is_indexed and _is_sortable(connection, wish.ids):
            return _Walk((_sorted(wish.ids),), _without(wish, wishes, where))
    return _Walk((Lane(true()),), _without(None, wishes, where))


def _sorted(ids: Select[tuple[int]] | Sequence[int]) -> Lane:
    """Return these calls as a lane: all are looked at, and sorted."""
    return Lane(calls.c.id.in_(ids), at=aside(calls.c.received_at), id=aside(calls.c.id))


def _is_sortable(connection: Connection, ids: Select[tuple[int]]) -> bool:
    """Say that there are not so many that to walk past all calls is quicker.

    Of `calls` calls a walk to a page of `n` wanted ones passes `_PAGE / n * calls`.
    """
    most = isqrt(_PAGE * (connection.scalar(select(func.max(calls.c.id))) or 0))
    some = select(func.count()).select_from(ids.limit(most + 1).subquery())
    return connection.execute(some).scalar_one() <= most


def _without(wish: Wish | None, wishes: Sequence[Wish], where: Conditions) -> Conditions:
    return [*where, *(each.where for each in wishes if each is not wish)]


#: A wish and calls it leaves: all of them, or one more than are few.
_Named: TypeAlias = tuple[Wish, Sequence[int]]


def _named(connection: Connection, wishes: Sequence[Wish]) -> list[_Named]:
    """Name calls of each wish an index answers. One that is alone needs it not if it has lanes."""
    asked = [wish for wish in wishes if wish.ids is not None or (wish.lanes and len(wishes) > 1)]
    return [(wish, _some(connection, wish)) for wish in asked]


def _size(named: _Named) -> int:
    return len(named[1])


def _some(connection: Connection, wish: Wish) -> Sequence[int]:
    lanes = [select(lane.id).select_from(lane.rows).where(lane.where) for lane in wish.lanes]
    ids: list[int] = []
    for each in lanes if wish.ids is None else [wish.ids]:
        ids += connection.scalars(each.limit(FEW + 1 - len(ids)))
    return ids


@dataclass(frozen=True, slots=True)
class _Walk:
    """Along lanes."""

    lanes: Sequence[Lane]
    where: Conditions

    def keys(self, connection: Connection, stretch: Stretch, limit: int) -> list[Key]:
        found = chain.from_iterable(
            connection.execute(_along(lane, stretch, limit, self.where)) for lane in self.lanes
        )
        return sorted((Key(*row) for row in found), reverse=stretch.newest_first)[:limit]

    def candidates(self, stretch: Stretch, limit: int) -> list[Select[Any]]:
        return [_along(lane, stretch, limit).with_only_columns(lane.id) for lane in self.lanes]


def _along(lane: Lane, stretch: Stretch, limit: int, where: Conditions = ()) -> Select[Any]:
    wanted = [lane.where, *stretch.holds(lane.at, lane.id), *where]
    along = select(lane.at, lane.id).select_from(lane.rows).where(*wanted)
    return along.order_by(*stretch.order(*lane.led_by, lane.at, lane.id)).limit(limit)


@dataclass(frozen=True, slots=True)
class _Search:
    """Through the search index, which has calls in order of ids and not of time.

    The two differ where calls were imported. So the list is looked through part by part, and the
    index is only asked for the ids there are in each.
    """

    search: ColumnElement[bool]
    newest: Sequence[int]
    where: Conditions

    def keys(self, connection: Connection, stretch: Stretch, limit: int) -> list[Key]:
        found = (
            Key(*row)
            for part, ids in _parts(connection, stretch)
            for row in connection.execute(self._in_part(part, ids, limit))
        )
        return list(islice(found, limit))

    def candidates(self, stretch: Stretch, limit: int) -> list[Select[Any]]:
        return [select(calls.c.id).where(calls.c.id.in_(self.newest)).limit(limit)]

    def _in_part(self, part: Stretch, ids: tuple[int, int], limit: int) -> Select[Any]:
        key = (aside(calls.c.received_at), aside(calls.c.id))
        hits = select(*key).join(call_search, call_search.c.rowid == calls.c.id)
        among = call_search.c.rowid.between(*ids)
        wanted = hits.where(self.search, among, *part.holds(*key), *self.where)
        return wanted.order_by(*part.order(*key)).limit(limit)


def _parts(connection: Connection, stretch: Stretch) -> Iterator[tuple[Stretch, tuple[int, int]]]:
    """Cut a stretch into longer and longer ones; yield each with its lowest and highest id."""
    key = (calls.c.received_at, calls.c.id)
    size = _FIRST_PART
    while True:
        along = select(*key).where(*stretch.holds(*key)).order_by(*stretch.order(*key))
        found = connection.execute(along.limit(1).offset(size - 1)).one_or_none()
        last = Key(*found) if found else None
        part = replace(stretch, last=last)
        # In an order, or PostgreSQL looks for the lowest id along all ids.
        inside = select(calls.c.id).where(*part.holds(*key)).order_by(*part.order(*key)).subquery()
        bounds = select(func.min(inside.c.id), func.max(inside.c.id))
        lowest, highest = connection.execute(bounds).one()
        if lowest is not None:
            yield part, (lowest, highest)
        if last is None:
            return
        stretch, size = replace(stretch, after=last), size * _GROWTH

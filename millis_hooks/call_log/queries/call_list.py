"""The list of calls: a page of those that filters leave, and the number of each outcome.

SQLite does not know how many calls a condition leaves, and a query plan that is quick for one agent
takes seconds for another. So the log is asked, by three rules: a filter that leaves few calls names
them, and they are sorted; a search is looked up part by part of the list; otherwise an index in the
order of time is followed, and all other filters are checked on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain, islice
from math import isqrt
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, not_, select, true

from ...protocol.call_status import Outcome
from ..search import call_search
from ..tables import calls
from .filters import (
    IS_REAL,
    OUTCOMES,
    CallFilter,
    Filter,
    IndexScan,
    aside,
    filters_of,
    is_over,
    is_overdue,
)
from .paging import Paged, Place, Window, read_page

#: So many calls are few: to look at each takes little longer than a page does. Counts stop here,
#: too: "500+" is as useful as the number, and has a bounded price.
FEW = 500
_PAGE = 50
#: Calls that a search looks through at first, in order of time, and how many times more after that.
_FIRST_PART = 256
_GROWTH = 4

#: Calls that were made up and have no end are in no tab but the one of all.
_IS_UNENDED = and_(calls.c.ended_at.is_(None), not_(IS_REAL))
_UNENDED = "unended"


class Counts(NamedTuple):
    """How many calls there are in all and of each outcome; of those in `at_least` maybe more."""

    counts: Mapping[str, int]
    at_least: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How calls are found: along `scans`, or of a `search` part by part; `where` is checked.

    The two orders of a search, by ids in its index and by time, differ where calls were imported.
    `newest` are the first ids it found.
    """

    scans: Sequence[IndexScan]
    where: Sequence[ColumnElement[bool]]
    search: ColumnElement[bool] | None = None
    newest: Sequence[int] = ()

    def places(self, connection: Connection, window: Window, limit: int) -> list[Place]:
        """Return the first `limit` calls of a window."""
        if self.search is not None:
            hits = self._hits(connection, self.search, window, limit)
            return list(islice(hits, limit))
        found = chain.from_iterable(
            connection.execute(_along(scan, window, limit, self.where)) for scan in self.scans
        )
        return sorted((Place(*row) for row in found), reverse=window.newest_first)[:limit]

    def candidates(self, window: Window, limit: int) -> list[Select[Any]]:
        """Select the first ids of each scan, whether or not `where` holds of them."""
        if self.search is not None:
            return [select(calls.c.id).where(calls.c.id.in_(self.newest)).limit(limit)]
        return [_along(scan, window, limit).with_only_columns(scan.id) for scan in self.scans]

    def _hits(
        self, connection: Connection, search: ColumnElement[bool], window: Window, limit: int
    ) -> Iterator[Place]:
        key = (aside(calls.c.received_at), aside(calls.c.id))
        hits = select(*key).join(call_search, call_search.c.rowid == calls.c.id)
        for part, ids in _parts(connection, window):
            among = call_search.c.rowid.between(*ids)
            matching = hits.where(search, among, *part.holds(*key), *self.where)
            for row in connection.execute(matching.order_by(*part.order(*key)).limit(limit)):
                yield Place(*row)


class CallList:
    """The calls that filters leave."""

    def __init__(self, connection: Connection, filters: CallFilter, now: datetime) -> None:
        self._connection = connection
        self._now = now
        since, until = filters.period(now)
        self._window = Window(since=since, until=until)
        every = filters_of(filters)
        self._others = filters_of(replace(filters, outcome=None))
        self._plan = self._choose(every)
        self._plan_of_others = (
            self._plan if len(every) == len(self._others) else self._choose(self._others)
        )

    def page(self, *, before: str | None, after: str | None, size: int) -> Paged[Place]:
        """Find the page next to a cursor; one that cannot be read is ignored."""
        return read_page(
            self._places, _itself, window=self._window, before=before, after=after, size=size
        )

    def around(self, place: Place) -> tuple[int | None, int | None]:
        """Find the calls next to a place, the newer and the older; it need not be listed."""
        newer = self._places(replace(self._window, after=place, newest_first=False), 1)
        older = self._places(replace(self._window, after=place), 1)
        return (newer[0].id if newer else None, older[0].id if older else None)

    def count(self) -> Counts:
        """Count the calls of each outcome under all other filters, the newest at most."""
        if self._others:
            return _count_on(self._connection, self._plan_of_others, self._window)
        return _count_all(self._connection, self._window, self._now)

    def _places(self, window: Window, limit: int) -> list[Place]:
        return self._plan.places(self._connection, window, limit)

    def _choose(self, filters: Sequence[Filter]) -> _Plan:
        return _choose(self._connection, filters, [is_over(self._now)])


def _itself(place: Place) -> Place:
    return place


def _choose(
    connection: Connection, filters: Sequence[Filter], where: Sequence[ColumnElement[bool]]
) -> _Plan:
    def checked_but(found: Filter | None) -> list[ColumnElement[bool]]:
        return [*where, *(each.where for each in filters if each is not found)]

    # One that is alone is not asked for its calls if an index has them in order of time.
    asked = [each for each in filters if each.ids is not None or (each.scans and len(filters) > 1)]
    named = [(each, _some(connection, each)) for each in asked]
    few = min((each for each in named if len(each[1]) <= FEW), key=_size, default=None)
    if few is not None:
        return _Plan([_sorted(few[1])], checked_but(few[0]))
    for each, newest in named:
        if each.search is not None:
            return _Plan([], checked_but(each), each.search, newest)
    for each in filters:
        if each.scans:
            return _Plan(each.scans, checked_but(each))
    for each in filters:
        if each.ids is not None and each.is_indexed and _is_sortable(connection, each.ids):
            return _Plan([_sorted(each.ids)], checked_but(each))
    return _Plan([IndexScan(true())], checked_but(None))


def _size(named: tuple[Filter, Sequence[int]]) -> int:
    return len(named[1])


def _some(connection: Connection, filter_: Filter) -> Sequence[int]:
    """Return the ids of calls it leaves: all of them, or one more than are few."""
    scans = [select(scan.id).select_from(scan.rows).where(scan.where) for scan in filter_.scans]
    ids: list[int] = []
    for each in scans if filter_.ids is None else [filter_.ids]:
        ids += connection.scalars(each.limit(FEW + 1 - len(ids)))
    return ids


def _sorted(ids: Select[tuple[int]] | Sequence[int]) -> IndexScan:
    """Look at each of these calls, and sort them."""
    return IndexScan(calls.c.id.in_(ids), at=aside(calls.c.received_at), id=aside(calls.c.id))


def _is_sortable(connection: Connection, ids: Select[tuple[int]]) -> bool:
    """Tell whether to sort these calls is quicker than to go past all calls.

    Of `calls` calls one goes past `_PAGE / n * calls` to a page of `n` that match.
    """
    most = isqrt(_PAGE * (connection.scalar(select(func.max(calls.c.id))) or 0))
    some = select(func.count()).select_from(ids.limit(most + 1).subquery())
    return connection.execute(some).scalar_one() <= most


def _along(
    scan: IndexScan, window: Window, limit: int, where: Sequence[ColumnElement[bool]] = ()
) -> Select[Any]:
    matching = [scan.where, *window.holds(scan.at, scan.id), *where]
    along = select(scan.at, scan.id).select_from(scan.rows).where(*matching)
    return along.order_by(*window.order(*scan.led_by, scan.at, scan.id)).limit(limit)


def _parts(connection: Connection, window: Window) -> Iterator[tuple[Window, tuple[int, int]]]:
    """Cut a window into longer and longer ones; yield each with its lowest and highest id."""
    key = (calls.c.received_at, calls.c.id)
    size = _FIRST_PART
    while True:
        along = select(*key).where(*window.holds(*key)).order_by(*window.order(*key))
        found = connection.execute(along.limit(1).offset(size - 1)).one_or_none()
        last = Place(*found) if found else None
        part = replace(window, last=last)
        # In an order, or PostgreSQL looks for the lowest id along all ids.
        inside = select(calls.c.id).where(*part.holds(*key)).order_by(*part.order(*key)).subquery()
        bounds = select(func.min(inside.c.id), func.max(inside.c.id))
        lowest, highest = connection.execute(bounds).one()
        if lowest is not None:
            yield part, (lowest, highest)
        if last is None:
            return
        window, size = replace(window, after=last), size * _GROWTH


def _count_all(connection: Connection, window: Window, now: datetime) -> Counts:
    """Count each outcome by its index, without looking at a call."""
    inside = window.holds(calls.c.received_at, calls.c.id)
    by_outcome = {outcome.value: calls.c.outcome == outcome.value for outcome in Outcome}
    unended = [(None, is_overdue(now)), (_UNENDED, _IS_UNENDED)]
    counted = [
        _capped(select(calls.c.id).where(where, *inside)).label(_tab(outcome))
        for outcome, where in [*by_outcome.items(), *unended]
    ]
    counts = dict(connection.execute(select(*counted)).mappings().one())
    return _counts(counts, {tab for tab, count in counts.items() if count > FEW})


def _capped(rows: Select[Any]) -> ColumnElement[int]:
    return select(func.count()).select_from(rows.limit(FEW + 1).subquery()).scalar_subquery()


def _count_on(connection: Connection, plan: _Plan, window: Window) -> Counts:
    """Count what matches among the newest calls of the plan, up to `FEW` of those."""
    counts: Counter[str] = Counter()
    seen = 0
    for candidates in plan.candidates(window, FEW + 1):
        by_outcome = _by_outcome(plan, candidates.limit(FEW + 1 - seen), window)
        for outcome, is_match, count in connection.execute(by_outcome):
            seen += count
            counts[_tab(outcome)] += count if is_match else 0
    return _counts(counts, set(OUTCOMES) if seen > FEW else set())


def _by_outcome(plan: _Plan, candidates: Select[Any], window: Window) -> Select[Any]:
    found = candidates.subquery()
    matches = and_(*window.holds(calls.c.received_at, calls.c.id), *plan.where)
    is_match = case((matches, 1), else_=0).label("is_match")
    outcome = case((_IS_UNENDED, _UNENDED), else_=calls.c.outcome).label("shown")
    by_outcome = select(outcome, is_match, func.count())
    return by_outcome.join(found, calls.c.id == found.c[0]).group_by("shown", "is_match")


def _tab(outcome: str | None) -> str:
    return outcome or "lost"


def _counts(counts: Mapping[str, int], cut: set[str]) -> Counts:
    total = sum(counts.values())
    by_tab = {tab: min(counts.get(tab, 0), FEW) for tab in OUTCOMES}
    at_least = tuple(tab for tab in OUTCOMES if tab in cut)
    if at_least or total > FEW:
        at_least = ("all", *at_least)
    return Counts({"all": min(total, FEW), **by_tab}, at_least)

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
from itertools import chain, filterfalse, islice
from math import isqrt
from time import monotonic
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    case,
    func,
    not_,
    select,
    true,
)
from sqlalchemy.exc import SQLAlchemyError

from ...protocol.call_status import Outcome
from ..results import kept_of, results_of
from ..search import Excerpt, call_search, clean_query
from ..sessions import excerpts_of
from ..statements import among, aside
from ..tables import IS_OF_CALL, calls, handler_runs
from .filters import (
    IS_REAL,
    OUTCOMES,
    CallFilter,
    Filter,
    IndexScan,
    filters_of,
    is_of,
    is_over,
    is_overdue,
)
from .paging import Paged, Place, Window, read_page
from .records import Call, ListedCall, Page, RunCounts, read_as

MAX_PAGE_SIZE = 100
#: Up to here calls are few: to look at each takes little longer than a page does.
FEW = 500
#: Counts stop here, or after this number of seconds.
MOST_COUNTED = 10_000
COUNT_S = 0.1
_PAGE = 50
#: Calls that a search looks through at first, in order of time, and how many times more after that.
_FIRST_PART = 256
_GROWTH = 4
#: Calls that are counted at once: the time is looked at after each part.
_COUNTED_AT_ONCE = 1_000

#: Calls that were made up and have no end are in no tab but the one of all.
_IS_UNENDED = and_(calls.c.ended_at.is_(None), not_(IS_REAL))
_UNENDED = "unended"


class Counts(NamedTuple):
    """How many calls there are in all and of each outcome: None where that was not counted to the
    end, and more than that of those in `at_least`."""

    counts: Mapping[str, int | None]
    at_least: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How calls are found: along `scans`, or of a `search` part by part; `where` is checked.

    The two orders of a search, by ids in its index and by time, differ where calls were imported.
    """

    scans: Sequence[IndexScan]
    where: Sequence[ColumnElement[bool]]
    search: ColumnElement[bool] | None = None

    def places(self, connection: Connection, window: Window, limit: int) -> list[Place]:
        """Return the first `limit` calls of a window."""
        if self.search is not None:
            hits = self._hits(connection, self.search, window, limit)
            return list(islice(hits, limit))
        found = chain.from_iterable(
            connection.execute(_along(scan, window, limit, self.where)) for scan in self.scans
        )
        return sorted((Place(*row) for row in found), reverse=window.newest_first)[:limit]

    def count(self, connection: Connection, window: Window) -> Iterator[tuple[Counter[str], bool]]:
        """Count the calls of each outcome, part by part; yield with each whether there is more."""
        if self.search is not None:
            yield from self._count_hits(connection, self.search, window)
        for scan in self.scans:
            part: Window | None = window
            while part is not None:
                found = _along(scan, part, _COUNTED_AT_ONCE)
                following = found.offset(_COUNTED_AT_ONCE - 1).limit(1)
                last = connection.execute(following).one_or_none()
                candidates = found.with_only_columns(scan.id).subquery()
                by_outcome = self._by_outcome(candidates, window)
                counts = Counter({_tab(tab): n for tab, n, *_ in connection.execute(by_outcome)})
                yield counts, last is not None or scan is not self.scans[-1]
                part = replace(part, after=Place(*last)) if last else None

    def _count_hits(
        self, connection: Connection, search: ColumnElement[bool], window: Window
    ) -> Iterator[tuple[Counter[str], bool]]:
        """Count the hits of a search in the order of its index: of a period those of its ids."""
        lowest, below = _ids_of(connection, window)
        while below is not None:
            t = call_search.c
            hits = select(t.rowid).where(search, t.rowid >= lowest, t.rowid < below)
            hits = hits.order_by(t.rowid.desc()).limit(_COUNTED_AT_ONCE)
            counts: Counter[str] = Counter()
            below, seen = None, 0
            for tab, matching, count, first in connection.execute(
                self._by_outcome(hits.subquery(), window)
            ):
                counts[_tab(tab)] += matching
                seen += count
                below = first if below is None else min(first, below)
            below = below if seen == _COUNTED_AT_ONCE else None
            yield counts, below is not None

    def _by_outcome(self, candidates: FromClause, window: Window) -> Select[Any]:
        """Select, of these candidates, the number of each outcome that match and of all, and the
        lowest id."""
        matches = and_(*window.holds(calls.c.received_at, calls.c.id), *self.where)
        outcome = case((_IS_UNENDED, _UNENDED), else_=calls.c.outcome).label("tab")
        counted = select(
            outcome, func.count(case((matches, 1))), func.count(), func.min(calls.c.id)
        )
        return counted.join(candidates, calls.c.id == candidates.c[0]).group_by("tab")

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
        self._filters = filters
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
        """Count the calls of each outcome under all other filters."""
        if self._others:
            return _count_on(self._connection, self._plan_of_others, self._window)
        return _count_all(self._connection, self._window, self._now, self._filters.source)

    def _places(self, window: Window, limit: int) -> list[Place]:
        return self._plan.places(self._connection, window, limit)

    def _choose(self, filters: Sequence[Filter]) -> _Plan:
        return _choose(self._connection, filters, [is_over(self._now), is_of(self._filters.source)])


def list_calls(
    connection: Connection,
    filters: CallFilter,
    *,
    now: datetime,
    before: str | None = None,
    after: str | None = None,
    size: int = _PAGE,
) -> Page:
    """List calls that ended and calls whose end is overdue, newest received first.

    `before` and `after` are cursors of an earlier page; one that cannot be read is ignored. A
    search that its index cannot answer is tried once more without it.
    """
    size = max(1, min(size, MAX_PAGE_SIZE))

    def page(filters: CallFilter) -> Page:
        listing = CallList(connection, filters, now)
        places = listing.page(before=before, after=after, size=size)
        searched = "" if filters.plainly else clean_query(filters.q)
        failed = replace(filters, outcome=None, handler="failed")
        return Page(
            _with_details(connection, [place.id for place in places.rows], searched),
            places.newer,
            places.older,
            *listing.count(),
            failed_handlers=_count(connection, failed, now),
            hidden=hidden_count(connection, filters, now),
            is_plain=filters.plainly,
        )

    try:
        return page(filters)
    except SQLAlchemyError:
        if not (filters.q or filters.number):
            raise
        connection.rollback()
        return page(replace(filters, plainly=True))


def hidden_count(connection: Connection, filters: CallFilter, now: datetime) -> int | None:
    """Count the rehearsals and tests that a list of real calls leaves out, up to 10,000; None if
    that takes too long."""
    if filters.source != "real":
        return 0
    return _count(connection, replace(filters, source="made_up"), now)


def neighbors(
    connection: Connection, call: Call, filters: CallFilter, now: datetime
) -> tuple[str | None, str | None]:
    """Return the sessions next to a call in a list, the newer one and the older one."""
    ids = CallList(connection, filters, now).around(Place(call.received_at, call.id))
    beside = select(calls.c.id, calls.c.session_id).where(calls.c.id.in_(ids))
    sessions = {row.id: row.session_id for row in connection.execute(beside)}
    return sessions.get(ids[0]), sessions.get(ids[1])


def _count(connection: Connection, filters: CallFilter, now: datetime) -> int | None:
    return CallList(connection, filters, now).count().counts["all"]


def _with_details(connection: Connection, ids: Sequence[int], query: str) -> tuple[ListedCall, ...]:
    rows = connection.execute(select(calls).where(calls.c.id.in_(ids))).mappings()
    found = {row["id"]: read_as(Call, row) for row in rows}
    runs = _run_counts(connection, ids)
    results, kept = results_of(connection, ids), kept_of(connection, ids)
    sessions = [each.session_id for each in found.values()]
    around = excerpts_of(connection, query, sessions) if query else {}
    return tuple(
        ListedCall(
            found[id_],
            runs.get(id_, RunCounts()),
            *_first(around.get(found[id_].session_id, ())),
            results=results.get(id_, ()),
            kept=kept.get(id_, {}),
        )
        for id_ in ids
    )


def _first(excerpts: Sequence[Excerpt]) -> tuple[Excerpt | None, Sequence[Excerpt]]:
    return (excerpts[0] if excerpts else None), excerpts[1:]


def _run_counts(connection: Connection, call_ids: Sequence[int]) -> dict[int, RunCounts]:
    state = handler_runs.c.state
    counted = (
        select(
            handler_runs.c.call_id,
            func.count(),
            func.count(case((state == "retrying", 1))),
            func.count(case((state == "failed", 1))),
            func.count(case((state.in_(["pending", "running"]), 1))),
        )
        .where(IS_OF_CALL, handler_runs.c.call_id.in_(call_ids))
        .group_by(handler_runs.c.call_id)
    )
    return {call_id: RunCounts(*numbers) for call_id, *numbers in connection.execute(counted)}


def _itself(place: Place) -> Place:
    return place


def _choose(
    connection: Connection, filters: Sequence[Filter], where: Sequence[ColumnElement[bool]]
) -> _Plan:
    def checked_but(found: Filter | None) -> list[ColumnElement[bool]]:
        return [*where, *(each.where for each in filters if each is not found)]

    # One that is alone is not asked for its calls if an index has them in order of time.
    is_one = sum(1 for each in filters if each.ids is not None or each.scans) == 1
    asked = [each for each in filters if each.ids is not None or (each.scans and not is_one)]
    few = None
    # A search takes longest to answer, and is not asked where another filter leaves few calls.
    for group in (filter(_is_no_search, asked), filterfalse(_is_no_search, asked)):
        named = [(each, _some(connection, each)) for each in group if few is None]
        few = few or min((each for each in named if len(each[1]) <= FEW), key=_size, default=None)
    if few is not None:
        return _Plan([_sorted(few[1])] if few[1] else [], checked_but(few[0]))
    for each in filters:
        if each.search is not None:
            return _Plan([], checked_but(each), each.search)
    for each in filters:
        if each.scans:
            return _Plan(each.scans, checked_but(each))
    for each in filters:
        if each.ids is not None and each.is_indexed and _is_sortable(connection, each.ids):
            return _Plan([_sorted(each.ids)], checked_but(each))
    return _Plan([IndexScan(true())], checked_but(None))


def _is_no_search(each: Filter) -> bool:
    return each.search is None


def _size(named: tuple[Filter, Sequence[int]]) -> int:
    return len(named[1])


def _some(connection: Connection, filter_: Filter) -> Sequence[int]:
    """Return the ids of calls it leaves: all of them, or one more than are few."""
    scans = [select(scan.id).select_from(scan.rows).where(scan.where) for scan in filter_.scans]
    ids: list[int] = []
    for each in scans if filter_.ids is None else [filter_.ids]:
        ids += connection.scalars(each.limit(FEW + 1 - len(ids))).all()
    return ids


def _sorted(ids: Select[tuple[int]] | Sequence[int]) -> IndexScan:
    """Look at each of these calls, and sort them."""
    is_one = calls.c.id.in_(ids) if isinstance(ids, Select) else among(calls.c.id, ids)
    return IndexScan(is_one, at=aside(calls.c.received_at), id=aside(calls.c.id))


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


def _ids_of(connection: Connection, window: Window) -> tuple[int, int | None]:
    """Return the lowest id of a window, and one above the highest; None if it has no call."""
    if window.since is None and window.until is None:
        highest = connection.scalar(select(func.max(calls.c.id)))
        return 0, None if highest is None else highest + 1
    inside = select(calls.c.id).where(*window.holds(calls.c.received_at, calls.c.id))
    ids = inside.order_by(*window.order(calls.c.received_at, calls.c.id)).subquery()
    lowest, highest = connection.execute(select(func.min(ids.c.id), func.max(ids.c.id))).one()
    return lowest or 0, None if highest is None else highest + 1


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


def _count_all(connection: Connection, window: Window, now: datetime, source: str) -> Counts:
    """Count each outcome by its index, without looking at a call."""
    inside = [*window.holds(calls.c.received_at, calls.c.id), is_of(source)]
    by_outcome = {outcome.value: calls.c.outcome == outcome.value for outcome in Outcome}
    unended = [(None, is_overdue(now)), (_UNENDED, and_(_IS_UNENDED, is_over(now)))]
    counted = [
        _capped(select(calls.c.id).where(where, *inside)).label(_tab(outcome))
        for outcome, where in [*by_outcome.items(), *unended]
    ]
    counts = dict(connection.execute(select(*counted)).mappings().one())
    return _counts(counts, is_whole=True)


def _capped(rows: Select[Any]) -> ColumnElement[int]:
    some = rows.limit(MOST_COUNTED + 1).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


def _count_on(connection: Connection, plan: _Plan, window: Window) -> Counts:
    """Count what the plan finds, until there are too many or the time is over."""
    counts: Counter[str] = Counter()
    until = monotonic() + COUNT_S
    for part, has_more in plan.count(connection, window):
        counts += part
        if has_more and (counts.total() > MOST_COUNTED or monotonic() > until):
            return _counts(counts, is_whole=False)
    return _counts(counts, is_whole=True)


def _tab(outcome: str | None) -> str:
    return outcome or "lost"


def _counts(counts: Mapping[str, int], *, is_whole: bool) -> Counts:
    """Return what is certain: of tabs that were not counted to the end only that they have more."""
    by_tab = {"all": sum(counts.values()), **{tab: counts.get(tab, 0) for tab in OUTCOMES}}
    more = tuple(tab for tab, count in by_tab.items() if count > MOST_COUNTED)
    known = {tab: count if is_whole else None for tab, count in by_tab.items()}
    return Counts(known | dict.fromkeys(more, MOST_COUNTED), more)

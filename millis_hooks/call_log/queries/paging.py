"""One page of calls, newest first, and the number of calls of each outcome.

Pages are keyed by (received time, id), so calls that arrive do not shift an open page.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, not_, select

from ...protocol.call_status import Outcome
from ..tables import calls
from .filters import IS_REAL, OUTCOMES, CallFilter, Wish, is_over, is_overdue, wishes
from .index_plan import FEW, Key, Stretch, Way, choose

#: Counts stop here: "500+" is as useful as the number, and has a bounded price.
COUNT_CAP = FEW

#: Calls that were made up and have no end are in no tab but the one of all.
_IS_UNENDED = and_(calls.c.ended_at.is_(None), not_(IS_REAL))
_UNENDED = "unended"


class Keys(NamedTuple):
    """The calls of a page, newest first; a cursor is None where there is no further page."""

    ids: list[int]
    newer: str | None
    older: str | None


class Counts(NamedTuple):
    """How many calls there are in all and of each outcome; of those in `at_least` maybe more."""

    counts: Mapping[str, int]
    at_least: tuple[str, ...]


class Listing:
    """The calls that a filter leaves."""

    def __init__(self, connection: Connection, wanted: CallFilter, now: datetime) -> None:
        self._connection = connection
        self._now = now
        since, until = wanted.period(now)
        self._all = Stretch(since=since, until=until)
        wished = wishes(wanted)
        self._others = wishes(replace(wanted, outcome=None))
        self._way = self._choose(wished)
        self._way_to_others = (
            self._way if len(wished) == len(self._others) else self._choose(self._others)
        )

    def page(self, *, before: str | None, after: str | None, size: int) -> Keys:
        """Find the page next to a cursor; one that cannot be read is ignored."""
        if (place := _place(after)) is not None:
            newer = replace(self._all, after=place, newest_first=False)
            keys = self._way.keys(self._connection, newer, size + 1)
            if len(keys) > size:
                keys = keys[:size][::-1]
                return Keys(_ids(keys), cursor_of(keys[0]), cursor_of(keys[-1]))
            # Fewer than a page are newer: this is the first page.
        place = _place(before) if after is None else None
        keys = self._way.keys(self._connection, replace(self._all, after=place), size + 1)
        more, keys = len(keys) > size, keys[:size]
        back = cursor_of(keys[0]) if place is not None and keys else None
        return Keys(_ids(keys), back, cursor_of(keys[-1]) if more else None)

    def around(self, key: Key) -> tuple[int | None, int | None]:
        """Find the calls next to this one, the newer and the older; it need not be listed."""
        newer, older = (
            self._way.keys(
                self._connection, replace(self._all, after=key, newest_first=newest_first), 1
            )
            for newest_first in (False, True)
        )
        return (newer[0].id if newer else None, older[0].id if older else None)

    def count(self) -> Counts:
        """Count the calls of each outcome under all other filters, the newest at most."""
        if self._others:
            return _count_on(self._connection, self._way_to_others, self._all)
        return _count_all(self._connection, self._all, self._now)

    def _choose(self, wished: Sequence[Wish]) -> Way:
        return choose(self._connection, wished, [is_over(self._now)])


def _count_all(connection: Connection, stretch: Stretch, now: datetime) -> Counts:
    """Count each outcome by its index, without looking at a call."""
    inside = stretch.holds(calls.c.received_at, calls.c.id)
    by_outcome = {outcome.value: calls.c.outcome == outcome.value for outcome in Outcome}
    unended = [(None, is_overdue(now)), (_UNENDED, _IS_UNENDED)]
    counted = [
        _capped(select(calls.c.id).where(where, *inside)).label(_tab(outcome))
        for outcome, where in [*by_outcome.items(), *unended]
    ]
    counts = dict(connection.execute(select(*counted)).mappings().one())
    return _told(counts, {tab for tab, count in counts.items() if count > COUNT_CAP})


def _capped(rows: Select[Any]) -> ColumnElement[int]:
    return select(func.count()).select_from(rows.limit(COUNT_CAP + 1).subquery()).scalar_subquery()


def _count_on(connection: Connection, way: Way, stretch: Stretch) -> Counts:
    """Count what is wanted among the newest calls on the way, up to `COUNT_CAP` of those."""
    counts: Counter[str] = Counter()
    seen = 0
    for candidates in way.candidates(stretch, COUNT_CAP + 1):
        by_outcome = _by_outcome(way, candidates.limit(COUNT_CAP + 1 - seen), stretch)
        for outcome, is_wanted, count in connection.execute(by_outcome):
            seen += count
            counts[_tab(outcome)] += count if is_wanted else 0
    return _told(counts, set(OUTCOMES) if seen > COUNT_CAP else set())


def _by_outcome(way: Way, candidates: Select[Any], stretch: Stretch) -> Select[Any]:
    found = candidates.subquery()
    is_wanted = and_(*stretch.holds(calls.c.received_at, calls.c.id), *way.where)
    wanted = case((is_wanted, 1), else_=0).label("is_wanted")
    outcome = case((_IS_UNENDED, _UNENDED), else_=calls.c.outcome).label("shown")
    by_outcome = select(outcome, wanted, func.count())
    return by_outcome.join(found, calls.c.id == found.c[0]).group_by("shown", "is_wanted")


def _tab(outcome: str | None) -> str:
    return outcome or "lost"


def _told(counts: Mapping[str, int], cut: set[str]) -> Counts:
    total = sum(counts.values())
    told = {tab: min(counts.get(tab, 0), COUNT_CAP) for tab in OUTCOMES}
    at_least = tuple(tab for tab in OUTCOMES if tab in cut)
    if at_least or total > COUNT_CAP:
        at_least = ("all", *at_least)
    return Counts({"all": min(total, COUNT_CAP), **told}, at_least)


def _ids(keys: Sequence[Key]) -> list[int]:
    return [key.id for key in keys]


def cursor_of(key: Key) -> str:
    """Return what names a call's place in addresses."""
    place = json.dumps([key.received_at.isoformat(), key.id])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str | None) -> Key | None:
    if not cursor:
        return None
    try:
        place = base64.urlsafe_b64decode(cursor.encode() + b"==")
        received_at, call_id = json.loads(place)
        at = datetime.fromisoformat(received_at).astimezone(UTC)
        return Key(at, call_id) if isinstance(call_id, int) and 0 <= call_id < 2**63 else None
    except (ValueError, TypeError, RecursionError, OverflowError):
        return None

"""Filters of calls, each as a condition on `calls` and, where one helps, an index.

`call_list.py` chooses between the indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    exists,
    func,
    not_,
    or_,
    select,
    true,
)

from ...protocol.phones import digits_of, is_international, looked_for
from ...protocol.test_marks import MADE_UP_SOURCES, SANDBOX_SOURCE
from ..results import ResultFilter
from ..sanitize import metadata_text
from ..search import (
    Field,
    Term,
    clean_query,
    holds,
    index_match,
    matching_ids,
    terms_of,
    whole_item,
)
from ..statements import aside
from ..tables import (
    IS_OF_CALL,
    IS_OPEN,
    IS_REPEATED,
    IS_UNHANDLED,
    IS_UNPARSED,
    call_metadata,
    call_results,
    calls,
    deliveries,
    handler_runs,
)
from .records import LIVE_FOR, REHEARSED_FOR

#: How far back a list looks. `None` is as far as there are calls.
RANGES: Mapping[str, timedelta | None] = {
    "today": timedelta(),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
    "all": None,
}

#: The tabs over the list; `lost` has no outcome at all.
OUTCOMES = ("completed", "chat", "voicemail", "timeout", "unreached", "failed", "lost")

CHANNELS = ("phone", "web", "chat")
DIRECTIONS = ("inbound", "outbound")

#: Who made the calls of a list: Millis, the sandbox, `send` and tests, or any of them.
SOURCES = ("real", "sandbox", "test", "all")
_MADE_UP_BY: Mapping[str, frozenset[str]] = {
    "sandbox": frozenset({SANDBOX_SOURCE}),
    "test": MADE_UP_SOURCES - {SANDBOX_SOURCE},
    "made_up": MADE_UP_SOURCES,
}

#: `retrying` and `failed` are states of a run of the call, `none` is that it has no run.
HANDLER_STATES = ("retrying", "failed", "none")

#: Values of one filter that are looked up one by one; more are looked for among all calls.
_SCANS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFilter:
    """Which calls a list holds: those all of it applies to. What is empty narrows nothing.

    `status` and `agent` hold alternatives, `metadata` pairs of key and value that all have to be
    there, as have `results`. `function` and `provider` are names, and `number` is either side's, or
    a part of it, in any spelling. `since` (inclusive) and `until` (exclusive) are when a call was
    received and take the place of `range`; they are aware. Lengths are in seconds and costs in
    credits, both ends inclusive. `unparsed` wants a delivery that could not be read, `duplicate` an
    end-of-call that came more than once. `source` is one of `SOURCES`, or `made_up`:
    sandbox and test together.

    `range` "today" begins at midnight in `zone`. With `plainly`, `q` is a whole id or number: what
    can be looked for without the search index.
    """

    q: str = ""
    source: str = "real"
    outcome: str | None = None
    status: tuple[str, ...] = ()
    agent: tuple[str, ...] = ()
    channel: str | None = None
    direction: str | None = None
    number: str | None = None
    range: str = "7d"
    since: datetime | None = None
    until: datetime | None = None
    min_s: float | None = None
    max_s: float | None = None
    cost_min: float | None = None
    cost_max: float | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    results: tuple[ResultFilter, ...] = ()
    function: str | None = None
    provider: str | None = None
    handler: str | None = None
    unparsed: bool = False
    duplicate: bool = False
    plainly: bool = False
    zone: tzinfo = field(default=UTC, compare=False)

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves out real calls."""
        return self.source not in ("real", "all") or replace(self, source="all") != ALL_CALLS

    def period(self, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Return when the calls were received: since (inclusive) and until (exclusive)."""
        if self.since or self.until:
            return self.since, self.until
        span = RANGES.get(self.range, RANGES["7d"])
        if span is None:
            return None, None
        return now - span if span else midnight(now, self.zone), None


#: Lets every call through.
ALL_CALLS = CallFilter(range="all", source="all")


@dataclass(frozen=True, slots=True)
class IndexScan:
    """Calls that an index has in order of time, under `at` and `id`.

    `where` leaves one value of each column of `led_by`, with which the index begins. PostgreSQL has
    to be told so where that is NULL.
    """

    where: ColumnElement[bool]
    rows: FromClause = calls
    at: ColumnElement[Any] = calls.c.received_at
    id: ColumnElement[Any] = calls.c.id
    led_by: tuple[ColumnElement[Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition for calls, and the ways an index may find them.

    `where` is the condition without an index. `scans` have all matching calls, none of them twice;
    `ids` selects them in no order, by an index if it is `is_indexed`; `search` is the condition for
    a row of the search index. A filter may have none of these.
    """

    where: ColumnElement[bool]
    scans: tuple[IndexScan, ...] = ()
    ids: Select[tuple[int]] | None = None
    is_indexed: bool = True
    search: ColumnElement[bool] | None = None


#: Whether Millis made a call; rehearsals and tests it knows nothing of.
IS_REAL: ColumnElement[bool] = or_(
    calls.c.source.is_(None), calls.c.source.not_in(sorted(MADE_UP_SOURCES))
)


def within(since: datetime | None, until: datetime | None) -> list[ColumnElement[bool]]:
    """Return the conditions for a call to have been received in that time."""
    after = [calls.c.received_at >= since] if since else []
    return [*after, calls.c.received_at < until] if until else after


def is_over(now: datetime) -> ColumnElement[bool]:
    """Return the condition for a call not to be shown as live: it has ended, or should have."""
    received_at = aside(calls.c.received_at)
    return or_(
        calls.c.ended_at.is_not(None),
        received_at < now - LIVE_FOR,
        and_(not_(IS_REAL), received_at < now - REHEARSED_FOR),
    )


def is_overdue(now: datetime) -> ColumnElement[bool]:
    """Return the condition for a call's end to be overdue."""
    return and_(calls.c.ended_at.is_(None), calls.c.received_at < now - LIVE_FOR, IS_REAL)


def is_live(now: datetime, source: str = "real") -> ColumnElement[bool]:
    """Return the condition for a call's end to be still awaited."""
    is_awaited = or_(IS_REAL, calls.c.received_at >= now - REHEARSED_FOR)
    since = calls.c.received_at >= now - LIVE_FOR
    return and_(calls.c.ended_at.is_(None), since, is_awaited, is_of(source))


def is_of(source: str) -> ColumnElement[bool]:
    """Return the condition for a call to be of one of `SOURCES`."""
    if source == "all":
        return true()
    return aside(calls.c.source).in_(made_up_by(source)) if made_up_by(source) else IS_REAL


def made_up_by(source: str) -> Sequence[str]:
    """Return the values of `calls.source` for one of `SOURCES`; none where it is of real calls."""
    return sorted(_MADE_UP_BY.get(source, ()))


def midnight(now: datetime, zone: tzinfo = UTC) -> datetime:
    """Return when this day began in that zone, in UTC."""
    local = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return local.astimezone(UTC)


def bindable(text: str) -> str:
    """Return the text as a database takes it."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def filters_of(filters: CallFilter) -> list[Filter]:
    """Return the filters without the period, those that mostly leave fewer calls first.

    That calls be real is not among them: see `is_of`.
    """
    return list(_filters(filters))


def conditions_of(filters: CallFilter, now: datetime) -> Iterator[ColumnElement[bool]]:
    """Yield all conditions for the rows of `calls`, for a query that looks at every call."""
    yield from within(*filters.period(now))
    yield is_of(filters.source)
    if filters.outcome == "lost":
        yield is_overdue(now)
    for each in filters_of(filters):
        # What is searched for is better looked up once for all.
        searched = each.ids if each.search is not None else None
        yield each.where if searched is None else calls.c.id.in_(searched)


def sessions_of(connection: Connection, filters: CallFilter, now: datetime) -> tuple[str, ...]:
    """Return the sessions of the calls that the filters let through, oldest first."""
    chosen = select(calls.c.session_id).where(*conditions_of(filters, now))
    return tuple(connection.scalars(chosen.order_by(calls.c.received_at, calls.c.id)))


def _filters(filters: CallFilter) -> Iterator[Filter]:
    for key, value in filters.metadata:
        yield _has_metadata(metadata_text(key), metadata_text(value))
    yield from map(_has_result, filters.results)
    if filters.number:
        yield from _number(bindable(filters.number), plainly=filters.plainly)
    if filters.function:
        yield _text(whole_item(Field.FUNCTION, bindable(filters.function)))
    if filters.provider:
        yield _text(whole_item(Field.PROVIDER, bindable(filters.provider)))
    if filters.agent:
        yield _one_of(calls.c.agent_id, map(bindable, filters.agent))
    if filters.status:
        yield _one_of(calls.c.call_status, map(bindable, filters.status))
    if filters.outcome in OUTCOMES:
        yield _in_tab(filters.outcome)
    if filters.channel or filters.direction:
        yield _conversation(filters.channel, filters.direction)
    if filters.min_s is not None or filters.max_s is not None:
        yield _between(calls.c.duration_s, filters.min_s, filters.max_s)
    if filters.cost_min is not None or filters.cost_max is not None:
        yield _between(calls.c.cost_total, filters.cost_min, filters.cost_max)
    if filters.handler in HANDLER_STATES:
        yield _no_runs() if filters.handler == "none" else _has_run(filters.handler)
    if made_up := made_up_by(filters.source):
        yield _one_of(calls.c.source, made_up)
    if filters.unparsed:
        yield _unparsed()
    if filters.duplicate:
        yield Filter(aside(calls.c.repeated), (IndexScan(IS_REPEATED),))
    if query := clean_query(filters.q):
        yield _named(query) if filters.plainly else _searched(query)


def _named(text: str) -> Filter:
    """Find a whole id or number. No index helps: it is for a log whose search is broken."""
    ids = or_(calls.c.session_id == text, calls.c.call_id == text)
    return Filter(or_(ids, whole_number(text).where))


@lru_cache(maxsize=16)
def _searched(query: str) -> Filter:
    """Make it once: it is long, and a page counts and lists by it six times."""
    return _text(terms_of(query))


def _text(terms: Sequence[Term]) -> Filter:
    search = index_match(terms)
    where, ids = holds(terms, calls.c.id), matching_ids(terms)
    return Filter(where, ids=ids, is_indexed=search is not None, search=search)


def _one_of(column: ColumnElement[str], values: Iterable[str]) -> Filter:
    alternatives = sorted(set(values))
    is_few = len(alternatives) <= _SCANS
    scans = tuple(IndexScan(column == value) for value in alternatives) if is_few else ()
    return Filter(aside(column).in_(alternatives), scans)


def _in_tab(outcome: str) -> Filter:
    if outcome == "lost":
        scan = IndexScan(and_(calls.c.ended_at.is_(None), IS_REAL))
        return Filter(and_(aside(calls.c.ended_at).is_(None), IS_REAL), (scan,))
    return _one_of(calls.c.outcome, [outcome])


def _conversation(channel: str | None, direction: str | None) -> Filter:
    """One index has both: where one of them is left open, each of its values has a scan."""
    channels = [channel] if channel else CHANNELS
    directions: Sequence[str | None] = [direction] if direction else [*DIRECTIONS, None]
    scans = [
        IndexScan(
            and_(calls.c.channel == one, calls.c.direction == other),
            led_by=(calls.c.channel, calls.c.direction),
        )
        for one in channels
        for other in directions
    ]
    sides = [(calls.c.channel, channel), (calls.c.direction, direction)]
    return Filter(and_(*(aside(column) == value for column, value in sides if value)), tuple(scans))


def _number(number: str, *, plainly: bool) -> Iterator[Filter]:
    """Find a whole number by its index. The calls with a part of one are among those that hold its
    digits anywhere."""
    digits = digits_of(number)
    if not digits or is_international(number):
        yield whole_number(number)
        return
    terms = terms_of(digits)
    if index_match(terms) is not None and not plainly:
        yield _text(terms)
    sides = (aside(calls.c.from_phone), aside(calls.c.to_phone))
    yield Filter(or_(*(side.contains(part) for side in sides for part in terms[0])))


def whole_number(number: str) -> Filter:
    """Find a number on either side. Numbers come as they were sent, mostly as + and digits."""
    digits = digits_of(looked_for(number))
    spellings = {number.strip(), f"+{digits}", digits} if digits else {number}
    sides = (calls.c.from_phone, calls.c.to_phone)
    dialled = [IndexScan(calls.c.from_phone == spelling) for spelling in sorted(spellings)]
    is_other = func.coalesce(calls.c.from_phone, "").not_in(spellings)
    reached = [IndexScan(and_(calls.c.to_phone == each, is_other)) for each in sorted(spellings)]
    return Filter(or_(*(aside(side).in_(spellings) for side in sides)), (*dialled, *reached))


def _has_metadata(key: str, value: str) -> Filter:
    m = call_metadata.c
    same = and_(m.key == key, m.value == value)
    scan = IndexScan(
        same, call_metadata.join(calls, calls.c.id == m.call_id), m.received_at, m.call_id
    )
    of_call = and_(m.call_id == calls.c.id, m.key == key, aside(m.value) == value)
    return Filter(exists().where(of_call).correlate(calls), (scan,))


def _has_result(wanted: ResultFilter) -> Filter:
    r = call_results.c
    of_call = and_(r.call_id == calls.c.id, wanted.holds(aside))
    where = exists().where(of_call).correlate(calls)
    if wanted.operator == "!=":
        return Filter(where)
    if wanted.operator != "=" or wanted.is_null:
        return Filter(where, ids=select(r.call_id).where(wanted.holds()).distinct())
    # Of several handlers with this result, the call is listed by the first.
    first = call_results.alias()
    earlier = (first.c.call_id == r.call_id, first.c.name == r.name, first.c.handler < r.handler)
    is_same = aside(first.c.text).in_(wanted.texts)
    is_first = ~exists().where(*earlier, is_same).correlate(call_results)
    rows = call_results.join(calls, calls.c.id == r.call_id)
    scans = [
        IndexScan(
            and_(wanted.holds(), r.text == text, is_first),
            rows,
            r.received_at,
            r.call_id,
        )
        for text in wanted.texts
    ]
    return Filter(where, tuple(scans))


def _between(column: ColumnElement[float], least: float | None, most: float | None) -> Filter:
    def ends(value: ColumnElement[float]) -> ColumnElement[bool]:
        above = [value >= least] if least is not None else []
        return and_(*above, value <= most) if most is not None else and_(*above)

    return Filter(ends(aside(column)), ids=select(calls.c.id).where(ends(column)))


def _has_run(state: str) -> Filter:
    r = handler_runs.c
    of_call = and_(r.call_id == calls.c.id, IS_OF_CALL, aside(r.state) == state)
    found = select(r.call_id).where(IS_OPEN, r.state == state, IS_OF_CALL)
    return Filter(exists().where(of_call).correlate(calls), ids=found.distinct())


def _no_runs() -> Filter:
    never = ~exists().where(handler_runs.c.call_id == calls.c.id).correlate(calls)
    return Filter(
        never,
        (IndexScan(and_(IS_UNHANDLED, never)), IndexScan(and_(calls.c.ended_at.is_(None), never))),
    )


def _unparsed() -> Filter:
    d = deliveries.c
    of_call = and_(d.session_id == calls.c.session_id, aside(d.outcome) == "unparsed")
    found = select(calls.c.id).join(deliveries, d.session_id == calls.c.session_id)
    return Filter(exists().where(of_call).correlate(calls), ids=found.where(IS_UNPARSED).distinct())

"""What pages and commands read from the call log: lists, totals and single calls.

Everything here only reads, blocks while it does, and takes the time as an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    and_,
    case,
    func,
    null,
    or_,
    select,
)

from ...protocol.results import Result
from ..dialects import reading_errors
from ..raw_body import length_of
from ..results import results_of
from ..tables import (
    IS_OF_CALL,
    IS_OPEN,
    IS_UNPARSED,
    attempts,
    calls,
    cost_items,
    deliveries,
    handler_runs,
    handlers,
)
from .filters import (
    IS_REAL,
    CallFilter,
    bindable,
    filters_of,
    is_live,
    is_of,
    midnight,
    whole_number,
    within,
)
from .records import (
    Attempt,
    Call,
    CallRecord,
    CostItem,
    Delivery,
    LiveCall,
    Run,
    Today,
    Waiting,
    read_as,
)

A = TypeVar("A")
P = ParamSpec("P")

_DELIVERY = select(
    *(column for column in deliveries.c if column.name != "body"),
    null().label("body"),
    length_of(deliveries.c.body).label("body_bytes"),
)
_LAST_PREFETCH = (
    select(calls.c.received_at)
    .where(calls.c.prefetch_ms.is_not(None))
    .order_by(calls.c.received_at.desc())
    .limit(1)
)
#: The query string of a call's first prefetch.
_PREFETCH_QUERY = (
    select(deliveries.c.query)
    .where(deliveries.c.session_id == calls.c.session_id, deliveries.c.kind == "prefetch")
    .order_by(deliveries.c.id)
    .limit(1)
    .scalar_subquery()
    .label("prefetch_query")
)
_TOTALS = select(
    func.count(),
    func.count(case((calls.c.outcome == "failed", 1))),
    func.sum(calls.c.cost_total),
    func.count(calls.c.prefetch_ms),
)
#: Of the runs, as there are few of them, to their calls.
_FAILED_RUNS = (
    select(func.count())
    .select_from(handler_runs)
    .join(calls, calls.c.id == handler_runs.c.call_id)
    .where(IS_OPEN, handler_runs.c.state == "failed", IS_OF_CALL)
)
#: Calls with a failed handler are counted up to here for the navigation of every page.
MOST_FAILED = 1_000
_LIVE_SHOWN = 100
_AGENTS_SHOWN = 500
_DELIVERIES_SHOWN = 20
_RUNS_SHOWN = 100
_UNPARSED_COUNTED = 10_000


def _agents() -> Select[tuple[str]]:
    """Go from agent to agent through the index: there are few of them, and many calls of each."""
    agent_id = calls.c.agent_id
    agents = select(func.min(agent_id).label("id")).cte("agents", recursive=True)
    following = select(func.min(agent_id)).where(agent_id > agents.c.id).scalar_subquery()
    agents = agents.union_all(select(following).where(agents.c.id.is_not(None)))
    return select(agents.c.id).where(agents.c.id.is_not(None)).limit(_AGENTS_SHOWN)


_AGENTS = _agents()


class Queries:
    """Questions to the call log; `ask` answers those of other modules.

    Raises StorageError when the database cannot answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def live_calls(self, *, now: datetime, source: str = "real") -> tuple[LiveCall, ...]:
        """List calls of a source that had a prefetch and no end yet, newest first."""
        live = (
            select(calls, _PREFETCH_QUERY)
            .where(is_live(now, source))
            .order_by(calls.c.received_at.desc(), calls.c.id.desc())
            .limit(_LIVE_SHOWN)
        )
        with self._reading() as connection:
            rows = connection.execute(live).mappings().all()
        return tuple(LiveCall(read_as(Call, row), row["prefetch_query"]) for row in rows)

    def waiting(self, *, now: datetime) -> Waiting:
        """Count the real calls that are in progress, and those with a failed handler."""
        with self._reading() as connection:
            live = connection.scalar(select(func.count()).where(is_live(now))) or 0
            return Waiting(live, connection.scalar(_failed_calls(now)) or 0)

    def standing(self, session_id: str) -> Call | None:
        """Return what is known of one session, without its deliveries and runs."""
        known = select(calls).where(calls.c.session_id == bindable(session_id))
        with self._reading() as connection:
            row = connection.execute(known).mappings().one_or_none()
            return None if row is None else read_as(Call, row)

    def today(self, *, now: datetime, zone: tzinfo = UTC) -> Today:
        """Add up the calls received since midnight in that zone, but none that was made up."""
        since = and_(calls.c.received_at >= midnight(now, zone), IS_REAL)
        timed = and_(since, calls.c.prefetch_ms.is_not(None))
        by_time = select(calls.c.prefetch_ms).where(timed).order_by(calls.c.prefetch_ms)
        with self._reading() as connection:
            count, errors, credit, prefetches = connection.execute(_TOTALS.where(since)).one()
            rank = max(math.ceil(0.95 * prefetches) - 1, 0)
            p95 = connection.scalar(by_time.limit(1).offset(rank))
            last = connection.scalar(_LAST_PREFETCH)
            failed_runs = connection.scalar(_FAILED_RUNS.where(since)) or 0
            return Today(count, errors, failed_runs, credit, p95, last)

    def last_prefetch_at(self) -> datetime | None:
        """Return when the newest call that had a prefetch was received."""
        with self._reading() as connection:
            return connection.scalar(_LAST_PREFETCH)

    def agents(self) -> tuple[str, ...]:
        """List the agent ids that calls came from, in alphabetical order."""
        with self._reading() as connection:
            return tuple(connection.scalars(_AGENTS))

    def call(self, session_id: str) -> CallRecord | None:
        """Return everything kept about one session, or None if there is no such session."""
        with self._reading() as connection:
            row = (
                connection.execute(select(calls).where(calls.c.session_id == bindable(session_id)))
                .mappings()
                .one_or_none()
            )
            if row is None:
                return None
            call = read_as(Call, row)
            same_session = deliveries.c.session_id == call.session_id
            results = tuple(results_of(connection, [call.id]).get(call.id, ()))
            return CallRecord(
                call,
                _deliveries(connection, same_session, call.delivery_id),
                connection.scalar(select(func.count()).where(same_session)) or 0,
                _costs(connection, call.id),
                _runs(connection, call.id, results),
                connection.scalar(_run_count(call.id)) or 0,
                results,
            )

    def unparsed_count(self) -> int:
        """Count the deliveries that could not be read, up to 10,000."""
        some = select(deliveries.c.id).where(IS_UNPARSED).limit(_UNPARSED_COUNTED).subquery()
        with self._reading() as connection:
            return connection.scalar(select(func.count()).select_from(some)) or 0

    def delivery(self, delivery_id: int) -> Delivery | None:
        """Return one delivery with its body, or None."""
        with self._reading() as connection:
            one = _DELIVERY.where(deliveries.c.id == delivery_id)
            rows = connection.execute(one).mappings().all()
            return next(iter(_with_bodies(connection, rows, [delivery_id])), None)

    def ask(
        self, question: Callable[Concatenate[Connection, P], A], *args: P.args, **kwargs: P.kwargs
    ) -> A:
        """Answer a question of another module, such as `drift_report`, with its arguments."""
        with self._reading() as connection:
            return question(connection, *args, **kwargs)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with reading_errors(), self._engine.connect() as connection:
            yield connection


#: Calls of one number that are counted: with more, their reading takes too long for a page.
MOST_OTHERS = 1_000


def calls_with(connection: Connection, number: str, besides: Call) -> int:
    """Count the other ended calls with a number on either side, up to `MOST_OTHERS`.

    Calls that were made up count only for one that was made up too.
    """
    every = [] if besides.is_made_up else [IS_REAL]
    others = (calls.c.id != besides.id, calls.c.ended_at.is_not(None), *every)
    sides = (
        select(calls.c.id).where(scan.where, *others).limit(MOST_OTHERS)
        for scan in whole_number(bindable(number)).scans
    )
    counts = [select(func.count()).select_from(side.subquery()) for side in sides]
    return min(sum(connection.scalar(count) or 0 for count in counts), MOST_OTHERS)


#: The most calls, from the newest, that are compared with the filter.
MOST_LOOKED_AT = 500


def newest_end(connection: Connection) -> int:
    """Return the delivery of the newest end: the mark of now.

    End-of-calls are processed in the order they were stored in, so it needs no clock.
    """
    return connection.scalar(select(func.max(calls.c.delivery_id))) or 0


def ended_since(connection: Connection, mark: int, filters: CallFilter, now: datetime) -> int:
    """Count the calls that ended since the mark and match the filter, up to `MOST_LOOKED_AT`."""
    newest = (
        select(calls.c.id)
        .where(calls.c.delivery_id > mark)
        .order_by(calls.c.delivery_id.desc())
        .limit(MOST_LOOKED_AT)
    )
    others = (each.where for each in filters_of(filters))
    conditions = [*within(*filters.period(now)), is_of(filters.source), *others]
    matching = select(func.count()).select_from(calls).where(calls.c.id.in_(newest), *conditions)
    return connection.scalar(matching) or 0


def _failed_calls(now: datetime) -> Select[Any]:
    """Count the newest calls with a failed handler that are in the default list, up to a number."""
    since = CallFilter().period(now)[0]
    some = _FAILED_RUNS.with_only_columns(handler_runs.c.call_id).distinct()
    some = some.where(calls.c.received_at >= since, IS_REAL).limit(MOST_FAILED)
    return select(func.count()).select_from(some.subquery())


def _deliveries(
    connection: Connection, condition: ColumnElement[bool], always: int | None
) -> tuple[Delivery, ...]:
    first = (
        select(deliveries.c.id).where(condition).order_by(deliveries.c.id).limit(_DELIVERIES_SHOWN)
    )
    shown = or_(deliveries.c.id.in_(first), deliveries.c.id == always)
    oldest = _DELIVERY.where(shown).order_by(deliveries.c.received_at, deliveries.c.id)
    rows = connection.execute(oldest).mappings().all()
    distinct: dict[tuple[str, bytes | None], int] = {}
    for row in rows:
        distinct.setdefault((row["kind"], row["content_hash"]), row["id"])
    return _with_bodies(connection, rows, list(distinct.values()))


def _with_bodies(
    connection: Connection, rows: Sequence[RowMapping], ids: Sequence[int]
) -> tuple[Delivery, ...]:
    stored = select(deliveries.c.id, deliveries.c.body).where(deliveries.c.id.in_(ids))
    bodies = {row.id: row.body for row in connection.execute(stored)}
    return tuple(replace(read_as(Delivery, row), body=bodies.get(row["id"])) for row in rows)


def _costs(connection: Connection, call_id: int) -> tuple[CostItem, ...]:
    c = cost_items.c
    items = (
        select(c.type, c.provider, c.credit, c.prompt_tokens, c.completion_tokens)
        .where(c.call_id == call_id)
        .order_by(c.position)
    )
    return tuple(read_as(CostItem, row) for row in connection.execute(items).mappings())


def _run_count(call_id: int) -> Select[Any]:
    return select(func.count()).where(handler_runs.c.call_id == call_id)


def _runs(connection: Connection, call_id: int, results: Sequence[Result]) -> tuple[Run, ...]:
    c = handler_runs.c
    is_handler = and_(handlers.c.hook == c.hook, handlers.c.name == c.handler)
    newest = (
        select(handler_runs, handlers.c.max_attempts, handlers.c.repeatable)
        .join(handlers, is_handler, isouter=True)
        .where(c.call_id == call_id)
        .order_by(c.is_latest.desc(), c.id.desc())
        .limit(_RUNS_SHOWN)
    )
    rows = sorted(connection.execute(newest).mappings(), key=lambda row: row["id"])
    tries = _attempts(connection, [row["id"] for row in rows])
    return tuple(
        read_as(
            Run,
            {
                **row,
                "attempts": tuple(tries[row["id"]]),
                "results": tuple(each for each in results if each.run_id == row["id"]),
            },
        )
        for row in rows
    )


def _attempts(connection: Connection, run_ids: Sequence[int]) -> Mapping[int, Sequence[Attempt]]:
    tries = (
        select(attempts)
        .where(attempts.c.run_id.in_(run_ids))
        .order_by(attempts.c.run_id, attempts.c.number)
    )
    by_run: dict[int, list[Attempt]] = {run_id: [] for run_id in run_ids}
    for row in connection.execute(tries).mappings():
        by_run[row["run_id"]].append(read_as(Attempt, row))
    return by_run

"""What the pages and the command line read from the call log: lists, totals and one call.

Everything here only reads, blocks while it does, and takes the time as an argument. Lists are
paged by (received time, id), so calls that arrive do not shift a page that is open.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    CTE,
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    Select,
    and_,
    case,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
)
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import StorageError
from .records import (
    LIVE_FOR,
    Attempt,
    Call,
    CallRecord,
    CostItem,
    Delivery,
    ListedCall,
    LiveCall,
    Page,
    Run,
    RunCounts,
    Today,
)
from .search import clean_query, excerpts, matching_ids
from .tables import (
    IS_OF_CALL,
    IS_UNPARSED,
    attempts,
    calls,
    cost_items,
    deliveries,
    handler_runs,
    handlers,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

#: Counts stop here: "10,000+" is as useful as the number, and has a bounded price.
COUNT_CAP = 10_000

#: How far back a list looks. `None` is as far as there are calls.
RANGES: Mapping[str, timedelta | None] = {
    "today": timedelta(),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
    "all": None,
}

#: The tabs over the list. `error` is the outcome `failed`; `lost` has no outcome at all.
OUTCOMES = ("completed", "chat", "voicemail", "timeout", "unreached", "error", "lost")

MAX_PAGE_SIZE = 100

_DELIVERY = select(
    *(column for column in deliveries.c if column.name != "body"),
    null().label("body"),
    func.length(deliveries.c.body).label("body_bytes"),
)
_LIVE_SHOWN = 100
_AGENTS_SHOWN = 500
_DELIVERIES_SHOWN = 20
_RUNS_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFilter:
    """Which calls a list holds. A value that means nothing here narrows nothing."""

    q: str = ""
    outcome: str | None = None
    agent: str | None = None
    status: str | None = None
    range: str = "7d"


class Queries:
    """Questions to the call log. Raises StorageError when the database cannot answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list_calls(
        self,
        wanted: CallFilter,
        *,
        now: datetime,
        before: str | None = None,
        after: str | None = None,
        size: int = 50,
    ) -> Page:
        """List calls that ended and calls whose end is overdue, newest received first.

        `before` and `after` are cursors of an earlier page; one that cannot be read is ignored.
        """
        size = max(1, min(size, MAX_PAGE_SIZE))
        with self._reading() as connection:
            rows, newer, older = _page(connection, _listed(wanted, now), before, after, size)
            found = [_read_as(Call, row) for row in rows]
            return Page(
                _with_details(connection, found, clean_query(wanted.q)),
                newer,
                older,
                _counts(connection, wanted, now),
            )

    def live_calls(self, *, now: datetime) -> tuple[LiveCall, ...]:
        """List calls that had a prefetch and no end yet, newest first."""
        prefetch = (
            select(deliveries.c.query)
            .where(deliveries.c.session_id == calls.c.session_id, deliveries.c.kind == "prefetch")
            .order_by(deliveries.c.id)
            .limit(1)
            .scalar_subquery()
        )
        live = (
            select(calls, prefetch.label("prefetch_query"))
            .where(_is_live(now))
            .order_by(calls.c.received_at.desc(), calls.c.id.desc())
            .limit(_LIVE_SHOWN)
        )
        with self._reading() as connection:
            rows = connection.execute(live).mappings().all()
        return tuple(LiveCall(_read_as(Call, row), row["prefetch_query"]) for row in rows)

    def live_count(self, *, now: datetime) -> int:
        """Count the calls that had a prefetch and no end yet."""
        with self._reading() as connection:
            return connection.scalar(select(func.count()).where(_is_live(now))) or 0

    def today(self, *, now: datetime) -> Today:
        """Add up the calls received since midnight UTC."""
        since = calls.c.received_at >= _midnight(now)
        timed = and_(since, calls.c.prefetch_ms.is_not(None))
        totals = select(
            func.count(),
            func.count(case((calls.c.outcome == "failed", 1))),
            func.sum(calls.c.cost_total),
            func.count(calls.c.prefetch_ms),
        ).where(since)
        by_time = select(calls.c.prefetch_ms).where(timed).order_by(calls.c.prefetch_ms)
        last = (
            select(calls.c.received_at)
            .where(calls.c.prefetch_ms.is_not(None))
            .order_by(calls.c.received_at.desc())
            .limit(1)
        )
        with self._reading() as connection:
            count, errors, credit, prefetches = connection.execute(totals).one()
            rank = max(math.ceil(0.95 * prefetches) - 1, 0)
            p95 = connection.scalar(by_time.limit(1).offset(rank))
            return Today(count, errors, credit, p95, connection.scalar(last))

    def agents(self) -> tuple[str, ...]:
        """List the agent ids that calls came from, in alphabetical order."""
        distinct = (
            select(calls.c.agent_id)
            .where(calls.c.agent_id.is_not(None))
            .distinct()
            .order_by(calls.c.agent_id)
            .limit(_AGENTS_SHOWN)
        )
        with self._reading() as connection:
            return tuple(agent for agent in connection.scalars(distinct) if agent is not None)

    def call(self, session_id: str) -> CallRecord | None:
        """Return everything kept about one session, or None if there is no such session."""
        with self._reading() as connection:
            row = (
                connection.execute(select(calls).where(calls.c.session_id == _bindable(session_id)))
                .mappings()
                .one_or_none()
            )
            if row is None:
                return None
            call = _read_as(Call, row)
            same_session = deliveries.c.session_id == call.session_id
            return CallRecord(
                call,
                _deliveries(connection, same_session, call.delivery_id),
                connection.scalar(select(func.count()).where(same_session)) or 0,
                _costs(connection, call.id),
                _runs(connection, call.id),
                connection.scalar(_run_count(call.id)) or 0,
            )

    def unparsed(self, *, size: int = MAX_PAGE_SIZE) -> tuple[Delivery, ...]:
        """List the newest deliveries that could not be read, without their bodies."""
        newest = _DELIVERY.where(IS_UNPARSED).order_by(deliveries.c.id.desc()).limit(size)
        with self._reading() as connection:
            return tuple(_read_as(Delivery, row) for row in connection.execute(newest).mappings())

    def unparsed_count(self) -> int:
        """Count the deliveries that could not be read, up to `COUNT_CAP`."""
        with self._reading() as connection:
            counted = _capped(select(deliveries.c.id).where(IS_UNPARSED))
            return connection.scalar(select(counted)) or 0

    def delivery(self, delivery_id: int) -> Delivery | None:
        """Return one delivery with its body, or None."""
        with self._reading() as connection:
            one = _DELIVERY.where(deliveries.c.id == delivery_id)
            rows = connection.execute(one).mappings().all()
            return next(iter(_with_bodies(connection, rows, [delivery_id])), None)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError("the call log could not be read") from error


def _midnight(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _bindable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _read_as(shape: type[T], row: Mapping[Any, Any]) -> T:
    return shape(**{field.name: row[field.name] for field in fields(shape)})


def _is_live(now: datetime) -> ColumnElement[bool]:
    return and_(calls.c.ended_at.is_(None), calls.c.received_at >= now - LIVE_FOR)


def _conditions(wanted: CallFilter, now: datetime, hits: CTE | None) -> list[ColumnElement[bool]]:
    overdue = calls.c.received_at < now - LIVE_FOR
    conditions: list[ColumnElement[bool]] = [or_(calls.c.ended_at.is_not(None), overdue)]
    if hits is not None:
        conditions.append(calls.c.id.in_(select(hits.c.id)))
    if wanted.agent:
        conditions.append(calls.c.agent_id == _bindable(wanted.agent))
    if wanted.status:
        conditions.append(calls.c.call_status == _bindable(wanted.status))
    span = RANGES.get(wanted.range, RANGES[CallFilter().range])
    if span is not None:
        conditions.append(calls.c.received_at >= (now - span if span else _midnight(now)))
    return conditions


def _hits(wanted: CallFilter) -> CTE | None:
    query = clean_query(wanted.q)
    return matching_ids(query).cte("hits") if query else None


def _in_tab(outcome: str) -> ColumnElement[bool]:
    if outcome == "lost":
        return calls.c.ended_at.is_(None)
    return calls.c.outcome == ("failed" if outcome == "error" else outcome)


def _listed(wanted: CallFilter, now: datetime) -> Select[Any]:
    listed = select(calls).where(*_conditions(wanted, now, _hits(wanted)))
    return listed.where(_in_tab(wanted.outcome)) if wanted.outcome in OUTCOMES else listed


def _counts(connection: Connection, wanted: CallFilter, now: datetime) -> dict[str, int]:
    matching = select(calls.c.id).where(*_conditions(wanted, now, _hits(wanted)))
    counts = [_capped(matching).label("all")]
    counts += [_capped(matching.where(_in_tab(outcome))).label(outcome) for outcome in OUTCOMES]
    return dict(connection.execute(select(*counts)).mappings().one())


def _capped(rows: Select[Any]) -> ColumnElement[int]:
    return select(func.count()).select_from(rows.limit(COUNT_CAP).subquery()).scalar_subquery()


def _page(
    connection: Connection,
    listed: Select[Any],
    before: str | None,
    after: str | None,
    size: int,
) -> tuple[Sequence[RowMapping], str | None, str | None]:
    if (place := _place(after)) is not None:
        newer = _ordered(listed.where(_key() > place), size, newest=False)
        rows = connection.execute(newer).mappings().all()
        if len(rows) > size:
            rows = rows[:size][::-1]
            return rows, _cursor(rows[0]), _cursor(rows[-1])
        # Fewer than a page are newer: this is the first page.
    place = _place(before) if after is None else None
    older = listed if place is None else listed.where(_key() < place)
    rows = connection.execute(_ordered(older, size, newest=True)).mappings().all()
    more, rows = len(rows) > size, rows[:size]
    back = _cursor(rows[0]) if place is not None and rows else None
    return rows, back, _cursor(rows[-1]) if more else None


def _ordered(listed: Select[Any], size: int, *, newest: bool) -> Select[Any]:
    key = (calls.c.received_at, calls.c.id)
    return listed.order_by(*(c.desc() if newest else c.asc() for c in key)).limit(size + 1)


def _key() -> ColumnElement[Any]:
    return tuple_(calls.c.received_at, calls.c.id)


def _cursor(row: RowMapping) -> str:
    place = json.dumps([row["received_at"].isoformat(), row["id"]])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str | None) -> ColumnElement[Any] | None:
    if not cursor:
        return None
    try:
        place = base64.urlsafe_b64decode(cursor.encode() + b"==")
        received_at, call_id = json.loads(place)
        at = datetime.fromisoformat(received_at).astimezone(UTC)
        if not isinstance(call_id, int) or not 0 <= call_id < 2**63:
            return None
    except (ValueError, TypeError, RecursionError, OverflowError):
        return None
    return tuple_(literal(at, calls.c.received_at.type), literal(call_id, calls.c.id.type))


def _with_details(
    connection: Connection, found: Sequence[Call], query: str
) -> tuple[ListedCall, ...]:
    ids = [call.id for call in found]
    runs = _run_counts(connection, ids)
    around = excerpts(connection, query, ids)
    return tuple(
        ListedCall(call, runs.get(call.id, RunCounts()), around.get(call.id)) for call in found
    )


def _run_counts(connection: Connection, call_ids: Sequence[int]) -> dict[int, RunCounts]:
    state = handler_runs.c.state
    counted = (
        select(
            handler_runs.c.call_id,
            func.count(),
            func.count(case((state == "failed", 1))),
            func.count(case((state == "parked", 1))),
            func.count(case((state.in_(["pending", "running"]), 1))),
        )
        .where(IS_OF_CALL, handler_runs.c.call_id.in_(call_ids))
        .group_by(handler_runs.c.call_id)
    )
    return {call_id: RunCounts(*numbers) for call_id, *numbers in connection.execute(counted)}


def _deliveries(
    connection: Connection, wanted: ColumnElement[bool], always: int | None
) -> tuple[Delivery, ...]:
    first = select(deliveries.c.id).where(wanted).order_by(deliveries.c.id).limit(_DELIVERIES_SHOWN)
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
    return tuple(replace(_read_as(Delivery, row), body=bodies.get(row["id"])) for row in rows)


def _costs(connection: Connection, call_id: int) -> tuple[CostItem, ...]:
    c = cost_items.c
    items = (
        select(c.type, c.provider, c.credit, c.prompt_tokens, c.completion_tokens)
        .where(c.call_id == call_id)
        .order_by(c.position)
    )
    return tuple(_read_as(CostItem, row) for row in connection.execute(items).mappings())


def _run_count(call_id: int) -> Select[Any]:
    return select(func.count()).where(handler_runs.c.call_id == call_id)


def _runs(connection: Connection, call_id: int) -> tuple[Run, ...]:
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
    return tuple(_read_as(Run, {**row, "attempts": tuple(tries[row["id"]])}) for row in rows)


def _attempts(connection: Connection, run_ids: Sequence[int]) -> Mapping[int, Sequence[Attempt]]:
    tries = (
        select(attempts)
        .where(attempts.c.run_id.in_(run_ids))
        .order_by(attempts.c.run_id, attempts.c.number)
    )
    by_run: dict[int, list[Attempt]] = {run_id: [] for run_id in run_ids}
    for row in connection.execute(tries).mappings():
        by_run[row["run_id"]].append(_read_as(Attempt, row))
    return by_run

"""The tables of runs and attempts: claim, record, wake and fail, in the caller's transaction.

    pending -> running -> succeeded | retrying | failed
    retrying -> pending, when it is due        running -> pending, when handed back or interrupted

Several processes may write at once. Each claims runs that no other has locked, and the end of an
attempt is written once. Locked rows are skipped, as acknowledgements would wait for this
transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    update,
)

from ..call_log.call_rows import pending_run
from ..call_log.changed_days import mark_days_of
from ..call_log.dialects import is_postgresql
from ..call_log.results import RunResults, write_results
from ..call_log.sanitize import clean_text
from ..call_log.statements import Prepared, among, update_rows
from ..call_log.tables import IS_OPEN, IS_RETRYING, attempts, handler_runs, runners
from ..handlers.handler_call import Handler
from ..masking.error_report import Failure
from ..protocol.results import Plain
from .concurrency import Slots

#: Returns the `on_failed` handlers for runs of the handler of this name.
FailureHooks = Callable[[str], Sequence[Handler]]

#: The most runs that fail in one transaction: acknowledgements wait for it.
MOST_FAILED = 500
#: A time further in the future was written before the clock was set back. Smaller differences are
#: the corrections that every clock gets.
CLOCK_TOLERANCE = timedelta(minutes=1)

_runs = handler_runs.c
_NOW = bindparam("now", type_=_runs.state_since.type)
_WAITS = and_(IS_OPEN, _runs.state.in_(["pending", "retrying"]))


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that this process has begun; `spent` includes this attempt."""

    id: int
    call_id: int
    hook: str
    handler: str
    spent: int
    failed_run_id: int | None
    attempt: int
    change: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended, and the next state of its run: outcomes and states of `tables.py`.

    The outcome is `not_wanted` if the handler's `when` rejected the call. `results` is None where
    the handler can have none: those of an earlier run stay.
    """

    run: ClaimedRun
    ended_at: datetime
    duration_ms: float
    outcome: str
    state: str
    due_at: datetime | None = None
    reason: str | None = None
    failure: Failure | None = None
    results: Mapping[str, Plain] | None = None


def claim(
    connection: Connection,
    slots: Slots,
    now: datetime,
    *,
    late: Collection[ClaimedRun],
    failure_hooks: FailureHooks,
    flip: Callable[[], int],
    runner: str | None = None,
) -> list[ClaimedRun]:
    """Begin as many pending runs as there are slots for; their attempts count from now on.

    `runner` is the name of this process among several. The `concurrency` of a handler limits all
    of them together.

    A run without attempts left, because its process died in the last, fails instead. Runs wait
    for calls with a `late` run of the same handler. `flip` returns 0 or 1.
    """
    taken: list[int] = []
    for handler in slots.fair_order():
        room = slots.available(handler)
        if room > 0 and handler.concurrency is not None and runner is not None:
            room = _room_beside_others(connection, slots, handler, runner)
        picked = _pick(connection, handler, room, late, flip)
        slots.is_short |= len(picked) >= room
        exhausted = [run for run in picked if run.spent >= handler.max_attempts]
        reason = f"{handler.max_attempts} of {handler.max_attempts} attempts did not end"
        _fail(connection, exhausted, reason, now, failure_hooks)
        ids = [run.id for run in picked if run.spent < handler.max_attempts]
        slots.take(handler, len(ids))
        taken += ids
    return _begin(connection, taken, now, runner) if taken else []


def record(connection: Connection, ends: Sequence[AttemptEnd], failure_hooks: FailureHooks) -> None:
    """Write the ends of attempts and the states of their runs; delete runs that were not wanted.

    An attempt that was marked interrupted meanwhile belongs to another process: it is skipped.
    """
    attempt_ids = _unended(connection, ends)
    ends = [end for end in ends if end.run.id in attempt_ids]
    mark_days_of(connection, [end.run.call_id for end in ends])
    for end in ends:
        if end.outcome == "not_wanted":
            _delete(connection, end.run)
    ended = [end for end in ends if end.outcome != "not_wanted"]
    closed = [_attempt_columns(end, attempt_ids[end.run.id]) for end in ended]
    update_rows(connection, attempts, closed)
    update_rows(connection, handler_runs, [_run_columns(end) for end in ended])
    write_results(
        connection,
        [
            RunResults(end.run.id, end.run.handler, end.results)
            for end in ended
            if end.results is not None
        ],
    )
    for end in ended:
        if end.state == "failed":
            _call_hooks(connection, end.run, end.ended_at, failure_hooks)


def wake_due(connection: Connection, now: datetime) -> None:
    """Make pending the runs whose retry is due."""
    _WAKE_DUE(connection, {"now": now})


def wake_stranded(connection: Connection, now: datetime) -> None:
    """Make pending the runs whose last attempt failed in the future: the clock was set back, and
    they would wait too long."""
    stranded = and_(IS_RETRYING, _runs.state_since > now + CLOCK_TOLERANCE)
    connection.execute(_to_pending(stranded), {"now": now})


def take_over(connection: Connection, now: datetime) -> int:
    """Make pending the running runs of processes that are not in the list of runners any more.

    Return how many.
    """
    alive = _runs.runner.in_(select(runners.c.name))
    return _interrupt(connection, or_(_runs.runner.is_(None), ~alive), now)


def take_back(
    connection: Connection, runner: str | None, at_work: Collection[ClaimedRun], now: datetime
) -> int:
    """Make pending the running runs of `runner` that are not `at_work` there: their claim was
    committed and its answer lost. Return how many."""
    known = [run.id for run in at_work]
    theirs = and_(_runs.runner.is_not_distinct_from(runner), _runs.id.not_in(known))
    return _interrupt(connection, theirs, now)


def fail_unknown(
    connection: Connection,
    known: Collection[tuple[str, str]],
    now: datetime,
    *,
    waiting_since: datetime,
    failure_hooks: FailureHooks,
) -> None:
    """Fail runs that have waited since `waiting_since` for a handler that is not in `known`."""
    names = select(_runs.hook, _runs.handler).where(_WAITS).distinct()
    for hook, name in connection.execute(names).all():
        if (hook, name) not in known:
            reason = f"no handler is named {name} any more"
            fail_waiting(
                connection,
                (hook, name),
                reason,
                now,
                waiting_since=waiting_since,
                failure_hooks=failure_hooks,
            )


def fail_waiting(
    connection: Connection,
    handler: tuple[str, str],
    reason: str,
    now: datetime,
    *,
    waiting_since: datetime,
    failure_hooks: FailureHooks,
) -> None:
    """Fail runs that have waited since `waiting_since` for `handler` (hook, name)."""
    hook, name = handler
    theirs = and_(_WAITS, _runs.hook == hook, _runs.handler == name)
    waited = and_(theirs, _runs.state_since <= waiting_since)
    old = select(handler_runs).where(waited).limit(MOST_FAILED)
    old = old.with_for_update(skip_locked=True)
    _fail(connection, connection.execute(old).all(), reason, now, failure_hooks)


def _pick(
    connection: Connection,
    handler: Handler,
    room: int,
    late: Collection[ClaimedRun],
    flip: Callable[[], int],
) -> Sequence[Row[Any]]:
    """Choose pending runs: the oldest, but if not all fit, the newest get half of the slots.

    New calls do not wait for a backlog, and the backlog becomes shorter.
    """
    if room <= 0:
        return ()
    parameters = {
        "hook": handler.hook,
        "handler": handler.name,
        "late": [run.call_id for run in late if run.handler == handler.name],
    }
    oldest = _OLDEST(connection, parameters | {"most": room + 1})
    if len(oldest) <= room:
        return oldest
    newest = (room + flip()) // 2
    if not newest:
        return oldest[:room]
    return [
        *oldest[: room - newest],
        *_NEWEST(connection, parameters | {"most": newest}),
    ]


def _room_beside_others(connection: Connection, slots: Slots, handler: Handler, runner: str) -> int:
    """Return the slots that runs in other processes leave; 0 while another process claims some."""
    name = {"name": f"{handler.hook} {handler.name}"}
    if is_postgresql(connection) and not connection.scalar(_LOCK_HANDLER, name):
        return 0
    running = and_(IS_OPEN, _runs.state == "running", _runs.runner != runner)
    of_handler = and_(_runs.hook == handler.hook, _runs.handler == handler.name)
    count = select(func.count()).select_from(handler_runs).where(running, of_handler)
    return slots.available(handler, elsewhere=connection.execute(count).scalar_one())


def _interrupt(connection: Connection, condition: ColumnElement[bool], now: datetime) -> int:
    """Make running runs pending and mark their attempts interrupted; return how many."""
    running = and_(IS_OPEN, _runs.state == "running", condition)
    interrupted = select(_runs.id, _runs.call_id).where(running).with_for_update(skip_locked=True)
    found = connection.execute(interrupted).all()
    ids = [run.id for run in found]
    if ids:
        mark_days_of(connection, [run.call_id for run in found])
        unended = and_(attempts.c.run_id.in_(ids), attempts.c.outcome.is_(None))
        connection.execute(update(attempts).where(unended).values(outcome="interrupted"))
        connection.execute(_to_pending(_runs.id.in_(ids)), {"now": now})
    return len(ids)


def _unended(connection: Connection, ends: Sequence[AttemptEnd]) -> dict[int, int]:
    """Return by run the ids of the attempts that are still ours."""
    numbers = {end.run.id: end.run.attempt for end in ends}
    found = _UNENDED(connection, {"ids": list(numbers)}) if ends else ()
    return {row.run_id: row.id for row in found if row.number == numbers[row.run_id]}


def _begin(
    connection: Connection, ids: Sequence[int], now: datetime, runner: str | None
) -> list[ClaimedRun]:
    parameters = {"ids": ids, "now": now, "runner": runner}
    begun = _BEGIN_RUNS(connection, parameters)
    numbers = {row.run_id: row.number for row in _BEGIN_ATTEMPTS(connection, parameters)}
    claimed = [ClaimedRun(**run._asdict(), attempt=numbers[run.id]) for run in begun]
    return sorted(claimed, key=lambda run: run.id)


def _fail(
    connection: Connection,
    runs: Sequence[Row[Any]],
    reason: str,
    now: datetime,
    failure_hooks: FailureHooks,
) -> None:
    mark_days_of(connection, [run.call_id for run in runs])
    for run in runs:
        failed = {"state": "failed", "state_since": now, "due_at": None, "reason": reason}
        connection.execute(update(handler_runs).where(_runs.id == run.id).values(failed))
        _call_hooks(connection, run, now, failure_hooks)


def _call_hooks(
    connection: Connection,
    failed: ClaimedRun | Row[Any],
    now: datetime,
    failure_hooks: FailureHooks,
) -> None:
    """Write a run for each `on_failed` handler; runs of these cause no others when they fail."""
    if failed.hook == "end_of_call":
        for hook in failure_hooks(failed.handler):
            run = pending_run(
                failed.call_id, hook.name, now, hook="failed", failed_run_id=failed.id
            )
            connection.execute(insert(handler_runs), run)


def _delete(connection: Connection, run: ClaimedRun) -> None:
    """Delete a run; the one that it had replaced is the latest again."""
    connection.execute(delete(handler_runs).where(_runs.id == run.id))
    same = and_(_runs.call_id == run.call_id, _runs.hook == run.hook, _runs.handler == run.handler)
    latest = select(func.max(_runs.id)).where(same).scalar_subquery()
    connection.execute(update(handler_runs).where(_runs.id == latest).values(is_latest=True))


def _to_pending(condition: ColumnElement[bool]) -> Any:
    free = select(_runs.id).where(condition).correlate(None).with_for_update(skip_locked=True)
    return (
        update(handler_runs)
        .where(_runs.id.in_(free))
        .values(state="pending", state_since=_NOW, due_at=None)
    )


def _next_pending(order: ColumnElement[Any]) -> Any:
    return (
        select(_runs.id, _runs.call_id, _runs.hook, _runs.handler, _runs.spent)
        .where(
            IS_OPEN,
            _runs.state == "pending",
            _runs.hook == bindparam("hook"),
            _runs.handler == bindparam("handler"),
            not_(among(_runs.call_id, "late")),
        )
        .order_by(order)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
    )


_WAKE_DUE = Prepared(_to_pending(and_(IS_RETRYING, _runs.due_at <= _NOW)))

_OLDEST = Prepared(_next_pending(_runs.id.asc()))
_NEWEST = Prepared(_next_pending(_runs.id.desc()))

_BEGIN_RUNS = Prepared(
    update(handler_runs)
    .where(among(_runs.id, "ids"))
    .values(state="running", state_since=_NOW, spent=_runs.spent + 1, runner=bindparam("runner"))
    .returning(
        _runs.id,
        _runs.call_id,
        _runs.hook,
        _runs.handler,
        _runs.spent,
        _runs.failed_run_id,
        _runs.change,
    )
)

_EARLIER_ATTEMPTS = (
    select(func.count()).where(attempts.c.run_id == _runs.id).correlate(handler_runs)
).scalar_subquery()

_BEGIN_ATTEMPTS = Prepared(
    insert(attempts)
    .from_select(
        ["run_id", "number", "started_at"],
        select(_runs.id, literal(1) + _EARLIER_ATTEMPTS, _NOW).where(among(_runs.id, "ids")),
    )
    .returning(attempts.c.run_id, attempts.c.number)
)

#: Runs are locked before their attempts, here as elsewhere.
_UNENDED = Prepared(
    select(attempts.c.id, attempts.c.run_id, attempts.c.number)
    .select_from(handler_runs.join(attempts))
    .where(among(_runs.id, "ids"), attempts.c.outcome.is_(None))
    .with_for_update()
)

_LOCK_HANDLER = select(func.pg_try_advisory_xact_lock(func.hashtextextended(bindparam("name"), 0)))


def _attempt_columns(end: AttemptEnd, id_: int) -> dict[str, Any]:
    failure = end.failure
    return {
        "ended_at": end.ended_at,
        "duration_ms": end.duration_ms,
        "outcome": end.outcome,
        "error_type": failure.error_type if failure else None,
        "error_message": clean_text(failure.message) if failure else None,
        "traceback": clean_text(failure.traceback) if failure else None,
        "id": id_,
    }


def _run_columns(end: AttemptEnd) -> dict[str, Any]:
    return {
        "state": end.state,
        "state_since": end.ended_at,
        "due_at": end.due_at,
        "reason": clean_text(end.reason),
        "spent": end.run.spent - (end.outcome == "handed_back"),
        "id": end.run.id,
    }

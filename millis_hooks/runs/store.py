"""The book of runs and their attempts: what becomes of them is written here, in the caller's
transaction. (`replay.py` adds what a person asks for.)

    pending -> running -> succeeded | failed | parked
    failed -> pending, when it is due        running -> pending, when handed back or interrupted

Several processes may write in it at once: each takes runs that no other has its hands on, and what
became of an attempt is written once. What another has locked is left for later, as acknowledgements
would wait with us.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
    or_,
    select,
    update,
)

from ..call_log.call_rows import pending_run
from ..call_log.dialects import is_postgresql
from ..call_log.sanitize import clean_text
from ..call_log.tables import HAS_FAILED, IS_OPEN, attempts, handler_runs, runners
from ..handlers.routing import Handler
from ..masking.error_report import Failure
from .concurrency import Places

#: Says whom to tell that a run of the handler of this name is parked.
TellingOf = Callable[[str], Sequence[Handler]]

#: Runs that are parked in one transaction at most: acknowledgements wait for it.
MOST_PARKED = 500
#: What was written further in the future than this was written by a clock that has since been set
#: back; less is the correction every clock gets.
CLOCK_TOLERANCE = timedelta(minutes=1)

_runs = handler_runs.c
_NOW = bindparam("now", type_=_runs.state_since.type)
_WAITS = and_(IS_OPEN, _runs.state.in_(["pending", "failed"]))


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that is now ours to do; `spent` counts this attempt too."""

    id: int
    call_id: int
    hook: str
    handler: str
    spent: int
    parked_run_id: int | None
    attempt: int
    change: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How one attempt ended, and what becomes of its run: outcomes and states of `tables.py`.

    A call that the handler's `when` did not want has the outcome `not_wanted`.
    """

    run: ClaimedRun
    ended_at: datetime
    duration_ms: float
    outcome: str
    state: str
    due_at: datetime | None = None
    reason: str | None = None
    failure: Failure | None = None


def claim(
    connection: Connection,
    places: Places,
    now: datetime,
    *,
    late: Collection[ClaimedRun],
    telling_of: TellingOf,
    flip: Callable[[], int],
    runner: str | None = None,
) -> list[ClaimedRun]:
    """Take as many pending runs as there are places for; their attempts count from here on.

    `runner` is the name of this process where others do runs too. A handler's own `concurrency`
    holds for all of them together.

    One that has no attempt left, because its process died in the last, is parked instead. Handlers
    are not called for calls they still have at work as `late`, though that was given up. `flip`
    returns 0 or 1.
    """
    taken: list[int] = []
    for handler in places.in_turn():
        room = places.room(handler)
        if room > 0 and handler.concurrency is not None and runner is not None:
            room = _room_beside_others(connection, places, handler, runner)
        picked = _pick(connection, handler, room, late, flip)
        exhausted = [run for run in picked if run.spent >= handler.max_attempts]
        reason = f"{handler.max_attempts} of {handler.max_attempts} attempts did not end"
        _park(connection, exhausted, reason, now, telling_of)
        ids = [run.id for run in picked if run.spent < handler.max_attempts]
        places.take(handler, len(ids))
        taken += ids
    return _begin(connection, taken, now, runner) if taken else []


def record(connection: Connection, ends: Sequence[AttemptEnd], telling_of: TellingOf) -> None:
    """Write how attempts ended, and with them their runs; one nobody wanted leaves no trace.

    What was taken for interrupted meanwhile is another's by now: its end changes nothing.
    """
    ends = _still_ours(connection, ends)
    for end in ends:
        if end.outcome == "not_wanted":
            _forget(connection, end.run)
    ended = [end for end in ends if end.outcome != "not_wanted"]
    if ended:
        connection.execute(_END_ATTEMPT, [_attempt_columns(end) for end in ended])
        connection.execute(_END_RUN, [_run_columns(end) for end in ended])
    for end in ended:
        if end.state == "parked":
            _tell(connection, end.run, end.ended_at, telling_of)


def wake_due(connection: Connection, now: datetime) -> None:
    """Make the failed runs pending whose time has come."""
    connection.execute(_WAKE_DUE, {"now": now})


def wake_stranded(connection: Connection, now: datetime) -> None:
    """Make the failed runs pending that failed in what is now the future: the clock was set back,
    and they would wait for that long again."""
    stranded = and_(HAS_FAILED, _runs.state_since > now + CLOCK_TOLERANCE)
    connection.execute(_to_pending(stranded), {"now": now})


def take_over(connection: Connection, now: datetime) -> int:
    """Make the runs pending that were at work when their process died: of those that are running,
    all that no runner in the list of runners has. Return how many."""
    alive = _runs.runner.in_(select(runners.c.name))
    return _interrupt(connection, or_(_runs.runner.is_(None), ~alive), now)


def take_back(
    connection: Connection, runner: str | None, at_work: Collection[ClaimedRun], now: datetime
) -> int:
    """Make the runs pending that are running in the name of `runner` and are not `at_work` there:
    it never learned that it took them. Return how many."""
    known = [run.id for run in at_work]
    theirs = and_(_runs.runner.is_not_distinct_from(runner), _runs.id.not_in(known))
    return _interrupt(connection, theirs, now)


def park_unknown(
    connection: Connection,
    known: Collection[tuple[str, str]],
    now: datetime,
    *,
    waiting_since: datetime,
    telling_of: TellingOf,
) -> None:
    """Park what has waited since `waiting_since` for a handler not in `known` (hook and name)."""
    names = select(_runs.hook, _runs.handler).where(_WAITS).distinct()
    for hook, name in connection.execute(names).all():
        if (hook, name) not in known:
            reason = f"no handler is named {name} any more"
            park_waiting(
                connection,
                (hook, name),
                reason,
                now,
                waiting_since=waiting_since,
                telling_of=telling_of,
            )


def park_waiting(
    connection: Connection,
    handler: tuple[str, str],
    reason: str,
    now: datetime,
    *,
    waiting_since: datetime,
    telling_of: TellingOf,
) -> None:
    """Park what has waited since `waiting_since` for `handler` (hook and name), for `reason`."""
    hook, name = handler
    theirs = and_(_WAITS, _runs.hook == hook, _runs.handler == name)
    waited = and_(theirs, _runs.state_since <= waiting_since)
    old = select(handler_runs).where(waited).limit(MOST_PARKED)
    old = old.with_for_update(skip_locked=True)
    _park(connection, connection.execute(old).all(), reason, now, telling_of)


def _pick(
    connection: Connection,
    handler: Handler,
    room: int,
    late: Collection[ClaimedRun],
    flip: Callable[[], int],
) -> Sequence[Row[Any]]:
    """Choose pending runs: the oldest, but if not all fit, the newest get half of the places.

    New calls are not kept waiting by a backlog, and the backlog gets done.
    """
    if room <= 0:
        return ()
    wanted = {
        "hook": handler.hook,
        "handler": handler.name,
        "late": [run.call_id for run in late if run.handler == handler.name],
    }
    oldest = connection.execute(_OLDEST, wanted | {"most": room + 1}).all()
    if len(oldest) <= room:
        return oldest
    newest = (room + flip()) // 2
    if not newest:
        return oldest[:room]
    return [
        *oldest[: room - newest],
        *connection.execute(_NEWEST, wanted | {"most": newest}).all(),
    ]


def _room_beside_others(
    connection: Connection, places: Places, handler: Handler, runner: str
) -> int:
    """Return the room that the runs in other processes leave, and keep those from taking more;
    none while another is taking some."""
    name = {"name": f"{handler.hook} {handler.name}"}
    if is_postgresql(connection) and not connection.scalar(_LOCK_HANDLER, name):
        return 0
    running = and_(IS_OPEN, _runs.state == "running", _runs.runner != runner)
    of_handler = and_(_runs.hook == handler.hook, _runs.handler == handler.name)
    count = select(func.count()).select_from(handler_runs).where(running, of_handler)
    return places.room(handler, elsewhere=connection.execute(count).scalar_one())


def _interrupt(connection: Connection, condition: ColumnElement[bool], now: datetime) -> int:
    """Make running runs pending whose attempts nobody will end; return how many."""
    running = and_(IS_OPEN, _runs.state == "running", condition)
    wanted = select(_runs.id).where(running).with_for_update(skip_locked=True)
    ids = connection.scalars(wanted).all()
    if ids:
        unended = and_(attempts.c.run_id.in_(ids), attempts.c.outcome.is_(None))
        connection.execute(update(attempts).where(unended).values(outcome="interrupted"))
        connection.execute(_to_pending(_runs.id.in_(ids)), {"now": now})
    return len(ids)


def _still_ours(connection: Connection, ends: Sequence[AttemptEnd]) -> list[AttemptEnd]:
    if not ends:
        return []
    parameters = {"ids": [end.run.id for end in ends]}
    unended = {tuple(row) for row in connection.execute(_UNENDED, parameters)}
    return [end for end in ends if (end.run.id, end.run.attempt) in unended]


def _begin(
    connection: Connection, ids: Sequence[int], now: datetime, runner: str | None
) -> list[ClaimedRun]:
    parameters = {"ids": ids, "now": now, "runner": runner}
    begun = connection.execute(_BEGIN_RUNS, parameters).mappings().all()
    numbers = {row.run_id: row.number for row in connection.execute(_BEGIN_ATTEMPTS, parameters)}
    claimed = [ClaimedRun(**run, attempt=numbers[run["id"]]) for run in begun]
    return sorted(claimed, key=lambda run: run.id)


def _park(
    connection: Connection,
    runs: Sequence[Row[Any]],
    reason: str,
    now: datetime,
    telling_of: TellingOf,
) -> None:
    for run in runs:
        parked = {"state": "parked", "state_since": now, "due_at": None, "reason": reason}
        connection.execute(update(handler_runs).where(_runs.id == run.id).values(parked))
        _tell(connection, run, now, telling_of)


def _tell(
    connection: Connection, parked: ClaimedRun | Row[Any], now: datetime, telling_of: TellingOf
) -> None:
    """Write a run for each handler that is to be told; of its own parking nobody is told."""
    if parked.hook == "end_of_call":
        for teller in telling_of(parked.handler):
            told = pending_run(
                parked.call_id, teller.name, now, hook="parked", parked_run_id=parked.id
            )
            connection.execute(insert(handler_runs), told)


def _forget(connection: Connection, run: ClaimedRun) -> None:
    """Delete a run; if it had taken the place of another, that one is the latest again."""
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
            _runs.call_id.not_in(bindparam("late", expanding=True)),
        )
        .order_by(order)
        .limit(bindparam("most"))
        .with_for_update(skip_locked=True)
    )


_WAKE_DUE = _to_pending(and_(HAS_FAILED, _runs.due_at <= _NOW))

_OLDEST = _next_pending(_runs.id.asc())
_NEWEST = _next_pending(_runs.id.desc())

_IDS: Any = bindparam("ids", expanding=True)

_BEGIN_RUNS = (
    update(handler_runs)
    .where(_runs.id.in_(_IDS))
    .values(state="running", state_since=_NOW, spent=_runs.spent + 1, runner=bindparam("runner"))
    .returning(
        _runs.id,
        _runs.call_id,
        _runs.hook,
        _runs.handler,
        _runs.spent,
        _runs.parked_run_id,
        _runs.change,
    )
)

_EARLIER = (
    select(func.count()).where(attempts.c.run_id == _runs.id).correlate(handler_runs)
).scalar_subquery()

_BEGIN_ATTEMPTS = (
    insert(attempts)
    .from_select(
        ["run_id", "number", "started_at"],
        select(_runs.id, literal(1) + _EARLIER, _NOW).where(_runs.id.in_(_IDS)),
    )
    .returning(attempts.c.run_id, attempts.c.number)
)

#: Runs are locked before their attempts, here as elsewhere.
_UNENDED = (
    select(attempts.c.run_id, attempts.c.number)
    .select_from(handler_runs.join(attempts))
    .where(_runs.id.in_(_IDS), attempts.c.outcome.is_(None))
    .with_for_update()
)

_LOCK_HANDLER = select(func.pg_try_advisory_xact_lock(func.hashtextextended(bindparam("name"), 0)))

_END_ATTEMPT = (
    update(attempts)
    .where(attempts.c.run_id == bindparam("run"), attempts.c.number == bindparam("attempt"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "ended_at",
                "duration_ms",
                "outcome",
                "error_type",
                "error_message",
                "traceback",
            )
        }
    )
)

_END_RUN = (
    update(handler_runs)
    .where(_runs.id == bindparam("run"))
    .values(
        state=bindparam("to"),
        state_since=_NOW,
        due_at=bindparam("due_at"),
        reason=bindparam("reason"),
        spent=bindparam("spent"),
    )
)


def _attempt_columns(end: AttemptEnd) -> dict[str, Any]:
    failure = end.failure
    return {
        "run": end.run.id,
        "attempt": end.run.attempt,
        "ended_at": end.ended_at,
        "duration_ms": end.duration_ms,
        "outcome": end.outcome,
        "error_type": failure.error_type if failure else None,
        "error_message": clean_text(failure.message) if failure else None,
        "traceback": clean_text(failure.traceback) if failure else None,
    }


def _run_columns(end: AttemptEnd) -> dict[str, Any]:
    return {
        "run": end.run.id,
        "to": end.state,
        "now": end.ended_at,
        "due_at": end.due_at,
        "reason": clean_text(end.reason),
        "spent": end.run.spent - (end.outcome == "handed_back"),
    }

"""Replays runs on request, and gives a handler calls that it has never had.

Works on the tables alone, in the caller's transaction; the runner executes what is written here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, select, update

from ..call_log.call_rows import pending_run
from ..call_log.changed_days import mark_days_of
from ..call_log.dialects import upsert
from ..call_log.queries.filters import ALL_CALLS, CallFilter, conditions_of
from ..call_log.sanitize import clean_int, clean_text
from ..call_log.tables import IS_OF_CALL, IS_RETRYING, calls, handler_runs, handlers
from ..exceptions import ConfigError

#: The status of calls that match a handler and have no run of it.
NEVER = "never"

#: So many ids are examined in one transaction at most, however few of them match:
#: acknowledgements wait for it.
_RANGE = 5_000

_runs = handler_runs.c

#: The registered handlers by hook and name: rows of `handlers`.
_Registered = Mapping[tuple[str, str], Row[Any]]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of a replay; `skipped` counts the runs that stay as they are, by reason.

    `run_ids` are the runs that are pending because of it; a sum of results has none.
    """

    queued: int = 0
    brought_forward: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    run_ids: tuple[int, ...] = field(default=(), compare=False)

    @property
    def changed(self) -> int:
        """How many runs are pending now because of it."""
        return self.queued + self.brought_forward

    @property
    def total(self) -> int:
        """How many runs were examined."""
        return self.changed + sum(self.skipped.values())

    def __add__(self, other: Replayed) -> Replayed:
        return Replayed(
            self.queued + other.queued,
            self.brought_forward + other.brought_forward,
            dict(Counter(self.skipped) + Counter(other.skipped)),
        )

    def __str__(self) -> str:
        parts = [f"{self.queued:,} queued"] if self.queued else []
        if self.brought_forward:
            parts.append(f"{self.brought_forward:,} brought forward")
        parts += [f"{count:,} skipped: {reason}" for reason, count in self.skipped.items()]
        return "; ".join(parts) or "nothing to replay"


@dataclass(frozen=True, slots=True)
class Preview:
    """What a bulk replay would do: with runs, and with calls that have none yet.

    The handler's `when`, which is the team's code, may still reject some of the calls.
    """

    runs: Replayed
    first_runs: int

    @property
    def changed(self) -> int:
        """How many runs would be pending because of it."""
        return self.runs.changed + self.first_runs

    @property
    def total(self) -> int:
        """How many runs it would examine or write."""
        return self.runs.total + self.first_runs


@dataclass(frozen=True, slots=True)
class Selection:
    """The runs of a bulk replay. Raises ConfigError if too little is given.

    `status` is a state, or "never" for calls that match the handler and have no run of it; without
    a status it is both. `calls` are the calls they are of; a beginning of time is a filter, an end
    alone is none.
    """

    handler: str | None = None
    status: str | None = None
    calls: CallFilter = ALL_CALLS

    def __post_init__(self) -> None:
        if self.handler is None and self.status == NEVER:
            raise ConfigError("Which handler never had the calls? Name it.")
        has_filter = replace(self.calls, until=None).is_narrow
        if self.handler is None and self.status is None and not has_filter:
            raise ConfigError(
                "Which runs? Name a handler, a status, a time to begin at or a filter."
            )

    @property
    def takes_runs(self) -> bool:
        """Whether it includes runs."""
        return self.status != NEVER

    @property
    def takes_calls(self) -> bool:
        """Whether it includes calls without a run."""
        return self.handler is not None and self.status in (None, NEVER)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position of a bulk replay. Its ends are fixed when it begins, so that it never replays
    runs of its own."""

    run: int
    last_run: int
    call: int
    last_call: int

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return self.run >= self.last_run and self.call >= self.last_call


def replay_run(connection: Connection, run_id: int, now: datetime) -> Replayed | None:
    """Replay a run, or the one that took its place; None if there is no such run."""
    run = connection.execute(_RUN.where(_runs.id == clean_int(run_id))).one_or_none()
    if run is None:
        return None
    # Another replay of the same call waits here, and then sees the new run.
    connection.execute(_CALL.where(calls.c.id == run.call_id).with_for_update())
    latest = _LATEST.where(
        _runs.call_id == run.call_id,
        _runs.hook == run.hook,
        _runs.handler == run.handler,
        _runs.failed_run_id.is_not_distinct_from(run.failed_run_id),
    )
    return _replay(connection, connection.execute(latest).all(), now)


def replay_runs(
    connection: Connection, session_id: str, run_ids: Iterable[int], now: datetime
) -> Replayed | None:
    """Replay runs of one call; None if it has none of them.

    Those that were replayed already are skipped, as after a double click or on an old page.
    """
    call_id = _lock_call(connection, session_id)
    of_call = _RUN.where(_runs.call_id == call_id, _runs.id.in_(map(clean_int, run_ids)))
    runs = connection.execute(of_call.order_by(_runs.id)).all()
    if call_id is None or not runs:
        return None
    latest = [run for run in runs if run.is_latest]
    replayed = _replay(connection, latest, now)
    if late := len(runs) - len(latest):
        return replace(replayed, skipped={**replayed.skipped, "already replayed": late})
    return replayed


def replay_failed(connection: Connection, run_ids: Iterable[int], now: datetime) -> Replayed:
    """Replay those of the runs that are still failed, of any calls; the others are left out."""
    failed = _LATEST.where(_runs.id.in_(run_ids), _runs.state == "failed")
    return _replay(connection, connection.execute(failed.with_for_update()).all(), now)


def replay_call(connection: Connection, session_id: str, now: datetime) -> Replayed | None:
    """Replay every handler that ran for a call; None if there is no such call."""
    call_id = _lock_call(connection, session_id)
    if call_id is None:
        return None
    latest = _LATEST.where(IS_OF_CALL, _runs.call_id == call_id).order_by(_runs.id)
    return _replay(connection, connection.execute(latest).all(), now)


def preview(connection: Connection, selection: Selection, now: datetime) -> Preview:
    """Count what a bulk replay would do; reads all runs or calls."""
    registered = _registered(connection)
    grouped: Sequence[Row[Any]] = []
    if selection.takes_runs:
        kinds = (_runs.hook, _runs.handler, _runs.state)
        chosen = select(*kinds, func.count().label("number")).where(
            *_run_conditions(selection, now)
        )
        grouped = connection.execute(chosen.group_by(*kinds)).all()
    first_runs = 0
    if selection.takes_calls:
        chosen = select(func.count()).where(*_call_conditions(selection, registered, now))
        first_runs = connection.scalar(chosen) or 0
    return Preview(_tally(((run, run.number) for run in grouped), registered), first_runs)


def replay_batch(
    connection: Connection,
    selection: Selection,
    now: datetime,
    after: Cursor | None = None,
    size: int = 200,
) -> tuple[Replayed, Cursor | None]:
    """Replay at most `size` runs, before calls without one; the cursor is None at the end."""
    cursor = _start_of(connection, selection) if after is None else after
    if cursor.run < cursor.last_run:
        end = min(cursor.run + _RANGE, cursor.last_run)
        replayed, come_to = _replay_runs(connection, selection, now, cursor.run, end, size)
        cursor = replace(cursor, run=come_to)
    else:
        end = min(cursor.call + _RANGE, cursor.last_call)
        replayed, come_to = _write_first_runs(connection, selection, now, cursor.call, end, size)
        cursor = replace(cursor, call=come_to)
    return replayed, None if cursor.is_at_end else cursor


def _start_of(connection: Connection, selection: Selection) -> Cursor:
    last_run = connection.scalar(select(func.max(_runs.id))) if selection.takes_runs else 0
    last_call = connection.scalar(select(func.max(calls.c.id))) if selection.takes_calls else 0
    return Cursor(0, last_run or 0, 0, last_call or 0)


def _replay_runs(
    connection: Connection, selection: Selection, now: datetime, after: int, end: int, size: int
) -> tuple[Replayed, int]:
    chosen = _limited(_LATEST.where(*_run_conditions(selection, now)), _runs.id, after, end, size)
    runs = connection.execute(chosen).all()
    return _replay(connection, runs, now), runs[-1].id if len(runs) == size else end


def _write_first_runs(
    connection: Connection, selection: Selection, now: datetime, after: int, end: int, size: int
) -> tuple[Replayed, int]:
    conditions = _call_conditions(selection, _registered(connection), now)
    chosen = _limited(select(calls.c.id).where(*conditions), calls.c.id, after, end, size)
    ids = connection.scalars(chosen).all()
    if ids and selection.handler is not None:
        rows = [pending_run(id_, selection.handler, now, is_replay=True) for id_ in ids]
        # Another replay may write the same.
        connection.execute(upsert(connection, handler_runs).on_conflict_do_nothing(), rows)
    return Replayed(len(ids)), ids[-1] if len(ids) == size else end


def _limited(
    chosen: Select[Any], key: ColumnElement[int], after: int, end: int, size: int
) -> Select[Any]:
    return chosen.where(key > after, key <= end).order_by(key).limit(size)


_CALL = select(calls.c.id)
_RUN: Select[Any] = select(
    _runs.id,
    _runs.call_id,
    _runs.hook,
    _runs.handler,
    _runs.state,
    _runs.failed_run_id,
    _runs.change,
    _runs.is_latest,
)
_LATEST = _RUN.where(_runs.is_latest)


def _lock_call(connection: Connection, session_id: str) -> int | None:
    """Return the id of a call; another replay of it waits until this one is over."""
    call = _CALL.where(calls.c.session_id == clean_text(session_id))
    return connection.scalar(call.with_for_update())


def _run_conditions(selection: Selection, now: datetime) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [IS_OF_CALL]
    if selection.handler is not None:
        conditions.append(_runs.handler == clean_text(selection.handler))
    if selection.status is not None:
        conditions.append(_runs.state == selection.status)
    if selection.calls != ALL_CALLS:
        # By key for each row: a join could start with the calls and read all of them.
        of_call = select(calls.c.id).where(calls.c.id == _runs.call_id)
        of_call = of_call.where(*conditions_of(selection.calls, now)).correlate(handler_runs)
        conditions.append(of_call.exists())
    return conditions


def _call_conditions(
    selection: Selection, registered: _Registered, now: datetime
) -> list[ColumnElement[bool]]:
    """Return the conditions of calls that match a handler and have no run of it; none match if
    there is no such handler."""
    handler = registered.get(("end_of_call", selection.handler or ""))
    if handler is None:
        return [calls.c.id.is_(None)]
    filters = json.loads(handler.filters)
    had = select(_runs.id).where(
        IS_OF_CALL, _runs.call_id == calls.c.id, _runs.handler == handler.name
    )
    return [
        calls.c.delivery_id.is_not(None),
        ~had.exists(),
        *(calls.c[name].in_(map(clean_text, values)) for name, values in filters.items()),
        *conditions_of(selection.calls, now),
    ]


def _registered(connection: Connection) -> _Registered:
    return {(row.hook, row.name): row for row in connection.execute(select(handlers))}


def _replay(connection: Connection, runs: Sequence[Row[Any]], now: datetime) -> Replayed:
    """Bring forward runs that wait for a retry, and replace runs that are over."""
    registered = _registered(connection)
    replayable = [run for run in runs if _refusal(run, registered) is None]
    retrying = [run.id for run in replayable if run.state == "retrying"]
    _bring_forward(connection, retrying, now)
    new = _replace(connection, [run for run in replayable if run.state != "retrying"], now)
    return replace(_tally(((run, 1) for run in runs), registered), run_ids=(*retrying, *new))


def _refusal(run: Row[Any], registered: _Registered) -> str | None:
    """Return in words why a run stays as it is, or None."""
    handler = registered.get((run.hook, run.handler))
    if handler is None:
        return f"no handler is named {run.handler!r} any more"
    if run.state in ("pending", "running"):
        return "already waiting"
    if run.state != "retrying" and not handler.repeatable:
        return f"{run.handler!r} is not repeatable"
    return None


def _tally(runs: Iterable[tuple[Row[Any], int]], registered: _Registered) -> Replayed:
    """Return the result for runs, each given with how many there are like it."""
    queued = brought_forward = 0
    skipped: Counter[str] = Counter()
    for run, number in runs:
        refusal = _refusal(run, registered)
        if refusal is not None:
            skipped[refusal] += number
        elif run.state == "retrying":
            brought_forward += number
        else:
            queued += number
    return Replayed(queued, brought_forward, dict(skipped))


def _bring_forward(connection: Connection, ids: Sequence[int], now: datetime) -> None:
    if ids:
        due_now = {"state": "pending", "state_since": now, "due_at": None}
        # Another process may have begun some of them meanwhile.
        waiting = update(handler_runs).where(_runs.id.in_(ids), IS_RETRYING)
        connection.execute(waiting.values(due_now))


def _replace(connection: Connection, runs: Sequence[Row[Any]], now: datetime) -> Sequence[int]:
    """Write a new run in the place of each, and return their ids."""
    if not runs:
        return ()
    ids = [run.id for run in runs]
    replaced = update(handler_runs).where(_runs.id.in_(ids), _runs.is_latest)
    replaced = replaced.values(is_latest=False).returning(_runs.id)
    # The others were replaced meanwhile by another replay.
    ours = set(connection.scalars(replaced))
    rows = [
        pending_run(
            run.call_id,
            run.handler,
            now,
            hook=run.hook,
            is_replay=True,
            failed_run_id=run.failed_run_id,
            change=run.change,
        )
        for run in runs
        if run.id in ours
    ]
    if not rows:
        return ()
    mark_days_of(connection, [row["call_id"] for row in rows])
    return connection.scalars(insert(handler_runs).returning(_runs.id), rows).all()

"""Tallies of a span of time, from the rows: numbers by measure and name, and samples.

Tallies of several spans add up to the tally of all of them; averages and percentiles would not, so
samples are kept one by one. Made-up calls are left out. Correct, and slow for long spans.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, literal, or_, select

from ..tables import attempts, calls, cost_items, handler_runs
from .filters import IS_REAL, aside

#: How calls ended, and how prefetches were answered; the name "" is for what is not known.
OUTCOME, STATUS, PREFETCH = "outcome", "status", "prefetch"
#: Credits by what they were for and by who took them; COST has one name, and none if none came.
COST, TYPE, PROVIDER = "cost", "type", "provider"
#: Of handlers, by `handler_key`.
RUNS, PARKED, ATTEMPTS, FAILED = "runs", "parked", "attempts", "failed"

#: Samples: lengths of calls in seconds, latencies of prefetches and of attempts in milliseconds.
DURATION_S, PREFETCH_MS, ATTEMPT_MS = "duration_s", "prefetch_ms", "attempt_ms"

_BYTES = 8


class Tally:
    """Numbers and samples that things are added to."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, defaultdict[str, float]] = defaultdict(_zeros)
        self._samples: defaultdict[str, list[float]] = defaultdict(list)
        self._packed: defaultdict[str, list[bytes]] = defaultdict(list)

    def add(self, measure: str, name: str, amount: float = 1) -> None:
        self._numbers[measure][name] += amount

    def sample(self, measure: str, value: float | None) -> None:
        if value is not None:
            self._samples[measure].append(value)

    def numbers(self, measure: str) -> dict[str, float]:
        """Return what was added, by name."""
        return dict(self._numbers.get(measure, {}))

    def total(self, measure: str) -> float:
        """Return what was added under all names together."""
        return sum(self._numbers.get(measure, {}).values())

    def take_samples(self) -> dict[str, Sequence[float]]:
        """Return the samples by measure, each sorted, and forget them: they are many."""
        # What is packed is sorted already, which leaves little to do.
        measures = sorted({*self._samples, *self._packed})
        return {measure: array("d", sorted(self._take(measure))) for measure in measures}

    def _take(self, measure: str) -> list[float]:
        packed = b"".join(self._packed.pop(measure, ()))
        values = list(struct.unpack(f"<{len(packed) // _BYTES}d", packed))
        return values + self._samples.pop(measure, [])

    def pack(self) -> tuple[str, bytes]:
        """Return the tally as JSON and bytes, for `add_packed`; its samples are taken."""
        samples = self.take_samples()
        lengths = [(measure, len(values)) for measure, values in samples.items()]
        facts = {"numbers": self._numbers, "samples": lengths}
        values = [value for each in samples.values() for value in each]
        return json.dumps(facts, separators=(",", ":")), struct.pack(f"<{len(values)}d", *values)

    def add_packed(self, facts: str, values: bytes) -> None:
        """Add all that another tally was packed from."""
        told = json.loads(facts)
        for measure, numbers in told["numbers"].items():
            own = self._numbers[measure]
            for name, amount in numbers.items():
                own[name] += amount
        start = 0
        for measure, count in told["samples"]:
            end = start + count * _BYTES
            self._packed[measure].append(values[start:end])
            start = end


def _zeros() -> defaultdict[str, float]:
    return defaultdict(int)


def handler_key(hook: str, handler: str) -> str:
    """Return one name for both; no hook has a space in it."""
    return f"{hook} {handler}"


def sum_numbers(tallies: Iterable[Tally], measure: str) -> dict[str, float]:
    """Return what was added to all of them together, by name."""
    summed = _zeros()
    for tally in tallies:
        for name, amount in tally.numbers(measure).items():
            summed[name] += amount
    return dict(summed)


#: The tally of all calls, among those by agent.
EVERYBODY = ""

#: Ends of an attempt that nobody would call a failure of the handler.
NO_FAILURES = frozenset({"succeeded", "handed_back", "retry"})

#: What the column with the number of the stretch is called.
_NUMBER = "stretch_number"

#: Names come from outside and are to stand under a chart.
_NAME_CHARS = 100

#: Stretches that are asked for in one statement.
_AT_ONCE = 64


class Stretch(NamedTuple):
    """From `since` until just before `until`, and the tally of what was received then."""

    since: datetime
    until: datetime
    tally: Tally


#: The tallies that a row is added to, by the number of its stretch and by its agent.
Into: TypeAlias = Callable[[int, str | None], Iterable[Tally]]


def tally_rows(connection: Connection, stretches: Sequence[Stretch], agents: Sequence[str]) -> None:
    """Add what is known of the calls received in each stretch; of all agents if none are given.

    The stretches are in order of time, and none overlaps another.
    """
    chosen = [calls.c.agent_id.in_(agents)] if agents else []
    for first in range(0, len(stretches), _AT_ONCE):
        some = stretches[first : first + _AT_ONCE]
        _tally(connection, [stretch[:2] for stretch in some], chosen, _into_own(some))


def _into_own(stretches: Sequence[Stretch]) -> Into:
    def into(number: int, _agent: str | None) -> Iterable[Tally]:
        return (stretches[number].tally,)

    return into


def tally_by_agent(connection: Connection, since: datetime, until: datetime) -> dict[str, Tally]:
    """Return the tallies of all calls received in that time, under "", and of each agent's."""
    tallies = defaultdict[str, Tally](Tally)

    def into(_number: int, agent: str | None) -> Iterable[Tally]:
        return (tallies[EVERYBODY], tallies[agent]) if agent else (tallies[EVERYBODY],)

    _tally(connection, [(since, until)], [], into)
    return tallies


def _tally(
    connection: Connection,
    stretches: Sequence[tuple[datetime, datetime]],
    chosen: Sequence[ColumnElement[bool]],
    into: Into,
) -> None:
    # A source comes with the delivery that tells the rest, so summaries know when one does.
    wanted = and_(_is_in_any(stretches), IS_REAL, *chosen)
    for rows, add in _COUNTED:
        numbered = rows.add_columns(_number_among(stretches)).where(wanted)
        for row in connection.execute(numbered):
            for tally in into(row[-1], row[0]):
                add(tally, *row[1:-1])


def _is_in_any(stretches: Sequence[tuple[datetime, datetime]]) -> ColumnElement[bool]:
    at = calls.c.received_at
    return or_(*(and_(at >= since, at < until) for since, until in stretches))


def _number_among(stretches: Sequence[tuple[datetime, datetime]]) -> ColumnElement[int]:
    """Say in which of them a call was received that was received in one."""
    last = len(stretches) - 1
    at = calls.c.received_at
    ends = [(at < until, number) for number, (_, until) in enumerate(stretches)]
    return (case(*ends[:-1], else_=last) if last else literal(0)).label(_NUMBER)


def _named(column: ColumnElement[str | None]) -> ColumnElement[str]:
    return func.substr(func.coalesce(column, ""), 1, _NAME_CHARS)


# From calls to what belongs to them: SQLite would rather read all costs, or all agents.
_CALL_ID, _AGENT_ID = aside(calls.c.id), aside(calls.c.agent_id)
_COST_OF_CALL = calls.join(cost_items, cost_items.c.call_id == _CALL_ID)
_RUN_OF_CALL = calls.join(handler_runs, handler_runs.c.call_id == _CALL_ID)
_ATTEMPT_OF_CALL = _RUN_OF_CALL.join(attempts, attempts.c.run_id == handler_runs.c.id)

_CALLS: Select[Any] = select(
    calls.c.agent_id,
    _named(calls.c.outcome),
    _named(calls.c.call_status),
    calls.c.prefetch_outcome,
    calls.c.duration_s,
    calls.c.prefetch_ms,
    calls.c.cost_total,
)


def _add_call(
    tally: Tally,
    outcome: str,
    status: str,
    prefetch: str | None,
    duration_s: float | None,
    prefetch_ms: float | None,
    cost: float | None,
) -> None:
    tally.add(OUTCOME, outcome)
    tally.add(STATUS, status)
    if prefetch is not None:
        tally.add(PREFETCH, prefetch)
    if cost is not None:
        tally.add(COST, "", cost)
    tally.sample(DURATION_S, duration_s)
    tally.sample(PREFETCH_MS, prefetch_ms)


_COST_NAMES = (_named(cost_items.c.type), _named(cost_items.c.provider))
_COSTS: Select[Any] = (
    select(_AGENT_ID, *_COST_NAMES, func.sum(cost_items.c.credit))
    .select_from(_COST_OF_CALL)
    .where(cost_items.c.credit.is_not(None))
    .group_by(_AGENT_ID, *_COST_NAMES, _NUMBER)
)


def _add_costs(tally: Tally, type_: str, provider: str, credits_: float) -> None:
    tally.add(TYPE, type_, credits_)
    tally.add(PROVIDER, provider, credits_)


_HANDLER = (handler_runs.c.hook, handler_runs.c.handler)
_IS_PARKED = and_(handler_runs.c.state == "parked", handler_runs.c.is_latest)
_RUNS: Select[Any] = (
    select(_AGENT_ID, *_HANDLER, func.count(), func.count().filter(_IS_PARKED))
    .select_from(_RUN_OF_CALL)
    .group_by(_AGENT_ID, *_HANDLER, _NUMBER)
)


def _add_runs(tally: Tally, hook: str, handler: str, runs: int, parked: int) -> None:
    key = handler_key(hook, handler)
    tally.add(RUNS, key, runs)
    if parked:
        tally.add(PARKED, key, parked)


_ATTEMPTS: Select[Any] = (
    select(calls.c.agent_id, *_HANDLER, attempts.c.outcome, attempts.c.duration_ms)
    .select_from(_ATTEMPT_OF_CALL)
    .where(attempts.c.outcome.is_not(None))
)


def _add_attempt(
    tally: Tally, hook: str, handler: str, outcome: str, duration_ms: float | None
) -> None:
    key = handler_key(hook, handler)
    tally.add(ATTEMPTS, key)
    if outcome not in NO_FAILURES:
        tally.add(FAILED, key)
    tally.sample(f"{ATTEMPT_MS} {key}", duration_ms)


#: Rows that begin with the agent, and what adds the others of their columns to a tally.
_COUNTED: Sequence[tuple[Select[Any], Callable[..., None]]] = (
    (_CALLS, _add_call),
    (_COSTS, _add_costs),
    (_RUNS, _add_runs),
    (_ATTEMPTS, _add_attempt),
)

"""What the calls of a period add up to: numbers by measure and name, and samples for percentiles.

Tallies of several periods add up to the tally of all of them; averages and percentiles would not,
so samples are kept one by one. Calls are real ones, unless others are asked for.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    select,
    true,
    union_all,
)

from ..statements import aside
from ..tables import attempts, calls, cost_items, handler_runs
from .filters import IS_REAL, made_up_by

#: How calls ended, and how prefetches were answered; the name "" stands for an unknown one.
OUTCOME, STATUS, PREFETCH = "outcome", "status", "prefetch"
#: Credits: in all, under the name "", by what they were for, and by who took them.
COST, TYPE, PROVIDER = "cost", "type", "provider"
#: Of handlers, named by hook and handler with a blank between them; no hook has one in it.
RUNS, FAILED_RUNS = "runs", "failed_runs"
ATTEMPTS, FAILED_ATTEMPTS = "attempts", "failed_attempts"
#: Samples: lengths of calls in seconds, latencies of prefetches and of attempts in milliseconds.
DURATION_S, PREFETCH_MS, ATTEMPT_MS = "duration_s", "prefetch_ms", "attempt_ms"
SAMPLED = frozenset({DURATION_S, PREFETCH_MS, ATTEMPT_MS})

#: Outcomes of an attempt that do not count as a failure of the handler.
NO_FAILURES = ("succeeded", "handed_back", "retry")

#: Names come from outside and are shown under a chart.
_NAME_CHARS = 100

#: A measure and a name.
Key: TypeAlias = tuple[str, str]


def _zeros() -> defaultdict[str, float]:
    return defaultdict(int)


class Tally:
    """Numbers, and samples in sorted arrays, by measure and name."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, defaultdict[str, float]] = defaultdict(_zeros)
        self._samples: defaultdict[Key, list[Sequence[float]]] = defaultdict(list)

    def add(self, measure: str, name: str, values: Sequence[float]) -> None:
        """Add numbers, or samples in ascending order."""
        if measure in SAMPLED:
            self._samples[measure, name].append(values)
        else:
            self._numbers[measure][name] += sum(values)

    def numbers(self, measure: str) -> Mapping[str, float]:
        """Return the numbers of a measure by name."""
        return self._numbers.get(measure, {})

    def samples(self, measure: str, name: str = "") -> list[Sequence[float]]:
        """Return the samples in several sorted parts."""
        return self._samples.get((measure, name), [])


def sum_numbers(tallies: Iterable[Tally], measure: str) -> dict[str, float]:
    """Return the numbers of a measure in all tallies together, by name."""
    summed: defaultdict[str, float] = defaultdict(int)
    for tally in tallies:
        for name, number in tally.numbers(measure).items():
            summed[name] += number
    return dict(summed)


Sorted = Sequence[float]
#: Up to this many numbers, sorting is faster than a search in their lists.
_SORTED_AT_ONCE = 5_000


def percentile(lists: Sequence[Sorted], share: float) -> float | None:
    """Return the percentile of all numbers in these sorted lists; None if there are none."""
    filled = [each for each in lists if each]
    count = sum(map(len, filled))
    if not count:
        return None
    rank = max(math.ceil(share * count), 1)
    is_few = count <= _SORTED_AT_ONCE
    return sorted(chain.from_iterable(filled))[rank - 1] if is_few else _ranked(filled, rank)


def count_between(lists: Sequence[Sorted], edges: Sequence[float]) -> tuple[int, ...]:
    """Count the numbers under the first edge, from each edge to the next, and from the last on."""
    under = [sum(bisect_left(each, edge) for each in lists) for edge in edges]
    total = sum(map(len, lists))
    return tuple(above - below for below, above in zip([0, *under], [*under, total], strict=True))


def _ranked(lists: Sequence[Sorted], rank: int) -> float:
    """Return the number that `rank` numbers do not exceed: halve the range that it is in."""
    if len(lists) == 1:
        return lists[0][rank - 1]
    low, high = min(each[0] for each in lists), max(each[-1] for each in lists)
    while low < high:
        middle = low + (high - low) / 2
        if middle >= high:  # rounded up: there is nothing between the two
            middle = low
        places = [bisect_right(each, middle) for each in lists]
        if sum(places) >= rank:
            # From here on `high` is a number of the lists, so the range ends in one.
            high = max(each[place - 1] for each, place in zip(lists, places, strict=True) if place)
        else:
            low = min(
                each[place] for each, place in zip(lists, places, strict=True) if place < len(each)
            )
    return low


def read_tally(
    connection: Connection,
    since: datetime,
    until: datetime,
    agents: Sequence[str],
    into: Tally,
    *,
    source: str = "real",
) -> None:
    """Add the calls of a source received from `since` until just before `until`: all, or those of
    `agents`."""
    period: dict[str, Any] = {"since": since, "until": until}
    if agents:
        period["agents"] = list(agents)
    statement = _statement(source, of_agents=bool(agents))
    for _, measure, name, values in _grouped(connection.execute(statement, period)):
        into.add(measure, name, values)


def read_by_agent(
    connection: Connection, since: datetime, until: datetime
) -> Iterator[tuple[str | None, str, str, array[float]]]:
    """Yield agent, measure, name and values of the calls received in that time."""
    return _grouped(connection.execute(_BY_AGENT, {"since": since, "until": until}))


def _grouped(rows: Iterable[Any]) -> Iterator[tuple[str | None, str, str, array[float]]]:
    grouped: defaultdict[tuple[str | None, str, str], list[float]] = defaultdict(list)
    for agent_id, measure, name, value in rows:
        grouped[agent_id, measure, name].append(value)
    for key, values in grouped.items():
        yield *key, array("d", sorted(values))


def named(column: ColumnElement[str | None]) -> ColumnElement[Any]:
    """Return a name as it is counted: short, and "" for an unknown one."""
    return func.substr(func.coalesce(column, ""), 1, _NAME_CHARS)


#: The condition for a call of a period.
RECEIVED = and_(calls.c.received_at >= bindparam("since"), calls.c.received_at < bindparam("until"))

#: By their places in the select list: PostgreSQL groups by no constant.
_AGENT_AND_NAME: tuple[Any, Any] = (literal_column("1"), literal_column("3"))


def is_of(source: str) -> ColumnElement[bool]:
    """Return the condition for a call of a source; made-up ones have an index of their own."""
    made_up = made_up_by(source)
    return calls.c.source.in_(made_up) if made_up else IS_REAL


def _values(agent_id: ColumnElement[Any], chosen: ColumnElement[bool], source: str = "real") -> Any:
    """Select agent, measure, name and value: sums are made by the database, samples are not."""
    period = select(
        calls.c.id,
        agent_id.label("agent_id"),
        named(calls.c.outcome).label("outcome"),
        named(calls.c.call_status).label("status"),
        calls.c.prefetch_outcome,
        calls.c.prefetch_ms,
        calls.c.duration_s,
        calls.c.cost_total,
    )
    call = period.where(RECEIVED, is_of(source), chosen).cte("period").c
    cost, run, attempt = _belonging_to(call)
    no_name: Any = literal_column("''")
    return union_all(
        _sum(OUTCOME, call.agent_id, call.outcome),
        _sum(STATUS, call.agent_id, call.status),
        _sum(PREFETCH, call.agent_id, call.prefetch_outcome),
        _sum(COST, call.agent_id, no_name, call.cost_total),
        _sum(TYPE, cost.agent_id, cost.type, cost.credit),
        _sum(PROVIDER, cost.agent_id, cost.provider, cost.credit),
        _sum(RUNS, run.agent_id, run.handler),
        _sum(FAILED_RUNS, run.agent_id, run.handler).where(run.state == "failed", run.is_latest),
        _sum(ATTEMPTS, attempt.agent_id, attempt.handler),
        _sum(FAILED_ATTEMPTS, attempt.agent_id, attempt.handler).where(
            attempt.outcome.not_in(NO_FAILURES)
        ),
        _each(DURATION_S, call.agent_id, no_name, call.duration_s),
        _each(PREFETCH_MS, call.agent_id, no_name, call.prefetch_ms),
        _each(ATTEMPT_MS, attempt.agent_id, attempt.handler, attempt.duration_ms),
    )


def _belonging_to(call: Any) -> tuple[Any, Any, Any]:
    """Select the costs, the runs and the ended attempts of calls.

    From calls to what belongs to them: SQLite would rather read all costs, or all runs.
    """
    call_id = aside(call.id)
    items = cost_items.c
    names = named(items.type).label("type"), named(items.provider).label("provider")
    costs = select(call.agent_id, *names, func.sum(items.credit).label("credit"))
    costs = costs.where(items.call_id == call_id, items.credit.is_not(None))
    r = handler_runs.c
    handler = (r.hook + " " + r.handler).label("handler")
    runs = select(call.agent_id, r.id, handler, r.state, r.is_latest)
    run = runs.where(r.call_id == call_id).cte("runs").c
    tries = select(run.agent_id, run.handler, attempts.c.outcome, attempts.c.duration_ms)
    of_run = and_(attempts.c.run_id == aside(run.id), attempts.c.outcome.is_not(None))
    cost = costs.group_by(call.agent_id, "type", "provider").cte("costs").c
    return cost, run, tries.where(of_run).cte("ended").c


def _sum(measure: str, agent_id: Any, name: Any, amount: Any = None) -> Select[Any]:
    """Select the sum of an amount for each name, or how many rows have the name."""
    known, total = (name, func.count()) if amount is None else (amount, func.sum(amount))
    return (
        select(agent_id, literal_column(f"'{measure}'"), name, total)
        .where(known.is_not(None))
        .group_by(*_AGENT_AND_NAME)
    )


def _each(measure: str, agent_id: Any, name: Any, value: Any) -> Select[Any]:
    row = select(agent_id, literal_column(f"'{measure}'"), name, value)
    return row.where(value.is_not(None))


_TOGETHER = cast(null(), Text)


@cache
def _statement(source: str, *, of_agents: bool) -> Any:
    agents = calls.c.agent_id.in_(bindparam("agents", expanding=True))
    return _values(_TOGETHER, agents if of_agents else true(), source)


_BY_AGENT = _values(calls.c.agent_id, true())

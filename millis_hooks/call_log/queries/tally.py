"""What the calls of a period add up to: numbers by measure and name, and samples for percentiles.

Tallies of several periods add up to the tally of all of them; averages and percentiles would not,
so samples are kept one by one. Made-up calls are left out.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    true,
    union_all,
)

from ..tables import attempts, calls, cost_items, handler_runs
from .filters import IS_REAL

#: How calls ended, and how prefetches were answered; the name "" stands for an unknown one.
OUTCOME, STATUS, PREFETCH = "outcome", "status", "prefetch"
#: Credits: in all, under the name "", by what they were for, and by who took them.
COST, TYPE, PROVIDER = "cost", "type", "provider"
#: Of handlers, named by hook and handler with a blank between them; no hook has one in it.
RUNS, PARKED, ATTEMPTS, FAILED = "runs", "parked", "attempts", "failed"
#: Samples: lengths of calls in seconds, latencies of prefetches and of attempts in milliseconds.
DURATION_S, PREFETCH_MS, ATTEMPT_MS = "duration_s", "prefetch_ms", "attempt_ms"
SAMPLED = frozenset({DURATION_S, PREFETCH_MS, ATTEMPT_MS})

#: Outcomes of an attempt that do not count as a failure of the handler.
NO_FAILURES = ("succeeded", "handed_back", "retry")

#: Names come from outside and are shown under a chart.
_NAME_CHARS = 100

#: A measure and a name.
Key: TypeAlias = tuple[str, str]


class Tally:
    """Numbers, and samples in sorted arrays, by measure and name."""

    def __init__(self) -> None:
        self._numbers: defaultdict[Key, float] = defaultdict(int)
        self._samples: defaultdict[Key, list[Sequence[float]]] = defaultdict(list)

    def add(self, measure: str, name: str, values: Sequence[float]) -> None:
        """Add numbers, or samples in ascending order."""
        if measure in SAMPLED:
            self._samples[measure, name].append(values)
        else:
            self._numbers[measure, name] += sum(values)

    def add_all(self, values: Mapping[Key, Sequence[float]]) -> None:
        """Add values of several measures, those of samples in ascending order."""
        for (measure, name), each in values.items():
            self.add(measure, name, each)

    def numbers(self, measure: str) -> dict[str, float]:
        """Return the numbers of a measure by name."""
        return {name: n for (each, name), n in self._numbers.items() if each == measure}

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


def read_calls(
    connection: Connection, since: datetime, until: datetime, agents: Sequence[str] = ()
) -> dict[str | None, dict[Key, array[float]]]:
    """Return the values of the calls received from `since` until just before `until`.

    They are by agent, then by measure and name, and in ascending order. `agents` are alternatives;
    all calls are read if there are none.
    """
    period = {"since": since, "until": until}
    chosen = {"agents": list(agents)} if agents else {}
    rows = connection.execute(_OF_AGENTS if agents else _OF_ALL, period | chosen)
    read: defaultdict[str | None, defaultdict[Key, list[float]]]
    read = defaultdict(lambda: defaultdict(list))
    for agent_id, measure, name, value in rows:
        read[agent_id][measure, name].append(value)
    return {
        agent_id: {key: array("d", sorted(values)) for key, values in by_key.items()}
        for agent_id, by_key in read.items()
    }


def _named(column: ColumnElement[str | None]) -> ColumnElement[Any]:
    return func.substr(func.coalesce(column, ""), 1, _NAME_CHARS)


#: By their places in the select list: PostgreSQL groups by no constant.
_AGENT_AND_NAME: tuple[Any, Any] = (literal_column("1"), literal_column("3"))


def _values(calls_wanted: ColumnElement[bool]) -> Any:
    """Select agent, measure, name and value: sums are made by the database, samples are not."""
    received = and_(
        calls.c.received_at >= bindparam("since"), calls.c.received_at < bindparam("until")
    )
    period = select(
        calls.c.id,
        calls.c.agent_id,
        _named(calls.c.outcome).label("outcome"),
        _named(calls.c.call_status).label("status"),
        calls.c.prefetch_outcome,
        calls.c.prefetch_ms,
        calls.c.duration_s,
        calls.c.cost_total,
    )
    of_period = period.where(received, IS_REAL, calls_wanted).cte("period")
    call, cost, run, tried = of_period.c, cost_items.c, handler_runs.c, attempts.c
    costs = of_period.join(cost_items, cost.call_id == call.id)
    runs = of_period.join(handler_runs, run.call_id == call.id)
    ended = runs.join(attempts, and_(tried.run_id == run.id, tried.outcome.is_not(None)))
    of_handler = run.hook + " " + run.handler
    nothing: Any = literal_column("''")

    def read(
        measure: str, rows: FromClause, name: Any, value: Any, *where: ColumnElement[bool]
    ) -> Select[Any]:
        named: Any = literal_column(f"'{measure}'")
        return select(call.agent_id, named, name, value).select_from(rows).where(*where)

    def add_up(
        measure: str, rows: FromClause, name: Any, amount: Any, *where: ColumnElement[bool]
    ) -> Select[Any]:
        return read(measure, rows, name, amount, *where).group_by(*_AGENT_AND_NAME)

    return union_all(
        add_up(OUTCOME, of_period, call.outcome, func.count()),
        add_up(STATUS, of_period, call.status, func.count()),
        add_up(
            PREFETCH,
            of_period,
            call.prefetch_outcome,
            func.count(),
            call.prefetch_outcome.is_not(None),
        ),
        add_up(COST, of_period, nothing, func.sum(call.cost_total), call.cost_total.is_not(None)),
        add_up(TYPE, costs, _named(cost.type), func.sum(cost.credit), cost.credit.is_not(None)),
        add_up(
            PROVIDER, costs, _named(cost.provider), func.sum(cost.credit), cost.credit.is_not(None)
        ),
        add_up(RUNS, runs, of_handler, func.count()),
        add_up(PARKED, runs, of_handler, func.count(), run.state == "parked", run.is_latest),
        add_up(ATTEMPTS, ended, of_handler, func.count()),
        add_up(FAILED, ended, of_handler, func.count(), tried.outcome.not_in(NO_FAILURES)),
        read(DURATION_S, of_period, nothing, call.duration_s, call.duration_s.is_not(None)),
        read(PREFETCH_MS, of_period, nothing, call.prefetch_ms, call.prefetch_ms.is_not(None)),
        read(ATTEMPT_MS, ended, of_handler, tried.duration_ms, tried.duration_ms.is_not(None)),
    )


_OF_ALL = _values(true())
_OF_AGENTS = _values(calls.c.agent_id.in_(bindparam("agents", expanding=True)))

"""What the calls of a period add up to: numbers by measure and name, samples for percentiles, and
results: numbers by their sum, other values by shares.

Tallies of several periods add up to the tally of all of them; averages and percentiles would not,
so samples are kept one by one. Calls are real ones, unless others are asked for.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
)

from ..sanitize import metadata_text
from ..tables import attempts, call_metadata, call_results, calls, cost_items, handler_runs
from .filters import IS_REAL, aside, is_of, made_up_by, within

#: How calls ended, and how prefetches were answered; the name "" stands for an unknown one.
OUTCOME, STATUS, PREFETCH = "outcome", "status", "prefetch"
#: Credits: in all, under the name "", by what they were for, and by who took them.
COST, TYPE, PROVIDER = "cost", "type", "provider"
#: Of handlers, named by hook and handler with a blank between them; no hook has one in it.
RUNS, FAILED_RUNS = "runs", "failed_runs"
ATTEMPTS, FAILED_ATTEMPTS = "attempts", "failed_attempts"
#: Samples: lengths of calls in seconds, latencies of prefetches and of attempts in milliseconds.
DURATION_S, PREFETCH_MS, ATTEMPT_MS = "duration_s", "prefetch_ms", "attempt_ms"
#: Results that are numbers, by their name: how many, and their sum; and how many calls have a truth
#: value or a short text, by name and value with `BETWEEN` in between.
RESULTS, RESULT_SUM, RESULT_VALUES = "results", "result_sum", "result_values"
BETWEEN = "\x1f"
#: Longer texts are not counted; of a result with more values than `MOST_VALUES`, no text is.
_VALUE_CHARS = 32
MOST_VALUES = 20
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


def sum_agents(
    connection: Connection, since: datetime, until: datetime, *, source: str = "real"
) -> Iterator[tuple[str, str, str, float]]:
    """Yield agent, measure, name and sum of what figures of agents need of the calls."""
    period = {"since": since, "until": until}
    for agent_id, outcome, count, seconds, credit in connection.execute(
        _AGENTS.where(_is_of(source)), period
    ):
        yield agent_id, OUTCOME, outcome, count
        yield agent_id, DURATION_S, "", seconds or 0
        if credit is not None:
            yield agent_id, COST, "", credit


def _grouped(rows: Iterable[Any]) -> Iterator[tuple[str | None, str, str, array[float]]]:
    grouped: defaultdict[tuple[str | None, str, str], list[float]] = defaultdict(list)
    for agent_id, measure, name, value in rows:
        grouped[agent_id, measure, name].append(value)
    for key, values in grouped.items():
        yield *key, array("d", sorted(values))


def counted_under(keys: Iterable[str]) -> dict[str, str]:
    """Return the key that each of `RESULT_VALUES` is counted under: its own, or of a result with
    many or long values one that is too long."""
    by_result: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        by_result[key.partition(BETWEEN)[0]].append(key)
    under: dict[str, str] = {}
    for name, own in by_result.items():
        are_few = len(own) <= MOST_VALUES and all(map(is_short, own))
        many = name + BETWEEN + "…" * (_VALUE_CHARS + 1)
        under |= {key: key if are_few else many for key in own}
    return under


def is_short(key: str) -> bool:
    """Tell whether a key of `RESULT_VALUES` is one of a value that was counted whole."""
    return len(key.partition(BETWEEN)[2]) <= _VALUE_CHARS


def _named(column: ColumnElement[str | None]) -> ColumnElement[Any]:
    return func.substr(func.coalesce(column, ""), 1, _NAME_CHARS)


_RECEIVED = and_(
    calls.c.received_at >= bindparam("since"), calls.c.received_at < bindparam("until")
)
_AGENTS = (
    select(
        calls.c.agent_id,
        _named(calls.c.outcome),
        func.count(),
        func.sum(calls.c.duration_s),
        func.sum(calls.c.cost_total),
    )
    .where(_RECEIVED, calls.c.agent_id.is_not(None))
    .group_by(calls.c.agent_id, literal_column("2"))
)

#: By their places in the select list: PostgreSQL groups by no constant.
_AGENT_AND_NAME: tuple[Any, Any] = (literal_column("1"), literal_column("3"))


def _is_of(source: str) -> ColumnElement[bool]:
    """Made-up calls are few, and have an index of their own."""
    made_up = made_up_by(source)
    return calls.c.source.in_(made_up) if made_up else IS_REAL


def value_key(name: ColumnElement[Any], text: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the key of `RESULT_VALUES` for a result."""
    return name + BETWEEN + func.substr(text, 1, _VALUE_CHARS + 1)


def is_counted(text: ColumnElement[Any], number: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition for a result to be counted by its values, and not summed."""
    return or_(number.is_(None), text.in_(("true", "false")))


def _values(agent_id: ColumnElement[Any], chosen: ColumnElement[bool], source: str = "real") -> Any:
    """Select agent, measure, name and value: sums are made by the database, samples are not."""
    period = select(
        calls.c.id,
        agent_id.label("agent_id"),
        _named(calls.c.outcome).label("outcome"),
        _named(calls.c.call_status).label("status"),
        calls.c.prefetch_outcome,
        calls.c.prefetch_ms,
        calls.c.duration_s,
        calls.c.cost_total,
    )
    call = period.where(_RECEIVED, _is_of(source), chosen).cte("period").c
    # From calls to what belongs to them: SQLite would rather read all costs, or all runs.
    call_id = aside(call.id)
    items = cost_items.c
    names = _named(items.type).label("type"), _named(items.provider).label("provider")
    costs = select(call.agent_id, *names, func.sum(items.credit).label("credit"))
    costs = costs.where(items.call_id == call_id, items.credit.is_not(None))
    cost = costs.group_by(call.agent_id, "type", "provider").cte("costs").c
    r = handler_runs.c
    handler = (r.hook + " " + r.handler).label("handler")
    runs = select(call.agent_id, r.id, handler, r.state, r.is_latest)
    run = runs.where(r.call_id == call_id).cte("runs").c
    tries = select(run.agent_id, run.handler, attempts.c.outcome, attempts.c.duration_ms)
    of_run = and_(attempts.c.run_id == aside(run.id), attempts.c.outcome.is_not(None))
    attempt = tries.where(of_run).cte("ended").c
    x = call_results.c
    returned = select(call.agent_id, x.name, x.text, x.number).where(x.call_id == call_id)
    result = returned.cte("returned").c
    is_value = is_counted(result.text, result.number)
    value = value_key(result.name, result.text)
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
        _sum(RESULTS, result.agent_id, result.name).where(~is_value),
        _sum(RESULT_SUM, result.agent_id, result.name, result.number).where(~is_value),
        _sum(RESULT_VALUES, result.agent_id, value).where(is_value),
        _each(DURATION_S, call.agent_id, no_name, call.duration_s),
        _each(PREFETCH_MS, call.agent_id, no_name, call.prefetch_ms),
        _each(ATTEMPT_MS, attempt.agent_id, attempt.handler, attempt.duration_ms),
    )


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


#: Rows of results; those of fewer calls are left out.
MOST_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFigures:
    """A result that is a number, with its sum and average; or one value of another result, with its
    share, 0 to 1, of the calls that have the result. `by` is the value of a metadata key."""

    by: str | None = None
    name: str
    value: str | None = None
    calls: int
    share: float | None = None
    total: float | None = None
    average: float | None = None


class Sums(NamedTuple):
    """How many numbers there are and their sum, by result; and calls by result and value."""

    counts: Mapping[str, float]
    sums: Mapping[str, float]
    values: Mapping[str, float]


def result_figures(sums: Sums, by: str | None = None) -> list[ResultFigures]:
    """Return the figures, by name and the most frequent value first."""
    numbers = [
        ResultFigures(
            by=by,
            name=name,
            calls=int(count),
            total=sums.sums[name],
            average=sums.sums[name] / count,
        )
        for name, count in sums.counts.items()
    ]
    under = counted_under(sums.values)
    few = {key: count for key, count in sums.values.items() if is_short(under[key])}
    of_result: defaultdict[str, float] = defaultdict(float)
    for key, count in few.items():
        of_result[key.partition(BETWEEN)[0]] += count
    shares = [
        ResultFigures(
            by=by, name=name, value=value, calls=int(count), share=count / of_result[name]
        )
        for key, count in few.items()
        for name, _, value in [key.partition(BETWEEN)]
    ]
    return sorted([*numbers, *shares], key=lambda each: (each.name, -each.calls, each.value or ""))


def results_by(
    connection: Connection,
    key: str,
    since: datetime,
    until: datetime,
    agents: Sequence[str],
    source: str,
) -> list[ResultFigures]:
    """Return the figures of the calls of a period for each value of a metadata key."""
    m, r = call_metadata.c, call_results.c
    is_value = is_counted(r.text, r.number)
    value = case((is_value, value_key(r.name, r.text))).label("counted_as")
    found = (
        select(m.value.label("divided_by"), r.name, value, func.count(), func.sum(r.number))
        .select_from(call_metadata)
        .join(calls, calls.c.id == m.call_id)
        .join(call_results, r.call_id == m.call_id)
        .where(
            and_(m.key == metadata_text(key), m.received_at >= since, m.received_at < until),
            *within(since, until),
            is_of(source),
            calls.c.agent_id.in_(agents) if agents else true(),
            r.text.is_not(None),
        )
        .group_by("divided_by", r.name, "counted_as")
    )
    by_value: defaultdict[str, Sums] = defaultdict(lambda: Sums({}, {}, {}))
    for by, name, each, count, total in connection.execute(found):
        _add(by_value[by], name, each, count, total)
    figures = [each for by, sums in by_value.items() for each in result_figures(sums, by)]
    return sorted(figures, key=lambda each: (each.name, each.by or "", -each.calls))


def _add(sums: Any, name: str, value: str | None, count: int, total: float | None) -> None:
    if value is None:
        sums.counts[name], sums.sums[name] = count, total or 0
    else:
        sums.values[value] = count


def busiest(figures: Iterable[ResultFigures]) -> tuple[ResultFigures, ...]:
    """Return those of the most calls, in their order."""
    every = list(figures)
    most = sorted(every, key=lambda each: -each.calls)[:MOST_ROWS]
    kept = set(map(id, most))
    return tuple(each for each in every if id(each) in kept)

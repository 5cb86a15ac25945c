"""The analytics report, read from one state of the call log.

Everything that belongs to a call counts at the time the call was received, also a handler that was
replayed long after. The costs of a redelivered call count once, as its rows do. Durations are in
seconds, latencies in milliseconds, costs in credits. Percentiles are exact, by the nearest rank: a
percentile is the smallest measured value that at least that share of all does not exceed. Names are
as Millis sent them, cut to 100 characters; "" stands for a missing name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Literal

from sqlalchemy import Connection

from ..sanitize import clean_text, metadata_text
from ..tables import KEPT
from .buckets import Interval, cut, interval_for
from .day_totals import Period, read_periods
from .divisions import (
    BY_AGENT,
    MOST_DIVISIONS,
    Divided,
    DivisionFigures,
    ResultFigures,
    Sums,
    busiest,
    read_divided,
    result_figures,
    together,
)
from .tally import (
    ATTEMPT_MS,
    ATTEMPTS,
    COST,
    DURATION_S,
    FAILED_ATTEMPTS,
    FAILED_RUNS,
    OUTCOME,
    PREFETCH,
    PREFETCH_MS,
    RUNS,
    STATUS,
    Tally,
    count_between,
    percentile,
    sum_numbers,
)

#: What calls became, as charts group it: `other` are calls that were not answered, whose outcome is
#: unknown or whose end did not come.
OUTCOME_GROUPS = ("completed", "chat", "voicemail", "timeout", "failed", "other")

#: A day with fewer prefetches than this has no percentiles worth a line.
LEAST_SAMPLES = 20

#: Rows of results; those of fewer calls are left out.
MOST_RESULTS = 200

#: The histogram of durations has equal steps, and one bar for what is longer than all of them.
DURATION_STEP_S = 30
DURATION_STEPS = 20


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the period, of the equally long period before, and of each bucket.

    It is None where there is nothing it could be of.
    """

    value: float | None
    before: float | None
    series: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """The figures on top.

    `error_rate` is the share, 0 to 1, of all calls that ended in an error; `cost` is None where
    Millis sent no costs; `handler_failures` are attempts that failed, of `handler_attempts`.
    """

    calls: Tile
    error_rate: Tile
    median_duration_s: Tile
    cost: Tile
    cost_per_call: Tile
    cost_per_minute: Tile
    prefetch_p95_ms: Tile
    handler_failures: Tile
    handler_attempts: Tile


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of single prefetches, None where there are too few; `count` is how many."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """An hour, a day or a week, as the clocks of the asked time zone show it.

    It begins at `start` and lasts until just before `until`, both aware and of that time zone.
    `outcomes` has every one of `OUTCOME_GROUPS`, `costs` those of the asked split that there are.
    """

    start: datetime
    until: datetime
    calls: int
    outcomes: Mapping[str, int]
    costs: Mapping[str, float]
    prefetch: Latency


@dataclass(frozen=True, slots=True)
class Durations:
    """How long calls lasted: how many in each step of `DURATION_STEP_S`, the last one open."""

    counts: tuple[int, ...]
    median_s: float | None
    p90_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFigures:
    """How a handler did with the calls of the period; `failed_runs` are not tried again."""

    hook: str
    handler: str
    runs: int
    attempts: int
    failed_attempts: int
    failed_runs: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Calls by the values of a metadata key: those of the most calls, of `values`.

    `key` is the one that was found: `keep.variant` also where `variant` was asked for. Days on
    which the key has too many values are left out, which makes it `is_partial`.
    """

    key: str
    divisions: tuple[DivisionFigures, ...]
    values: int
    is_partial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of the calls received from `since` until just before `until`.

    Mappings are in descending order of their values, `outcomes` in that of `OUTCOME_GROUPS`;
    `agents` are the busiest. Results are divided as the comparison is, if there is one.
    """

    since: datetime
    until: datetime
    interval: Interval
    tiles: Tiles
    buckets: tuple[Bucket, ...]
    outcomes: Mapping[str, int]
    costs: Mapping[str, float]
    statuses: Mapping[str, int]
    durations: Durations
    prefetch: Latency
    prefetch_outcomes: Mapping[str, int]
    handlers: tuple[HandlerFigures, ...]
    agents: tuple[DivisionFigures, ...]
    comparison: Comparison | None
    results: tuple[ResultFigures, ...]


Split = Literal["type", "provider"]

#: Outcomes that are a group of their own; all others are `other`.
_GROUPS = {name: name for name in OUTCOME_GROUPS[:-1]}

#: Millis did not exist before, and clocks overflow far from it.
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
LONGEST = timedelta(days=3660)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The calls of a report: those received from `since` until just before `until`, both aware.

    `agents` are alternatives, all if there are none; `source` is as in a filter of calls. Costs are
    split by type or by provider. Without an interval, or with one that is too fine, a suitable one
    is chosen. Raises
    `ValueError` for a period that is empty, longer than `LONGEST` or absurd.
    """

    since: datetime
    until: datetime
    zone: tzinfo = UTC
    agents: tuple[str, ...] = ()
    source: str = "real"
    split: Split = "type"
    interval: Interval | None = None
    #: A key of metadata, or of `keep`, by whose values calls and results are compared.
    by: str | None = None

    def __post_init__(self) -> None:
        if not _EARLIEST <= self.since < self.until <= _LATEST:
            raise ValueError("The period ends before it begins, or is of another century.")
        if self.span > LONGEST:
            raise ValueError(f"The period is longer than {LONGEST.days:,} days.")

    @property
    def span(self) -> timedelta:
        return self.until - self.since


def read_report(connection: Connection, scope: Scope) -> Report:
    """Return all figures of a period, with those of the equally long period before."""
    interval = interval_for(scope.span, scope.interval)
    cuts = cut(scope.since, scope.until, interval, scope.zone)
    parts = [Period(*each, Tally()) for each in cuts]
    before = Period(scope.since - scope.span, scope.since, Tally())
    agents = [clean for agent in scope.agents if (clean := clean_text(agent))]
    read_periods(connection, (before, *parts), agents, scope.source)
    divide = partial(
        read_divided,
        connection,
        since=scope.since,
        until=scope.until,
        agents=agents,
        source=scope.source,
    )
    by_agent = divide(BY_AGENT).by
    key, divided = _divided(divide, scope.by)
    comparison = _comparison(key, divided) if divided else None
    return Report(
        since=scope.since.astimezone(scope.zone),
        until=scope.until.astimezone(scope.zone),
        interval=interval,
        tiles=_tiles(parts, [before]),
        buckets=tuple(_bucket(part, scope.split) for part in parts),
        outcomes=_outcomes(parts),
        costs=_summed(parts, scope.split),
        statuses=_counted(parts, STATUS),
        durations=_durations(parts),
        prefetch=_latency(parts, at_least=1),
        prefetch_outcomes=_counted(parts, PREFETCH),
        handlers=_handlers(parts),
        agents=busiest({name: sums for name, sums in by_agent.items() if name}, MOST_DIVISIONS),
        comparison=comparison,
        results=_results(
            [(each.name, divided.by[each.name]) for each in comparison.divisions]
            if divided and comparison
            else [(None, together(by_agent))]
        ),
    )


def _divided(divide: Callable[[str], Divided], asked: str | None) -> tuple[str, Divided | None]:
    """Divide by a key of metadata, or else by one of `keep`; return it and what it came to."""
    if not asked:
        return "", None
    key = metadata_text(asked)
    divided = divide(key)
    if divided.by or divided.is_partial or key.startswith(KEPT):
        return key, divided
    return KEPT + key, divide(KEPT + key)


def _comparison(key: str, divided: Divided) -> Comparison:
    divisions = busiest(divided.by, MOST_DIVISIONS)
    return Comparison(
        key=key,
        divisions=divisions,
        values=len(divided.by),
        is_partial=divided.is_partial,
    )


def _results(divisions: Sequence[tuple[str | None, Sums]]) -> tuple[ResultFigures, ...]:
    """Return the figures of the results of the most calls, by name."""
    every = [each for by, sums in divisions for each in result_figures(sums, by)]
    most = sorted(every, key=lambda each: -each.calls)[:MOST_RESULTS]
    return tuple(
        sorted(most, key=lambda each: (each.name, each.by or "", -each.calls, each.value or ""))
    )


Figure = Callable[[Sequence[Period]], float | None]


def _tiles(parts: Sequence[Period], before: Sequence[Period]) -> Tiles:
    def tile(figure: Figure, in_bucket: Figure | None = None) -> Tile:
        series = tuple((in_bucket or figure)([part]) for part in parts)
        return Tile(figure(parts), figure(before), series)

    return Tiles(
        calls=tile(_total(OUTCOME)),
        error_rate=tile(_error_rate),
        median_duration_s=tile(lambda parts: percentile(_samples(parts, DURATION_S), 0.5)),
        cost=tile(_cost),
        cost_per_call=tile(lambda parts: ratio(_cost(parts), _total(OUTCOME)(parts))),
        cost_per_minute=tile(lambda parts: ratio(_cost(parts), _minutes(parts))),
        prefetch_p95_ms=tile(
            lambda parts: _latency(parts, at_least=1).p95_ms, lambda parts: _latency(parts).p95_ms
        ),
        handler_failures=tile(_total(FAILED_ATTEMPTS)),
        handler_attempts=tile(_total(ATTEMPTS)),
    )


def _cost(parts: Sequence[Period]) -> float | None:
    return _summed(parts, COST).get("")


def _minutes(parts: Sequence[Period]) -> float:
    return sum(map(sum, _samples(parts, DURATION_S))) / 60


def ratio(amount: float | None, of: float | None) -> float | None:
    """Return an amount for each of what it is of; None where one is unknown, or there is none."""
    return amount / of if amount is not None and of else None


def _total(measure: str) -> Figure:
    return lambda parts: sum(_counted(parts, measure).values())


def _error_rate(parts: Sequence[Period]) -> float | None:
    outcomes = _outcomes(parts)
    calls = sum(outcomes.values())
    return outcomes["failed"] / calls if calls else None


def _bucket(part: Period, split: Split) -> Bucket:
    outcomes = _outcomes([part])
    return Bucket(
        start=part.since,
        until=part.until,
        calls=sum(outcomes.values()),
        outcomes=outcomes,
        costs=_summed([part], split),
        prefetch=_latency([part]),
    )


def _outcomes(parts: Sequence[Period]) -> dict[str, int]:
    return grouped(_counted(parts, OUTCOME))


def grouped(outcomes: Mapping[str, int]) -> dict[str, int]:
    """Return the calls of each of `OUTCOME_GROUPS`."""
    groups = dict.fromkeys(OUTCOME_GROUPS, 0)
    for outcome, count in outcomes.items():
        groups[_GROUPS.get(outcome, "other")] += count
    return groups


def _latency(parts: Sequence[Period], *, at_least: int = LEAST_SAMPLES) -> Latency:
    lists = _samples(parts, PREFETCH_MS)
    count = sum(map(len, lists))
    if count < at_least:
        return Latency(count, None, None, None)
    return Latency(count, *(percentile(lists, share) for share in (0.5, 0.95, 0.99)))


def _durations(parts: Sequence[Period]) -> Durations:
    lists = _samples(parts, DURATION_S)
    edges = [step * DURATION_STEP_S for step in range(1, DURATION_STEPS + 1)]
    median, p90 = (percentile(lists, share) for share in (0.5, 0.9))
    return Durations(count_between(lists, edges), median, p90)


def _handlers(parts: Sequence[Period]) -> tuple[HandlerFigures, ...]:
    counts = [
        _counted(parts, measure) for measure in (RUNS, ATTEMPTS, FAILED_ATTEMPTS, FAILED_RUNS)
    ]

    def figures(key: str) -> HandlerFigures:
        hook, _, handler = key.partition(" ")
        runs, attempts, failed, failed_runs = (count.get(key, 0) for count in counts)
        lists = _samples(parts, ATTEMPT_MS, key)
        return HandlerFigures(
            hook=hook,
            handler=handler,
            runs=runs,
            attempts=attempts,
            failed_attempts=failed,
            failed_runs=failed_runs,
            p50_ms=percentile(lists, 0.5),
            p95_ms=percentile(lists, 0.95),
        )

    return tuple(map(figures, sorted(counts[0])))


def _samples(parts: Sequence[Period], measure: str, name: str = "") -> list[Sequence[float]]:
    return [each for part in parts for each in part.tally.samples(measure, name)]


def _summed(parts: Sequence[Period], measure: str) -> dict[str, float]:
    """Return the numbers of all parts together, by name, the largest first."""
    summed = sum_numbers((part.tally for part in parts), measure)
    return dict(sorted(summed.items(), key=lambda item: (-item[1], item[0])))


def _counted(parts: Sequence[Period], measure: str) -> dict[str, int]:
    return {name: int(count) for name, count in _summed(parts, measure).items()}

"""Answers what the analytics page asks, from one state of the call log.

Whatever belongs to a call counts where the call was received, also a handler that was replayed
long after. Costs of a redelivered call count once, as its rows do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ...exceptions import StorageError
from ..database import describe
from ..values import clean_text
from .buckets import Interval, cut, interval_for
from .figures import (
    DURATION_STEP_S,
    DURATION_STEPS,
    LEAST_SAMPLES,
    OUTCOME_GROUPS,
    Bucket,
    Durations,
    HandlerFigures,
    Latency,
    Report,
    Tile,
    Tiles,
)
from .percentiles import count_between, percentile
from .summaries import tally_periods
from .tally import (
    ATTEMPT_MS,
    ATTEMPTS,
    COST,
    DURATION_S,
    FAILED,
    OUTCOME,
    PARKED,
    PREFETCH,
    PREFETCH_MS,
    RUNS,
    STATUS,
    Tally,
    sum_numbers,
)

Split = Literal["type", "provider"]

#: Samples of so many buckets are in memory twice.
_PERIODS_AT_ONCE = 16

#: What is not among them is `other`.
_GROUPS = {name: name for name in OUTCOME_GROUPS[:-1]}


#: Nobody was called before, and clocks overflow far from it.
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
LONGEST = timedelta(days=3660)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What figures are asked of: calls received from `since` until just before `until`, aware.

    `agents` are alternatives, all if there are none. Costs are split by what they were for or by
    who took them. Without an interval, or with one that is too fine, one is chosen that suits.
    Raises `ValueError` for a period that is empty, longer than `LONGEST` or absurd.
    """

    since: datetime
    until: datetime
    zone: tzinfo = UTC
    agents: tuple[str, ...] = ()
    split: Split = "type"
    interval: Interval | None = None

    def __post_init__(self) -> None:
        if not _EARLIEST <= self.since < self.until <= _LATEST:
            raise ValueError("The period ends before it begins, or is of another century.")
        if self.span > LONGEST:
            raise ValueError(f"The period is longer than {LONGEST.days:,} days.")

    @property
    def span(self) -> timedelta:
        return self.until - self.since


@dataclass(frozen=True, slots=True)
class _Part:
    """A bucket, and what was counted and sampled in it; samples are sorted."""

    start: datetime
    until: datetime
    tally: Tally
    samples: Mapping[str, Sequence[float]]


class Analytics:
    """Figures over a period. Raises StorageError when the database cannot answer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def report(self, scope: Scope) -> Report:
        """Return all figures of a period, with those of the equally long period before."""
        interval = interval_for(scope.span, scope.interval)
        earlier = replace(scope, since=scope.since - scope.span, until=scope.since)
        with self._reading() as connection:
            parts = list(_parts(connection, scope, interval))
            before = list(_parts(connection, earlier, interval))
        return Report(
            since=scope.since.astimezone(scope.zone),
            until=scope.until.astimezone(scope.zone),
            interval=interval,
            tiles=_tiles(parts, before),
            buckets=tuple(_bucket(part, scope.split) for part in parts),
            outcomes=_outcomes(parts),
            costs=_summed(parts, scope.split),
            statuses=_counted(parts, STATUS),
            durations=_durations(parts),
            prefetch=_latency(parts, at_least=1),
            prefetch_outcomes=_counted(parts, PREFETCH),
            handlers=_handlers(parts),
        )

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError(f"The call log cannot be read: {describe(error)}.") from error


def _parts(connection: Connection, scope: Scope, interval: Interval) -> Iterator[_Part]:
    agents = [clean for agent in scope.agents if (clean := clean_text(agent))]
    periods = list(cut(scope.since, scope.until, interval, scope.zone))
    for first in range(0, len(periods), _PERIODS_AT_ONCE):
        some = periods[first : first + _PERIODS_AT_ONCE]
        for period, tally in zip(some, tally_periods(connection, some, agents), strict=True):
            yield _Part(*period, tally, tally.take_samples())


Figure = Callable[[Sequence[_Part]], float | None]


def _tiles(parts: Sequence[_Part], before: Sequence[_Part]) -> Tiles:
    def tile(figure: Figure, in_bucket: Figure | None = None) -> Tile:
        series = tuple((in_bucket or figure)([part]) for part in parts)
        return Tile(figure(parts), figure(before), series)

    return Tiles(
        calls=tile(_total(OUTCOME)),
        error_rate=tile(_error_rate),
        median_duration_s=tile(lambda parts: percentile(_lists(parts, DURATION_S), 0.5)),
        cost=tile(lambda parts: _summed(parts, COST).get("")),
        prefetch_p95_ms=tile(
            lambda parts: _latency(parts, at_least=1).p95_ms, lambda parts: _latency(parts).p95_ms
        ),
        handler_failures=tile(_total(FAILED)),
        handler_attempts=tile(_total(ATTEMPTS)),
    )


def _total(measure: str) -> Figure:
    return lambda parts: sum(part.tally.total(measure) for part in parts)


def _error_rate(parts: Sequence[_Part]) -> float | None:
    outcomes = _outcomes(parts)
    calls = sum(outcomes.values())
    return outcomes["failed"] / calls if calls else None


def _bucket(part: _Part, split: Split) -> Bucket:
    outcomes = _outcomes([part])
    return Bucket(
        start=part.start,
        until=part.until,
        calls=sum(outcomes.values()),
        outcomes=outcomes,
        costs=_summed([part], split),
        prefetch=_latency([part]),
    )


def _outcomes(parts: Sequence[_Part]) -> dict[str, int]:
    grouped = dict.fromkeys(OUTCOME_GROUPS, 0)
    for outcome, count in _counted(parts, OUTCOME).items():
        grouped[_GROUPS.get(outcome, "other")] += count
    return grouped


def _latency(parts: Sequence[_Part], *, at_least: int = LEAST_SAMPLES) -> Latency:
    lists = _lists(parts, PREFETCH_MS)
    count = sum(map(len, lists))
    if count < at_least:
        return Latency(count, None, None, None)
    return Latency(count, *(percentile(lists, share) for share in (0.5, 0.95, 0.99)))


def _durations(parts: Sequence[_Part]) -> Durations:
    lists = _lists(parts, DURATION_S)
    edges = [step * DURATION_STEP_S for step in range(1, DURATION_STEPS + 1)]
    median, p90 = (percentile(lists, share) for share in (0.5, 0.9))
    return Durations(count_between(lists, edges), median, p90)


def _handlers(parts: Sequence[_Part]) -> tuple[HandlerFigures, ...]:
    measures = (RUNS, ATTEMPTS, FAILED, PARKED)
    counts = [_counted(parts, measure) for measure in measures]

    def figures(key: str) -> HandlerFigures:
        hook, _, handler = key.partition(" ")
        runs, attempts, failed, parked = (count.get(key, 0) for count in counts)
        lists = _lists(parts, f"{ATTEMPT_MS} {key}")
        return HandlerFigures(
            hook=hook,
            handler=handler,
            runs=runs,
            attempts=attempts,
            failed_attempts=failed,
            parked=parked,
            p50_ms=percentile(lists, 0.5),
            p95_ms=percentile(lists, 0.95),
        )

    return tuple(map(figures, sorted(counts[0])))


def _lists(parts: Sequence[_Part], measure: str) -> list[Sequence[float]]:
    return [part.samples[measure] for part in parts if measure in part.samples]


def _summed(parts: Sequence[_Part], measure: str) -> dict[str, float]:
    """Return what was added to all parts together, by name, the most first."""
    summed = sum_numbers((part.tally for part in parts), measure)
    return dict(sorted(summed.items(), key=lambda item: (-item[1], item[0])))


def _counted(parts: Sequence[_Part], measure: str) -> dict[str, int]:
    return {name: int(count) for name, count in _summed(parts, measure).items()}

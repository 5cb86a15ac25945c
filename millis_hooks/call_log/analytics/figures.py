"""What `Analytics` answers with: frozen, no database behind it.

Durations are in seconds, latencies in milliseconds, costs in credits. Percentiles are exact and of
single values, by the nearest rank. Names are as Millis sent them, cut to 100 characters; "" stands
for those it did not send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from .buckets import Interval

#: What calls became, as charts group it. `error` is the outcome `failed`; `other` are calls that
#: reached nobody, whose outcome is unknown or whose end did not come.
OUTCOME_GROUPS = ("completed", "chat", "voicemail", "timeout", "failed", "other")

#: A day with fewer prefetches than this has no percentiles worth a line.
LEAST_SAMPLES = 20

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
    """How a handler did, over the calls received in the period; `parked` runs still are."""

    hook: str
    handler: str
    runs: int
    attempts: int
    failed_attempts: int
    parked: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of the calls received from `since` until just before `until`.

    Mappings are in descending order of their values, `outcomes` in that of `OUTCOME_GROUPS`.
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

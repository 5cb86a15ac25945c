"""What the service counts while it works, in plain numbers; `metrics` shows them.

The counters of a metrics library take a lock at every step, and somebody waits on the line. Each
number here is changed by one thread, and may be read by any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Literal

#: Bounds of durations, in seconds: from an answer at once to a handler that is given up.
SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)
LONG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Bounds of how many were written together.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram:
    """How many values there were up to each of the `bounds`, and their sum."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def cumulated(self) -> Iterator[tuple[float, int]]:
        """Yield each bound, infinity last, with how many values were not above it."""
        bounds = (*self._bounds, float("inf"))
        return zip(bounds, accumulate([*self._counts]), strict=True)


class WebhookCounts:
    """Of one webhook, counted by the serving loop; what may be counted is known from the start.

    `seconds` are those until the answer to a prefetch was ready, or until an end of a call was
    stored; `missed_budget` counts by handler.
    """

    __slots__ = ("missed_budget", "outcomes", "seconds")

    def __init__(self, outcomes: Iterable[str], handlers: Iterable[str] = ()) -> None:
        self.outcomes = Counter(dict.fromkeys(outcomes, 0))
        self.seconds = Histogram(SHORT_S)
        self.missed_budget = Counter(dict.fromkeys(handlers, 0))


class WriterCounts:
    """Of the call log's writer, counted by its thread: deliveries per commit, and its failures."""

    __slots__ = ("batches", "failed", "lost", "seconds")

    def __init__(self) -> None:
        self.batches = Histogram(SIZES)
        self.seconds = Histogram(SHORT_S)
        self.failed = 0
        self.lost = 0


class AttemptCounts:
    """Of attempts at runs, counted by the runner's thread: by hook, handler and outcome."""

    __slots__ = ("outcomes", "seconds")

    def __init__(self, handlers: Iterable[tuple[str, str]], outcomes: Iterable[str]) -> None:
        keys = ((*handler, outcome) for handler, outcome in product(handlers, outcomes))
        self.outcomes: Counter[tuple[str, str, str]] = Counter(dict.fromkeys(keys, 0))
        self.seconds = Histogram(LONG_S)


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """What the runner is doing: `late` counts handlers that were given up and do not end.

    `hung` has the handlers, each as hook and name, that have no place left because of such.
    """

    role: Literal["working", "standby", "stopped"]
    at_work: int
    late: int
    hung: tuple[tuple[str, str], ...] = ()

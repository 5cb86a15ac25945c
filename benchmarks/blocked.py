"""What callers and acknowledgements feel while prefetch handlers block or never return.

For each kind of bad handler prefetches keep coming, and all have to be answered in time with the
fallback; meanwhile a few connections deliver end-of-calls, whose acknowledgements must not notice.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from .bystanders import Bystanders
from .client import Answers, ask_all
from .contenders import BUDGET_S, ours, started
from .load import END_OF_CALL, PREFETCH, Load, end_of_call_body, load
from .report import Row, median, median_ratio, options, print_report, progress, seen

SCENARIOS = {
    "blocks": "async, blocks its loop for 30 s",
    "waits": "async, never returns",
    "computes_once": "computes for ever, one call",
    "computes": "computes for ever, on all 32 threads",
}
PREFETCH_CONNECTIONS = 64
ACKNOWLEDGEMENT_CONNECTIONS = 4
MAX_OVER_BUDGET_MS = 100
MAX_P99_RATIO = 2
BODY = end_of_call_body(2_000)


@dataclass(frozen=True)
class Trial:
    """One scenario of one round."""

    acknowledgements: Load
    prefetches: Answers


def main() -> None:
    chosen = options(__doc__, seconds=10, rounds=3)
    bystanders = Bystanders()
    idle: list[Load] = []
    trials: dict[str, list[Trial]] = defaultdict(list)
    for _ in range(chosen.rounds):
        idle.append(_acknowledge_alone(chosen.seconds))
        for app in SCENARIOS:
            trials[app].append(_acknowledge_beside(app, chosen.seconds))
    rows = [row for app in SCENARIOS for row in _rows(app, trials[app], idle)]
    print_report(
        f"Handlers that block: {chosen.rounds} rounds of {chosen.seconds} s", rows, bystanders
    )


def _acknowledge_alone(seconds: int) -> Load:
    with started(ours()) as contest:
        done = _acknowledge(contest.server.url, seconds)
    progress(f"idle: p99 {done.p99_ms:.2f} ms")
    return done


def _acknowledge_beside(app: str, seconds: int) -> Trial:
    with started(ours(f"stubborn:{app}")) as contest:
        url = contest.server.url
        with _prefetches(url, seconds + 2 * BUDGET_S) as prefetches:
            time.sleep(BUDGET_S)  # until the first of them are stuck
            acknowledgements = _acknowledge(url, seconds)
            trial = Trial(acknowledgements, prefetches.result())
    slowest = max(trial.prefetches.latencies_ms, default=float("nan"))
    progress(f"{app}: p99 {acknowledgements.p99_ms:.2f} ms, slowest prefetch {slowest:.0f} ms")
    return trial


@contextmanager
def _prefetches(url: str, seconds: float) -> Iterator[Future[Answers]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(
            ask_all, url + PREFETCH, connections=PREFETCH_CONNECTIONS, seconds=seconds
        )


def _acknowledge(url: str, seconds: int) -> Load:
    return load(
        url + END_OF_CALL, connections=ACKNOWLEDGEMENT_CONNECTIONS, seconds=seconds, body=BODY
    )


def _p99_ms(done: Load) -> float:
    return seen(done.p99_ms, done)


def _rows(app: str, trials: list[Trial], idle: list[Load]) -> list[Row]:
    what = SCENARIOS[app]
    latencies_ms = [each for trial in trials for each in trial.prefetches.latencies_ms]
    limit_ms = BUDGET_S * 1000 + MAX_OVER_BUDGET_MS
    in_time = sum(each <= limit_ms for each in latencies_ms)
    asked = len(latencies_ms) + sum(trial.prefetches.failed for trial in trials)
    p99s_ms = [_p99_ms(trial.acknowledgements) for trial in trials]
    idle_p99s_ms = [_p99_ms(each) for each in idle]
    lost = sum(each.acknowledgements.errors + each.acknowledgements.non_2xx for each in trials)
    return [
        Row(
            f"{what}: prefetches in time",
            100 * in_time / asked,
            "%",
            ours=f"{in_time} of {asked}",
            at_least=100,
        ),
        Row(
            f"{what}: slowest prefetch over budget",
            max(latencies_ms, default=float("nan")) - BUDGET_S * 1000,
            "ms",
            ours=f"p50 {statistics.median(latencies_ms or [float('nan')]):.0f} ms",
            at_most=MAX_OVER_BUDGET_MS,
        ),
        Row(
            f"{what}: acknowledgements' p99 over idle",
            median_ratio(p99s_ms, idle_p99s_ms),
            ours=median(p99s_ms, " ms"),
            other=median(idle_p99s_ms, " ms"),
            at_most=MAX_P99_RATIO,
        ),
        Row(f"{what}: acknowledgements that failed", lost, "", at_most=0),
    ]


if __name__ == "__main__":
    main()

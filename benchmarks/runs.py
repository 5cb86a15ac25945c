"""Handlers after the acknowledgement: how soon they begin, how a backlog drains, what they cost.

- Calls delivered one at a time to an idle service: from the 200 to the handler's first line.
- A service that starts on a backlog, while a new call comes in every second.
- Acknowledgements at 64 connections with an instant handler, against none.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from millis_hooks.call_log.locks import FileHolder

from .beginnings import NOTES, Beginnings, Caller, Notes
from .bystanders import Bystanders
from .client import ask_all
from .contenders import OURS, Contest, Target, environment, ours, started, storage
from .load import END_OF_CALL, LOAD_CORE, Load, Server, end_of_call_body, load
from .process import cpu_s, status_mb
from .report import Row, median, median_ratio, options, print_report, progress, sync_ms

NOTING = ours("noting:notes")
#: Those whose acknowledgements are compared.
CONTENDERS: dict[str, Target] = {"handler": OURS, "no handler": ours("noting:leaves")}
BODY = end_of_call_body(2_000)
CONNECTIONS = 64

CALLS_ALONE = 300
PAUSE_S = (0.002, 0.012)  # not always as long: the service has rhythms of its own
MAX_START_MS = 50

WARM_RUNS = 1_000
NEW_CALL_EVERY_S = 1
DRAIN_TIMEOUT_S = 1800
MAX_NEW_CALL_S = 2
MAX_GROWTH_MB = 30

MIN_RATE_RATIO = 0.85


@dataclass(frozen=True)
class Backlog:
    """How a service worked off the runs it found when it started."""

    beginnings: Beginnings
    new_calls_ms: list[float]  # from the 200 to the beginning, of calls that came in meanwhile
    warm_mb: float
    drained_mb: float
    peak_mb: float
    missing: int


@dataclass(frozen=True)
class Ingest:
    """One load; `cpu_s` is what the server computed meanwhile."""

    load: Load
    seconds: int
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Count acknowledgements only: a refusal is quick, and keeps nothing."""
        return max(self.load.requests_per_s - self.load.non_2xx / self.seconds, 0.0)

    @property
    def cpu_s_per_1000(self) -> float:
        return 1000 * self.cpu_s / (self.per_s * self.seconds) if self.per_s else math.nan


def main() -> None:
    chosen = options(__doc__, seconds=5, rounds=3, runs=100_000)
    bystanders = Bystanders()
    os.sched_setaffinity(0, {LOAD_CORE})
    rows = _start_rows(_starts())
    rows += _backlog_rows(_backlog(chosen.runs), chosen.runs)
    ingests: dict[str, list[Ingest]] = defaultdict(list)
    for _ in range(chosen.rounds):
        for name, target in CONTENDERS.items():
            ingests[name].append(_ingest(name, target, chosen.seconds))
    rows += _ingest_rows(ingests)
    title = f"Runs: 2 kB, {chosen.rounds} rounds of {chosen.seconds} s"
    print_report(f"{title}; this disk syncs in {sync_ms():.2f} ms", rows, bystanders)


def _starts() -> list[float]:
    """Deliver calls, each when the last has begun, and return their delays in milliseconds."""
    with started(NOTING) as contest:
        notes = Notes(contest.storage / NOTES)
        caller = Caller(contest.server, BODY)
        for number in range(1, CALLS_ALONE + 1):
            caller.deliver()
            notes.wait_for(number)
            time.sleep(random.uniform(*PAUSE_S))
        delays_ms = caller.delays_ms(notes.read())
    progress(f"alone: median {statistics.median(delays_ms):.2f} ms, p95 {_p95(delays_ms):.2f} ms")
    return delays_ms


def _backlog(runs: int) -> Backlog:
    with storage() as directory:
        _fill(directory, runs)
        with Server(NOTING, environment(directory)) as server:
            return _work_off(Contest(server, directory), runs)


def _fill(directory: Path, runs: int) -> None:
    """Leave so many pending runs: while another process holds their lock, a service does none."""
    holder = FileHolder(directory / "millis_hooks.db-runner")
    assert holder.hold()
    try:
        with Server(NOTING, environment(directory)) as server:
            _deliver_and_parse(Contest(server, directory), runs)
    finally:
        holder.let_go()


def _deliver_and_parse(contest: Contest, runs: int) -> None:
    server = contest.server
    answers = ask_all(server.url + END_OF_CALL, connections=CONNECTIONS, count=runs, body=BODY)
    if answers.ok != runs:
        raise RuntimeError(f"{answers.ok} of {runs} were acknowledged:\n{server.log()}")
    parsed_in_s = contest.call_log.parse(timeout_s=DRAIN_TIMEOUT_S)
    progress(f"backlog: {runs} delivered in {answers.took_s:.0f} s, parsed {parsed_in_s:.0f} s on")


def _work_off(contest: Contest, runs: int) -> Backlog:
    """Wait until nothing is left to do, and deliver a new call every second meanwhile."""
    pid, notes, call_log = contest.server.pid, Notes(contest.storage / NOTES), contest.call_log
    notes.wait_for(min(WARM_RUNS, runs))
    warm_mb = status_mb(pid, "VmRSS")
    caller = Caller(contest.server, BODY)
    end = time.monotonic() + DRAIN_TIMEOUT_S
    while math.isinf(call_log.drain(timeout_s=NEW_CALL_EVERY_S)) and time.monotonic() < end:
        caller.deliver()
    drained_mb = status_mb(pid, "VmRSS")
    beginnings = notes.read()
    expected = runs + len(caller.acknowledged_ns)
    found = (call_log.ended_calls(), call_log.succeeded_runs(), len(beginnings.began_ns))
    progress(f"backlog: parsed, succeeded, begun {found} of {expected}")
    return Backlog(
        beginnings=beginnings,
        new_calls_ms=caller.delays_ms(beginnings),
        warm_mb=warm_mb,
        drained_mb=drained_mb,
        peak_mb=status_mb(pid, "VmHWM"),
        missing=sum(abs(expected - each) for each in found),
    )


def _ingest(name: str, target: Target, seconds: int) -> Ingest:
    with started(target) as contest:
        url, pid = contest.server.url + END_OF_CALL, contest.server.pid
        load(url, connections=CONNECTIONS, seconds=1, body=BODY)  # warms up, and leaves runs to do
        before_s = cpu_s(pid)
        done = load(url, connections=CONNECTIONS, seconds=seconds, body=BODY)
        ingest = Ingest(done, seconds, cpu_s(pid) - before_s)
    progress(f"{name}: {ingest.per_s:.0f}/s, {ingest.cpu_s_per_1000:.3f} s per 1,000")
    return ingest


def _start_rows(delays_ms: list[float]) -> list[Row]:
    return [
        Row(
            "200 to handler, service idle, p95",
            _p95(delays_ms),
            "ms",
            ours=f"median {median(delays_ms, ' ms')}",
            at_most=MAX_START_MS,
        ),
        Row("200 to handler, service idle, longest", max(delays_ms), "ms"),
    ]


def _backlog_rows(backlog: Backlog, runs: int) -> list[Row]:
    new_calls_s = [each / 1000 for each in backlog.new_calls_ms] or [math.nan]
    return [
        Row(f"backlog of {runs:,}: runs/s", backlog.beginnings.per_s, "/s"),
        Row("backlog: missing after it", backlog.missing, "", at_most=0),
        Row("backlog: begun more than once", backlog.beginnings.again, "", at_most=0),
        Row(
            "backlog: 200 to handler of new calls, longest",
            max(new_calls_s),
            "s",
            ours=f"p95 {_p95(new_calls_s):.3g} s of {len(new_calls_s)}",
            at_most=MAX_NEW_CALL_S,
        ),
        Row(
            f"backlog: memory, more than after {WARM_RUNS:,}",
            backlog.drained_mb - backlog.warm_mb,
            "MB",
            ours=f"{backlog.drained_mb:.0f} MB",
            other=f"{backlog.warm_mb:.0f} MB",
            at_most=MAX_GROWTH_MB,
        ),
        Row("backlog: memory, peak", backlog.peak_mb, "MB"),
    ]


def _ingest_rows(ingests: dict[str, list[Ingest]]) -> list[Row]:
    with_handler, without = ingests["handler"], ingests["no handler"]
    rates = [[each.per_s for each in side] for side in (with_handler, without)]
    cpu = [[each.cpu_s_per_1000 for each in side] for side in (with_handler, without)]
    failed = sum(each.load.errors + each.load.non_2xx for each in with_handler)
    return [
        Row(
            "acknowledgements, instant handler over none",
            median_ratio(*rates),
            ours=median(rates[0], "/s"),
            other=median(rates[1], "/s"),
            at_least=MIN_RATE_RATIO,
        ),
        Row(
            "CPU per 1,000 acknowledgements",
            median_ratio(*cpu),
            ours=median(cpu[0], " s"),
            other=median(cpu[1], " s"),
        ),
        Row("acknowledgements that failed", failed, "", at_most=0),
    ]


def _p95(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(0.95 * len(ordered)) - 1]


if __name__ == "__main__":
    main()

"""End-of-calls per second, each synced to disk before its 200, at 64 connections.

Against `handwritten`, what a team writes first, and `append_only`, the least that can be done.
"""

from __future__ import annotations

from collections import defaultdict

from .bystanders import Bystanders
from .contenders import APPEND_ONLY, HANDWRITTEN, OURS, Target, started
from .load import END_OF_CALL, Load, end_of_call_body, load
from .report import Row, median, median_ratio, options, print_report, progress, seen, sync_ms

CONTENDERS: dict[str, Target] = {
    "ours": OURS,
    "handwritten": HANDWRITTEN,
    "append_only": APPEND_ONLY,
}
CONNECTIONS = 64
#: For each size of body in bytes: how many times the rate of each rival.
AT_LEAST = {
    2_000: {"handwritten": 20, "append_only": 0.6},
    20_000: {"handwritten": 12, "append_only": 0.45},
    200_000: {"handwritten": 2, "append_only": 0.5},
}
MIN_P99_RATIO = 20

#: The loads of each contender at each size, round after round.
Loads = dict[tuple[str, int], list[Load]]


def main() -> None:
    chosen = options(__doc__, seconds=5, rounds=3)
    bystanders = Bystanders()
    loads: Loads = defaultdict(list)
    for _ in range(chosen.rounds):
        for size in AT_LEAST:
            for name, target in CONTENDERS.items():
                loads[name, size].append(_measure(name, target, size, chosen.seconds))
    rows = [row for size in AT_LEAST for row in _rows(loads, size, chosen.seconds)]
    title = f"End-of-call: acknowledgements/s, {chosen.rounds} rounds of {chosen.seconds} s"
    print_report(f"{title}; this disk syncs in {sync_ms():.2f} ms", rows, bystanders)


def _measure(name: str, target: Target, size: int, seconds: int) -> Load:
    body = end_of_call_body(size)
    with started(target) as contest:
        url = contest.server.url + END_OF_CALL
        load(url, connections=CONNECTIONS, seconds=1, body=body)  # warms up
        done = load(url, connections=CONNECTIONS, seconds=seconds, body=body)
    refused = f", {done.non_2xx} refused" if done.non_2xx else ""
    progress(
        f"{name}, {size} bytes: {_rate(done, seconds):.0f}/s, p99 {done.p99_ms:.1f} ms{refused}"
    )
    return done


def _rate(done: Load, seconds: int) -> float:
    """Count acknowledgements only: a refusal is quick, and keeps nothing."""
    return max(done.requests_per_s - done.non_2xx / seconds, 0.0)


def _rows(loads: Loads, size: int, seconds: int) -> list[Row]:
    body = f"{size // 1000} kB"
    rates = {name: [_rate(done, seconds) for done in loads[name, size]] for name in CONTENDERS}
    p99s_ms = {name: [seen(done.p99_ms, done) for done in loads[name, size]] for name in CONTENDERS}
    rows = [
        Row(
            f"{body}, {rival}",
            median_ratio(rates["ours"], rates[rival]),
            ours=median(rates["ours"], "/s"),
            other=median(rates[rival], "/s"),
            at_least=ratio,
        )
        for rival, ratio in AT_LEAST[size].items()
    ]
    p99 = Row(
        f"{body}, p99, handwritten over ours",
        median_ratio(p99s_ms["handwritten"], p99s_ms["ours"]),
        ours=median(p99s_ms["ours"], " ms"),
        other=median(p99s_ms["handwritten"], " ms"),
        at_least=MIN_P99_RATIO,
    )
    failed = sum(done.errors + done.non_2xx for done in loads["ours", size])
    return [*rows, p99, Row(f"{body}, ours that failed", failed, "", at_most=0)]


if __name__ == "__main__":
    main()

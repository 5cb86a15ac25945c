"""Prefetches per second, against a bare Starlette route, Litestar and FastAPI.

Ours checks the secret, makes a typed request, awaits the handler on its own loop, checks its answer
and records the outcome; the others record nothing. Then the same for a function of the agent, whose
arguments are read by its signature.
"""

from __future__ import annotations

import statistics
from collections import defaultdict

from .bystanders import Bystanders
from .contenders import FASTAPI, LITESTAR, OURS, STARLETTE, Target, environment, storage
from .load import FUNCTION, PREFETCH, Load, Server, load
from .report import Row, median, median_ratio, options, print_report, progress, seen
from .stored import CallLogFile

CONTENDERS: dict[str, Target] = {
    "ours": OURS,
    "Starlette": STARLETTE,
    "Litestar": LITESTAR,
    "FastAPI": FASTAPI,
}
AT_LEAST = {"Starlette": 0.9, "Litestar": 1.2, "FastAPI": 2.0}
#: One at a time first: what ours has to write down afterwards grows with each load.
CONNECTIONS = (1, 16, 64)
MAX_ADDED_P50_MS = 0.2

#: What serves a function, and at how many connections.
WITH_FUNCTION, FUNCTION_CONNECTIONS = ("ours", "Starlette"), 16
AT_LEAST_FUNCTION = 0.5

#: The loads of each contender at each number of connections, round after round; 0 stands for those
#: of the function.
Loads = dict[tuple[str, int], list[Load]]


def main() -> None:
    chosen = options(__doc__, seconds=5, rounds=3)
    bystanders = Bystanders()
    loads: Loads = defaultdict(list)
    recorded: list[float] = []
    for _ in range(chosen.rounds):
        for name, target in CONTENDERS.items():
            share = _measure(name, target, loads, seconds=chosen.seconds)
            if name == "ours":
                recorded.append(share)
    rows = [_rate(loads, rival, n) for n in CONNECTIONS[1:] for rival in AT_LEAST]
    rows += [_function(loads), _added_latency(loads), _recorded(recorded), _failed(loads)]
    title = f"Prefetch: requests/s, {chosen.rounds} rounds of {chosen.seconds} s"
    print_report(title, rows, bystanders)


def _measure(name: str, target: Target, loads: Loads, *, seconds: int) -> float:
    """Load one contender; return the share of its answers that the call log holds."""
    answered = 0.0
    with storage() as directory:
        with Server(target, environment(directory)) as server:
            load(server.url + PREFETCH, connections=1, seconds=1)  # warms up
            for connections in CONNECTIONS:
                done = load(server.url + PREFETCH, connections=connections, seconds=seconds)
                loads[name, connections].append(done)
                answered += done.requests_per_s * seconds
                progress(f"{name}, {connections} connections: {done.requests_per_s:.0f}/s")
            if name in WITH_FUNCTION:
                address = server.url + FUNCTION
                done = load(address, connections=FUNCTION_CONNECTIONS, seconds=seconds)
                loads[name, 0].append(done)
                progress(f"{name}, function: {done.requests_per_s:.0f}/s")
        if target is not OURS:
            return 0.0
        return CallLogFile(directory / "millis_hooks.db").deliveries("prefetch") / answered


def _rate(loads: Loads, rival: str, connections: int) -> Row:
    our_rates = [each.requests_per_s for each in loads["ours", connections]]
    other_rates = [each.requests_per_s for each in loads[rival, connections]]
    return Row(
        f"{connections} connections, {rival}",
        median_ratio(our_rates, other_rates),
        ours=median(our_rates, "/s"),
        other=median(other_rates, "/s"),
        at_least=AT_LEAST[rival],
    )


def _function(loads: Loads) -> Row:
    our_rates, other_rates = (
        [each.requests_per_s for each in loads[of, 0]] for of in WITH_FUNCTION
    )
    return Row(
        f"A function, {FUNCTION_CONNECTIONS} connections, Starlette",
        median_ratio(our_rates, other_rates),
        ours=median(our_rates, "/s"),
        other=median(other_rates, "/s"),
        at_least=AT_LEAST_FUNCTION,
    )


def _added_latency(loads: Loads) -> Row:
    our_p50s = [seen(each.p50_ms, each) for each in loads["ours", 1]]
    other_p50s = [seen(each.p50_ms, each) for each in loads["Starlette", 1]]
    return Row(
        "1 connection, p50 more than Starlette",
        statistics.median(a - b for a, b in zip(our_p50s, other_p50s, strict=True)),
        "ms",
        ours=median(our_p50s, " ms"),
        other=median(other_p50s, " ms"),
        at_most=MAX_ADDED_P50_MS,
    )


def _recorded(shares: list[float]) -> Row:
    # The load generator leaves some answers uncounted at its end, so the share is above 1.
    return Row("answers found in the call log, worst round", min(shares), at_least=1)


def _failed(loads: Loads) -> Row:
    failed = sum(each.errors + each.non_2xx for group in loads.values() for each in group)
    return Row("requests that failed, anybody's", failed, "", at_most=0)


if __name__ == "__main__":
    main()

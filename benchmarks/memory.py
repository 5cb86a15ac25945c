"""Resident memory after 10,000 deliveries and after 100,000, half of them prefetches.

Both times the backlog has been worked off, so that like is compared with like.
"""

from __future__ import annotations

from .bystanders import Bystanders
from .client import ask_all
from .contenders import OURS, Contest, started
from .load import END_OF_CALL, PREFETCH, end_of_call_body
from .process import status_mb
from .report import Row, options, print_report, progress

CONNECTIONS = 64
BODY = end_of_call_body(2_000)
MAX_GROWTH_MB = 20
DRAIN_TIMEOUT_S = 1800


def main() -> None:
    chosen = options(__doc__, deliveries=100_000)
    bystanders = Bystanders()
    first = chosen.deliveries // 10
    with started(OURS) as contest:
        started_mb = status_mb(contest.server.pid, "VmRSS")
        first_mb = _deliver(contest, first)
        last_mb = _deliver(contest, chosen.deliveries - first)
        peak_mb = status_mb(contest.server.pid, "VmHWM")
        kept = sum(contest.call_log.deliveries(kind) for kind in ("prefetch", "end_of_call"))
    rows = [
        Row("at start", started_mb, "MB"),
        Row(
            f"after {chosen.deliveries:,}, more than after {first:,}",
            last_mb - first_mb,
            "MB",
            ours=f"{last_mb:.0f} MB",
            other=f"{first_mb:.0f} MB",
            at_most=MAX_GROWTH_MB,
        ),
        Row("peak", peak_mb, "MB"),
        Row("deliveries not in the call log", chosen.deliveries - kept, "", at_most=0),
    ]
    print_report("Resident memory of the service, 2 kB bodies", rows, bystanders)


def _deliver(contest: Contest, count: int) -> float:
    """Deliver `count`, wait until they are worked off, and return the resident memory in MB."""
    url = contest.server.url
    # Prefetches first: their records, which nobody waits for, go in with the end-of-calls.
    prefetches = ask_all(url + PREFETCH, connections=CONNECTIONS, count=count // 2)
    ends = ask_all(url + END_OF_CALL, connections=CONNECTIONS, count=count - count // 2, body=BODY)
    if prefetches.ok + ends.ok != count:
        raise RuntimeError(f"{prefetches.failed + ends.failed} deliveries failed")
    loaded_mb = status_mb(contest.server.pid, "VmRSS")
    drained_in_s = contest.call_log.drain(timeout_s=DRAIN_TIMEOUT_S)
    resident_mb = status_mb(contest.server.pid, "VmRSS")
    progress(f"{count}: {loaded_mb:.0f} MB, {resident_mb:.0f} MB after {drained_in_s:.1f} s more")
    return resident_mb


if __name__ == "__main__":
    main()

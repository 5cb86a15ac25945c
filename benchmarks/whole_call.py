"""What a whole call costs the service: its prefetch and its end-of-call over HTTP at 8 connections,
both stored, processed, searchable, and its handler done.

With the two webhooks of a call one after the other, and with all prefetches before all ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import uvloop

from .bystanders import Bystanders
from .client import send_all
from .contenders import OURS, Target, started
from .generate import Generator
from .load import HEADERS, LOAD_CORE
from .process import cpu_s
from .report import Row, options, print_report, progress

CONNECTIONS = 8
#: Milliseconds of CPU a call, of the service with all its threads.
MOST_MS = 2.0
_WARM_CALLS = 200
_DRAIN_S = 120

#: The requests of a call: its prefetch and its end.
Call = tuple[bytes, bytes]
#: The order in which a connection sends the requests of its calls.
Order = Callable[[Sequence[Call]], Iterator[bytes]]


def adjacent(calls: Sequence[Call]) -> Iterator[bytes]:
    """Send the end of a call once its prefetch is answered."""
    return chain.from_iterable(calls)


def apart(calls: Sequence[Call]) -> Iterator[bytes]:
    """Send all prefetches before all ends."""
    return chain((call[0] for call in calls), (call[1] for call in calls))


def main() -> None:
    chosen = options(__doc__, calls=2_000, rounds=3)
    bystanders = Bystanders()
    bystanders.max_share = 1.0  # processor time counts, and others take none of ours
    os.sched_setaffinity(0, {LOAD_CORE})
    rows = []
    for order in (adjacent, apart):
        costs = [cost_ms(OURS, chosen.calls, order) for _ in range(chosen.rounds)]
        rows.append(Row(f"{order.__name__}: CPU a call", min(costs), "ms", at_most=MOST_MS))
    print_report(
        f"A whole call: {chosen.calls:,} calls, {CONNECTIONS} connections", rows, bystanders
    )


def cost_ms(target: Target, count: int, order: Order) -> float:
    """Return the milliseconds that the service computes for a call."""
    with started(target) as contest:
        requests = _requests(_WARM_CALLS + count, contest.server.url)
        _send(contest.server.port, requests[:_WARM_CALLS], adjacent)
        contest.call_log.drain(timeout_s=_DRAIN_S)
        before_s = cpu_s(contest.server.pid)
        _send(contest.server.port, requests[_WARM_CALLS:], order)
        drained_s = contest.call_log.drain(timeout_s=_DRAIN_S)
        ms = 1000 * (cpu_s(contest.server.pid) - before_s) / count
        handled = contest.call_log.succeeded_runs()
        if handled != _WARM_CALLS + count:
            raise SystemExit(f"{handled} of {_WARM_CALLS + count} calls were handled")
    progress(f"{order.__name__}: {ms:.2f} ms, drained in {drained_s:.1f} s")
    return ms


def _requests(count: int, url: str) -> list[Call]:
    generator, calls, number = Generator(count), list[Call](), 0
    while len(calls) < count:
        call, number = generator.call(number), number + 1
        if [each.kind for each in call] == ["prefetch", "end_of_call"]:
            query, body = call[0].query or "", call[1].body
            calls.append(
                (
                    _request(f"GET /millis/prefetch?{query}", {}, b""),
                    _request(
                        "POST /millis/end-of-call",
                        {"Content-Type": "application/json", "Content-Length": str(len(body))},
                        body,
                    ),
                )
            )
    return calls


def _request(line: str, headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"{name}: {value}" for name, value in {"Host": "bench", **HEADERS, **headers}.items()]
    return "\r\n".join([f"{line} HTTP/1.1", *lines, "", ""]).encode() + body


def _send(port: int, calls: Sequence[Call], order: Order) -> None:
    queues = [order(calls[first::CONNECTIONS]) for first in range(CONNECTIONS)]
    answers = uvloop.run(send_all("127.0.0.1", port, queues))
    if answers.failed:
        raise SystemExit(f"{answers.failed} requests were not answered with 200")


if __name__ == "__main__":
    main()

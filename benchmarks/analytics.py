"""Measures what the analytics page asks of a long call log.

    python -m benchmarks.analytics sqlite:////tmp/analytics.db --calls 1000000

The calls are spread evenly over the year before `NEWEST`, with three costs, three metadata, one
run, one attempt and five results each; a log that has calls already is used as it is, such as one
of `benchmarks.generate`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import func, select

from millis_hooks.call_log.changed_days import mark_days
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.migrations import migrate, open_database
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.queries.analytics import Scope, read_report
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.day_totals import roll_up
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.results import ResultFilter
from millis_hooks.call_log.results import rows_of as results_of
from millis_hooks.call_log.tables import (
    attempts,
    call_metadata,
    call_results,
    calls,
    cost_items,
    day_divisions,
    day_totals,
    handler_runs,
)
from millis_hooks.call_log.upkeep.removal import writing_by
from millis_hooks.protocol.call_status import CallStatus, outcome_of
from millis_hooks.protocol.results import Plain

NEWEST = datetime(2026, 11, 21, 14, tzinfo=UTC)
YEAR = timedelta(days=365)
BATCH = 5000
#: Frequent, rare and absent.
RESULT_FILTERS = (
    "booked=true",
    "topic!=booking",
    "score>=4.9",
    "score>9",
    "guests=3",
    "note=The guest of call 7 wants a table by the window.",
)
AGENTS = [f"-Ox1agent{number:011d}" for number in range(12)]
STATUSES = {
    CallStatus.USER_ENDED: 50,
    CallStatus.AGENT_ENDED: 20,
    CallStatus.BUSY: 10,
    CallStatus.VOICEMAIL_MESSAGE: 8,
    CallStatus.TIMEOUT: 5,
    CallStatus.ERROR: 4,
    CallStatus.CHAT_COMPLETION: 3,
}
COSTS = (("llm", "openai"), ("tts", "elevenlabs"), ("stt", "deepgram"))


def rows_of(number: int, count: int, choice: random.Random) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the rows of one call, each with its table."""
    at, call_id = NEWEST - YEAR * (1 - number / count), number + 1
    status = choice.choices(tuple(STATUSES), tuple(STATUSES.values()))[0]
    yield (
        calls,
        {
            "id": call_id,
            "session_id": f"-O{number:018d}",
            "received_at": at,
            "ended_at": at,
            "agent_id": choice.choice(AGENTS),
            "channel": "phone",
            "from_phone": "+14155550134",
            "to_phone": "+14155550199",
            "call_status": status,
            "outcome": outcome_of(status),
            "duration_s": round(choice.expovariate(1 / 120), 1),
            "cost_total": 0.05,
            "snippet": "I would like to book a table for two people on Tuesday evening, please.",
            "prefetch_ms": choice.gammavariate(3, 30),
            "prefetch_outcome": "fresh",
        },
    )
    for position, (type_, provider) in enumerate(COSTS):
        item = {"position": position, "type": type_, "provider": provider}
        yield cost_items, item | {"call_id": call_id, "credit": choice.random() / 30}
    run = {"call_id": call_id, "hook": "end_of_call", "handler": f"handler{number % 3}"}
    state = {"id": call_id, "state": "succeeded", "created_at": at, "state_since": at}
    yield handler_runs, run | state | {"is_latest": True, "is_replay": False, "spent": 1}
    tried = {"run_id": call_id, "number": 1, "started_at": at, "ended_at": at}
    outcome = "succeeded" if choice.random() < 0.99 else "failed"
    yield attempts, tried | {"duration_ms": choice.gammavariate(2, 80), "outcome": outcome}
    pairs = {
        "customer_id": f"c-{number:07d}",
        "keep.variant": choice.choice(("short", "friendly")),
        "plan": choice.choice(("gold", "silver", "basic")),
    }
    for key, value in pairs.items():
        yield call_metadata, {"call_id": call_id, "key": key, "value": value, "received_at": at}
    results: dict[str, Plain] = {
        "booked": choice.random() < 0.3,
        "guests": choice.randrange(1, 9),
        "note": f"The guest of call {number} wants a table by the window.",
        "score": round(choice.random() * 5, 1),
        "topic": choice.choice(("booking", "opening hours", "complaint", "other")),
    }
    shared = {"call_id": call_id, "handler": "outcome", "run_id": call_id, "received_at": at}
    for row in results_of(results, **shared):
        yield call_results, row


def fill(database: Database, count: int) -> None:
    choice = random.Random(4)
    for start in range(0, count, BATCH):
        add(database, count, range(start, min(start + BATCH, count)), choice)


def add(database: Database, count: int, numbers: range, choice: random.Random) -> None:
    """Add calls of a log of `count`."""
    made: dict[Any, list[dict[str, Any]]] = {}
    for number in numbers:
        for table, row in rows_of(number, count, choice):
            made.setdefault(table, []).append(row)
    with database.writer.begin() as connection:
        for table, rows in made.items():
            connection.execute(table.insert(), rows)
        mark_days(connection, [row["received_at"] for row in made[calls]])


def make_totals(database: Database) -> None:
    began_s = time.process_time()
    days = sum(roll_up(database.reader, writing_by(database.writer), now=NEWEST))
    took_s = time.process_time() - began_s
    if days:
        print(f"totals of {days:,} days: {took_s / days * 1000:.0f} ms of CPU each")
    for table, columns in ((day_totals, ("slots", "amounts")), (day_divisions, ("sums",))):
        size = func.sum(sum(func.length(table.c[name]) for name in columns))
        with database.reader.connect() as connection:
            count, size_bytes = connection.execute(select(func.count(table.c.day), size)).one()
        print(f"{table.name}: {count:,} rows, {(size_bytes or 0) / 1e6:.1f} MB")


def median_ms(work: Callable[[], object], *, times: int = 5) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1000


def measure(database: Database) -> None:
    queries = Queries(database.reader)
    since = {
        "24 hours": timedelta(days=1),
        "30 days": timedelta(days=30),
        "90 days": timedelta(days=90),
        "12 months": YEAR,
    }
    choices_of: dict[str, dict[str, Any]] = {
        "all agents": {},
        "one agent": {"agents": (AGENTS[3],)},
        "by variant": {"by": "keep.variant"},
        "by plan, one agent": {"by": "plan", "agents": (AGENTS[3],)},
        "by customer": {"by": "customer_id"},
        "Europe/Berlin": {"zone": ZoneInfo("Europe/Berlin")},
        "Asia/Kolkata": {"zone": ZoneInfo("Asia/Kolkata")},
    }
    for which, choices in choices_of.items():
        for name, span in since.items():
            scope = Scope(since=NEWEST - span, until=NEWEST, **choices)
            report = partial(queries.ask, partial(read_report, scope=scope))
            print(f"{name}, {which}: {median_ms(report):.0f} ms")
    for text in RESULT_FILTERS:
        wanted = ResultFilter.read(text)
        assert wanted is not None
        asked = CallFilter(range="all", results=(wanted,))
        took_ms = median_ms(partial(Queries(database.reader).ask, list_calls, asked, now=NEWEST))
        print(f"newest 50 calls with {text}: {took_ms:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("url", help="of a call log: sqlite:///… or postgresql://…")
    parser.add_argument("--calls", type=int, default=1_000_000, help="default 1,000,000")
    chosen = parser.parse_args()
    database = open_database(chosen.url)
    migrate(database)
    with database.reader.connect() as connection:
        is_empty = connection.scalar(select(calls.c.id).limit(1)) is None
    if is_empty:
        fill(database, chosen.calls)
    make_totals(database)
    measure(database)
    database.close()


if __name__ == "__main__":
    main()

"""What processing costs: the processor time of a call from its stored deliveries to rows, costs,
metadata, search text and the run of one handler.

On SQLite with a call's two deliveries next to each other in the inbox, far apart, and in any order;
on PostgreSQL, with `--postgres URL` of a database that is emptied, with one process and with two.
And what it adds that each handler returns five results: processing and the record of the run, with
results against without.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

from sqlalchemy import func, insert, select, update

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.migrations import migrate, open_database
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.tables import attempts, handler_runs, inbox, metadata
from millis_hooks.call_log.writer import Writer
from millis_hooks.protocol.results import Plain
from millis_hooks.runs.store import AttemptEnd, ClaimedRun, record

from .bystanders import Bystanders
from .generate import OWN_NUMBERS, Generator
from .report import Row, print_report, progress

#: Targets: milliseconds of CPU a call, calls a second, and two processes against one.
SQLITE_MS, POSTGRES_MS, CALLS_PER_S, TWO_AGAINST_ONE = 0.5, 0.8, 1_500, 1.2
_STORED_AT_ONCE = 500
_RECORDED_AT_ONCE = 50


@dataclass(frozen=True)
class Cost:
    """What it took to process some calls."""

    calls: int
    cpu_s: float
    took_s: float

    @property
    def ms(self) -> float:
        return self.cpu_s / self.calls * 1000

    @property
    def per_s(self) -> float:
        return self.calls / self.took_s


def adjacent(calls: Sequence[Sequence[Delivery]]) -> list[Delivery]:
    return list(chain.from_iterable(calls))


def apart(calls: Sequence[Sequence[Delivery]]) -> list[Delivery]:
    """All prefetches before all ends."""
    return [delivery for kind in (0, 1) for call in calls for delivery in call[kind : kind + 1]]


def in_any_order(calls: Sequence[Sequence[Delivery]]) -> list[Delivery]:
    mixed = adjacent(calls)
    random.Random(7).shuffle(mixed)
    return mixed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=2_000, help="default 2,000")
    parser.add_argument("--rounds", type=int, default=3, help="default 3; the least is taken")
    parser.add_argument("--postgres", metavar="URL", help="a database, which is emptied")
    chosen = parser.parse_args()
    bystanders = Bystanders()
    bystanders.max_share = 1.0  # processor time counts, and others take none of ours
    calls = list(_calls(chosen.calls))
    body_bytes = sum(len(each.body) for each in chain.from_iterable(calls)) / len(calls)
    rows: list[Row] = []
    for order in (adjacent, apart, in_any_order):
        batch = order(calls)
        cost = min((_on_sqlite(batch) for _ in range(chosen.rounds)), key=lambda each: each.ms)
        rows += _rows(f"SQLite, {order.__name__.replace('_', ' ')}", cost, SQLITE_MS)
    rows.append(_results(adjacent(calls), chosen.rounds))
    if chosen.postgres:
        rows += _on_postgres(chosen.postgres, in_any_order(calls))
    print_report(f"Processing: {len(calls):,} calls of {body_bytes:,.0f} bytes", rows, bystanders)


def _calls(count: int) -> Iterator[Sequence[Delivery]]:
    """Make calls of a prefetch and an end each."""
    generator = Generator(count)
    number = 0
    while count:
        call, number = generator.call(number), number + 1
        if [each.kind for each in call] == ["prefetch", "end_of_call"]:
            count -= 1
            yield call


def _rows(what: str, cost: Cost, at_most_ms: float) -> list[Row]:
    return [
        Row(f"{what}: CPU a call", cost.ms, "ms", at_most=at_most_ms),
        Row(f"{what}: calls", cost.per_s, "/s", at_least=CALLS_PER_S),
    ]


def _on_sqlite(batch: Sequence[Delivery]) -> Cost:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'log.db'}"
        with _log(url) as (database, writer):
            _store(database, batch)
            cost = _process(database, writer)
            progress(f"{cost.ms:.3f} ms, {cost.per_s:.0f}/s")
            return cost


#: What results may add: a factor.
WITH_RESULTS = 1.1
RESULTS: dict[str, Plain] = {
    "booked": True,
    "guests": 4,
    "note": "The guest wants a table by the window.",
    "score": 4.5,
    "topic": "booking",
}


def _results(batch: Sequence[Delivery], rounds: int) -> Row:
    with_ms, without_ms = (
        min(_with_runs(batch, results) for _ in range(rounds)) for results in (RESULTS, None)
    )
    return Row(
        "SQLite, a call and its run: with five results, against none",
        with_ms / without_ms,
        ours=f"{with_ms:.3f} ms",
        other=f"{without_ms:.3f} ms",
        at_most=WITH_RESULTS,
    )


def _with_runs(batch: Sequence[Delivery], results: Mapping[str, Plain] | None) -> float:
    """Return the processor time of a call in ms: processed, and its run recorded as succeeded."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _log(f"sqlite:///{Path(folder) / 'log.db'}") as (database, writer),
    ):
        _store(database, batch)
        cost = _process(database, writer)
        return cost.ms + _record_runs(database, writer, results)


def _record_runs(database: Database, writer: Writer, results: Mapping[str, Plain] | None) -> float:
    now = datetime.now(UTC)
    with database.writer.begin() as connection:
        runs = connection.execute(select(handler_runs.c.id, handler_runs.c.call_id)).all()
        begun = [{"run_id": run.id, "number": 1, "started_at": now} for run in runs]
        connection.execute(insert(attempts), begun)
        connection.execute(update(handler_runs).values(state="running", spent=1))
    ends = [
        AttemptEnd(
            run=ClaimedRun(run.id, run.call_id, "end_of_call", "save", 1, None, 1),
            ended_at=now,
            duration_ms=1.0,
            outcome="succeeded",
            state="succeeded",
            results=results,
        )
        for run in runs
    ]
    cpu_s = time.process_time()
    for start in range(0, len(ends), _RECORDED_AT_ONCE):
        part = ends[start : start + _RECORDED_AT_ONCE]
        writer.run(partial(record, ends=part, failure_hooks=lambda name: ()))
    return (time.process_time() - cpu_s) / len(ends) * 1000


def _process(database: Database, writer: Writer) -> Cost:
    """Empty the inbox, with other processes maybe; the calls are those that this one took."""
    processor = Processor(database, writer, runs_for=lambda call: ["save"], own_numbers=OWN_NUMBERS)
    processor._left_over.clear()  # no process died of these
    processor.process_chunk()  # imports and compiles
    cpu_s, began, taken = time.process_time(), time.perf_counter(), 0
    while size := processor.process_chunk():
        taken += size
    return Cost(max(taken // 2, 1), time.process_time() - cpu_s, time.perf_counter() - began)


@contextmanager
def _log(url: str) -> Iterator[tuple[Database, Writer]]:
    database = open_database(url)
    migrate(database)
    writer = Writer(database.writer)
    writer.start()
    try:
        yield database, writer
    finally:
        writer.close()
        database.close()


def _store(database: Database, batch: Sequence[Delivery]) -> None:
    for start in range(0, len(batch), _STORED_AT_ONCE):
        with database.writer.begin() as connection:
            insert_deliveries(connection, batch[start : start + _STORED_AT_ONCE])


def _on_postgres(url: str, batch: Sequence[Delivery]) -> Iterator[Row]:
    costs = {}
    for count in (1, 2):
        _empty(url)
        with _log(url) as (database, _):
            _store(database, batch)
        costs[count] = _by_processes(url, count)
        with _log(url) as (database, _), database.reader.connect() as connection:
            left = connection.scalar(select(func.count()).select_from(inbox))
            runs = connection.scalar(select(func.count()).select_from(handler_runs))
        if left or runs != len(batch) // 2:
            raise SystemExit(f"{left} deliveries wait, and there are {runs} runs")
    one, two = costs[1], costs[2]
    yield from _rows("PostgreSQL, one process", one, POSTGRES_MS)
    yield Row("PostgreSQL, two processes: CPU a call", two.ms, "ms")
    yield Row("  against one", two.ms / one.ms, at_most=TWO_AGAINST_ONE)
    yield Row("  calls", two.per_s, "/s")


def _empty(url: str) -> None:
    with _log(url) as (database, _), database.writer.begin() as connection:
        for table in metadata.sorted_tables:
            connection.exec_driver_sql(f"TRUNCATE {table.name} RESTART IDENTITY CASCADE")
        connection.exec_driver_sql("TRUNCATE call_search")


def _by_processes(url: str, count: int) -> Cost:
    """Return what all processes took together."""
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(count) as pool:
        costs = pool.map(_process_at, [url] * count, chunksize=1)
    return Cost(
        sum(each.calls for each in costs),
        sum(each.cpu_s for each in costs),
        max(each.took_s for each in costs),
    )


def _process_at(url: str) -> Cost:
    with _log(url) as (database, writer):
        return _process(database, writer)


#: An order in which deliveries arrive.
Order = Callable[[Sequence[Sequence[Delivery]]], list[Delivery]]


if __name__ == "__main__":
    main()

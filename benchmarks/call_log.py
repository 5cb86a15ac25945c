"""A call log of 1,000,000 calls against one of 10,000: pages, filters, search, ingest and size.

The logs are made where `--folder` says, unless they are there already; a million calls take some
20 minutes and 7 GB. Without `--folder` they are made anew and go again. Ingest adds calls to them.

With `--postgres SMALL LARGE`, the URLs of two databases, those are filled and asked instead.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import create_engine, exists, func, make_url, select

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.migrations import open_database
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.queries.paging import Place
from millis_hooks.call_log.raw_body import length_of
from millis_hooks.call_log.tables import calls, deliveries, inbox

from . import generate
from .bystanders import Bystanders
from .generate import AGENTS, NEWEST, OWN_NUMBERS, Generator, fill_once, made
from .report import Row, median, median_ratio, print_report, progress, sync_ms
from .stored import POLL_S

NOW = NEWEST + timedelta(days=1)
SMALL = 10_000
MAX_RATIO = 1.5
MAX_SEARCH_MS = 100
MIN_INGEST = 0.8
#: With the search index, of the bytes received.
MAX_SIZE = 1.15
#: Times that each query is asked in a round, of which the quickest counts.
REPEATS = 10
#: Deliveries on their way at once, and how many are made in a round.
CONNECTIONS = 64
INGESTED = 2_000
DEEP_PAGE = 10_000
PAGE_SIZE = 50
#: What PostgreSQL may take of the machine, with all others.
SERVER_SHARE = 1.0

OWN_NUMBER = min(OWN_NUMBERS)
FILTERS = {
    "no filter": CallFilter(range="all"),
    "agent, frequent": CallFilter(range="all", agent=(AGENTS[0],)),
    "agent, rare": CallFilter(range="all", agent=(generate.RARE_AGENT,)),
    "agent, absent": CallFilter(range="all", agent=("-nobody",)),
    "status, frequent": CallFilter(range="all", status=("user-ended",)),
    "status, one in a hundred": CallFilter(range="all", status=("canceled",)),
    "status, rare": CallFilter(range="all", status=(generate.RARE_STATUS,)),
    "outcome, frequent": CallFilter(range="all", outcome="completed"),
    "outcome, rare": CallFilter(range="all", outcome="chat"),
    "no end received": CallFilter(range="all", outcome="lost"),
    "channel, frequent": CallFilter(range="all", channel="phone"),
    "channel, rare": CallFilter(range="all", channel="chat"),
    "direction": CallFilter(range="all", direction="outbound"),
    "number, frequent": CallFilter(range="all", number=OWN_NUMBER),
    "number, rare": CallFilter(range="all", number=generate.RARE_NUMBER),
    "length, frequent": CallFilter(range="all", min_s=30),
    "length, rare": CallFilter(range="all", min_s=3600),
    "cost, frequent": CallFilter(range="all", cost_max=0.05),
    "cost, rare": CallFilter(range="all", cost_min=90),
    "metadata, frequent": CallFilter(range="all", metadata=(("tier", "gold"),)),
    "metadata, rare": CallFilter(range="all", metadata=(("campaign", generate.RARE_CAMPAIGN),)),
    "metadata, absent": CallFilter(range="all", metadata=(("campaign", "never"),)),
    "provider, frequent": CallFilter(range="all", provider="elevenlabs"),
    "function, absent": CallFilter(range="all", function="never_called"),
    "part of a number": CallFilter(range="all", number="5550134"),
    "sandbox": CallFilter(range="all", source="sandbox"),
    "all sources": CallFilter(range="all", source="all"),
    "handler retrying": CallFilter(range="all", handler="retrying"),
    "handler failed": CallFilter(range="all", handler="failed"),
    "no handler": CallFilter(range="all", handler="none"),
    "unparsed": CallFilter(range="all", unparsed=True),
    "duplicate": CallFilter(range="all", duplicate=True),
}
SEARCHES = {
    "the": "in most calls",
    "refund": "in some",
    generate.RARE_WORD: f"in {generate.RARE}",
    "xylograph": "in none",
    "thering": "in none, of frequent letters",
    "would work for me": "in none, a phrase",
    "予約を": "in some, Japanese",
    "5550134": "part of a number",
}


@dataclass(frozen=True)
class Log:
    """A call log, and questions to it."""

    url: str
    count: int

    @property
    def file(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))

    @contextmanager
    def opened(self) -> Iterator[Queries]:
        database = open_database(self.url)
        yield Queries(database.reader)
        database.close()

    def newest(self, queries: Queries, wanted: CallFilter, before: str | None = None) -> float:
        """Return how long the page takes, in ms."""
        return _ms(lambda: queries.ask(list_calls, wanted, now=NOW, before=before, size=PAGE_SIZE))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--folder", type=Path, help="where the logs are kept")
    parser.add_argument("--postgres", nargs=2, metavar=("SMALL", "LARGE"), help="URLs")
    chosen = parser.parse_args()
    if chosen.postgres is not None:
        measure_postgres(chosen.postgres, chosen.calls, chosen.rounds)
    elif chosen.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), chosen.calls, chosen.rounds)
    else:
        measure(chosen.folder, chosen.calls, chosen.rounds)


def measure(folder: Path, count: int, rounds: int) -> None:
    small, large = (Log(f"sqlite:///{made(folder, size)}", size) for size in (SMALL, count))
    bystanders = Bystanders()
    rows = [
        *_compare_filters(small, large, rounds),
        _compare_pages(large, rounds),
        *_time_searches(large),
        _compare_ingest(large, rounds),
        *_weigh(large),
    ]
    title = f"Call log: {count:,} calls against {SMALL:,}, newest {PAGE_SIZE}, {rounds} rounds"
    print_report(f"{title}; this disk syncs in {sync_ms():.2f} ms", rows, bystanders)


def measure_postgres(urls: Sequence[str], count: int, rounds: int) -> None:
    small, large = (Log(url, size) for url, size in zip(urls, (SMALL, count), strict=True))
    for log in (small, large):
        fill_once(log.url, log.count)
    bystanders = Bystanders(max_share=SERVER_SHARE)
    rows = [
        *_compare_filters(small, large, rounds),
        _compare_pages(large, rounds),
        *_time_searches(large),
        _compare_ingest(large, rounds),
    ]
    title = f"On PostgreSQL: {count:,} calls against {SMALL:,}, newest {PAGE_SIZE}, {rounds} rounds"
    print_report(title, rows, bystanders)


def _compare_filters(small: Log, large: Log, rounds: int) -> Iterator[Row]:
    with small.opened() as of_small, large.opened() as of_large:
        for what, wanted in FILTERS.items():
            took = [
                (large.newest(of_large, wanted), small.newest(of_small, wanted))
                for _ in range(rounds)
            ]
            yield _ratio(what, took, at_most=MAX_RATIO)


def _compare_pages(large: Log, rounds: int) -> Row:
    everything = FILTERS["no filter"]
    with large.opened() as queries:
        before = _cursor(large, min(DEEP_PAGE * PAGE_SIZE, large.count - PAGE_SIZE))
        took = [
            (large.newest(queries, everything, before), large.newest(queries, everything))
            for _ in range(rounds)
        ]
    return _ratio(f"page {DEEP_PAGE:,} against page 1", took, at_most=MAX_RATIO)


def _cursor(log: Log, place: int) -> str:
    key = (calls.c.received_at, calls.c.id)
    newest = select(*key).order_by(*(column.desc() for column in key))
    database = open_database(log.url)
    with database.reader.connect() as connection:
        found = connection.execute(newest.limit(1).offset(place)).one()
    database.close()
    return Place(*found).cursor


def _time_searches(large: Log) -> Iterator[Row]:
    with large.opened() as queries:
        for word, meaning in SEARCHES.items():
            took_ms = large.newest(queries, CallFilter(range="all", q=word))
            progress(f"{word}: {took_ms:.1f} ms")
            yield Row(f"search: {word} ({meaning})", took_ms, "ms", at_most=MAX_SEARCH_MS)


def _compare_ingest(large: Log, rounds: int) -> Row:
    full, empty = [], []
    for number in range(rounds):
        sent = _following(large.count, number * INGESTED)
        full.append(_ingest(large.url, sent))
        with _empty_log(large.url) as url:
            empty.append(_ingest(url, sent))
        progress(f"ingest: {full[-1]:.0f} calls/s, into an empty log {empty[-1]:.0f}")
    return Row(
        "ingest against an empty log",
        median_ratio(full, empty),
        ours=median(full, "/s"),
        other=median(empty, "/s"),
        at_least=MIN_INGEST,
    )


def _following(count: int, first: int) -> list[list[Delivery]]:
    """Return calls that come after the last of a log: new ones stand at the end of most indexes."""
    generator = Generator(count)
    return [generator.call(count + first + number) for number in range(INGESTED)]


@contextmanager
def _empty_log(beside: str) -> Iterator[str]:
    """Yield the URL of a new log: in the same folder, or in the same server."""
    if beside.startswith("sqlite"):
        with tempfile.TemporaryDirectory(dir=Path(make_url(beside).database or "").parent) as fresh:
            yield f"sqlite:///{fresh}/empty.db"
        return
    name = "millis_hooks_empty"
    with create_engine(beside, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield make_url(beside).set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f"DROP DATABASE {name}")


def _ingest(url: str, sent: Sequence[Sequence[Delivery]]) -> float:
    """Return how many calls per second are stored, synced and processed."""
    call_log = CallLog(url, own_numbers=OWN_NUMBERS)
    began = time.perf_counter()
    asyncio.run(_deliver(call_log, sent))
    _wait_until_parsed(call_log.database)
    took_s = time.perf_counter() - began
    call_log.close()
    return INGESTED / took_s


def _wait_until_parsed(database: Database) -> None:
    while _has_to_do(database):
        time.sleep(POLL_S)


def _has_to_do(database: Database) -> bool:
    with database.reader.connect() as connection:  # a new one each time, to see what is new
        return bool(connection.scalar(select(exists(select(inbox)))))


async def _deliver(call_log: CallLog, sent: Sequence[Sequence[Delivery]]) -> None:
    async def send(mine: Sequence[Sequence[Delivery]]) -> None:
        for prefetch, end in mine:
            call_log.writer.record(prefetch)
            await call_log.writer.store(end)

    await asyncio.gather(*(send(sent[number::CONNECTIONS]) for number in range(CONNECTIONS)))


def _weigh(large: Log) -> Iterator[Row]:
    d = deliveries.c
    query_bytes = func.length(func.coalesce(d.query, ""))
    received = select(func.sum(length_of(d.body)) + func.sum(query_bytes))
    database = Database(f"sqlite:///{large.file}")
    with database.reader.connect() as connection:
        raw = connection.scalar(received) or 1
    database.close()
    of = "SELECT sum(pgsize) FROM dbstat WHERE name {} LIKE 'call_search%'"
    with closing(sqlite3.connect(f"file:{large.file}?mode=ro", uri=True)) as connection:
        search, rest = (connection.execute(of.format(how)).fetchone()[0] for how in ("", "NOT"))
    ours, other = f"{rest / 1e6:,.0f} MB", f"{raw / 1e6:,.0f} MB"
    yield Row("size without search against raw", rest / raw, "x", ours, other)
    ours = f"{(rest + search) / 1e6:,.0f} MB"
    ratio = (rest + search) / raw
    yield Row("size with search against raw", ratio, "x", ours, other, at_most=MAX_SIZE)


def _ratio(what: str, took: Sequence[tuple[float, float]], *, at_most: float) -> Row:
    ours, other = ([each[side] for each in took] for side in (0, 1))
    progress(f"{what}: {statistics.median(ours):.2f} ms, {statistics.median(other):.2f} ms")
    ratio = median_ratio(ours, other)
    return Row(what, ratio, "x", median(ours, " ms"), median(other, " ms"), at_most=at_most)


def _ms(ask: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    return min(took)


if __name__ == "__main__":
    main()

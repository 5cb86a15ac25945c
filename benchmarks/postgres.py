"""On PostgreSQL: acknowledgements per second against a commit per request through a pool, and
prefetches per second against the same service on SQLite.

URL is that of a database that is emptied again and again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import NullPool, create_engine, make_url

from .bystanders import Bystanders
from .contenders import OURS, Target, environment, storage
from .load import END_OF_CALL, PREFETCH, Load, Server, end_of_call_body, load
from .report import Row, median, median_ratio, print_report, progress, seen

POOLED = "benchmarks.rivals_postgres:pooled"
CONNECTIONS = 64
BODY_BYTES = 2_000
MIN_ACKNOWLEDGED_RATIO = 1.5
MIN_PREFETCH_RATIO = 0.9
#: What the database may take of the machine, with all others.
SERVER_SHARE = 0.25

Loads = dict[str, list[Load]]


def main() -> None:
    chosen = _options()
    bystanders = Bystanders(max_share=SERVER_SHARE)
    loads: Loads = defaultdict(list)
    for _ in range(chosen.rounds):
        for name, target in (("ours", OURS), ("pool", POOLED)):
            with _served(target, chosen.url, on_postgres=True) as server:
                loads[f"end-of-call, {name}"].append(_ends(server, name, chosen.seconds))
        for name, on_postgres in (("PostgreSQL", True), ("SQLite", False)):
            with _served(OURS, chosen.url, on_postgres=on_postgres) as server:
                loads[f"prefetch, {name}"].append(_prefetches(server, name, chosen.seconds))
    title = f"PostgreSQL, {CONNECTIONS} connections, {chosen.rounds} rounds of {chosen.seconds} s"
    print_report(title, _rows(loads), bystanders)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="postgresql://user@host/database")
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


@contextmanager
def _served(target: Target, url: str, *, on_postgres: bool) -> Iterator[Server]:
    _empty(url)
    with storage() as directory:
        variables = environment(directory) | {"BENCH_POSTGRES": url}
        if on_postgres:
            variables["MILLIS_HOOKS_DATABASE_URL"] = url
        with Server(target, variables) as server:
            yield server


def _empty(url: str) -> None:
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
    )
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        connection.exec_driver_sql("CHECKPOINT")


def _ends(server: Server, name: str, seconds: int) -> Load:
    url, body = server.url + END_OF_CALL, end_of_call_body(BODY_BYTES)
    load(url, connections=CONNECTIONS, seconds=1, body=body)  # warms up
    done = load(url, connections=CONNECTIONS, seconds=seconds, body=body)
    progress(f"end-of-call, {name}: {done.requests_per_s:.0f}/s, p99 {done.p99_ms:.1f} ms")
    return done


def _prefetches(server: Server, name: str, seconds: int) -> Load:
    load(server.url + PREFETCH, connections=1, seconds=1)  # warms up
    done = load(server.url + PREFETCH, connections=CONNECTIONS, seconds=seconds)
    progress(f"prefetch, {name}: {done.requests_per_s:.0f}/s")
    return done


def _rows(loads: Loads) -> list[Row]:
    return [
        _rate("2 kB acknowledged, pool", loads, "end-of-call, ours", "end-of-call, pool"),
        _p99(loads),
        _rate("prefetch, SQLite", loads, "prefetch, PostgreSQL", "prefetch, SQLite"),
        Row("requests that failed, anybody's", _failed(loads), "", at_most=0),
    ]


def _rate(title: str, loads: Loads, ours: str, other: str) -> Row:
    rates = [[each.requests_per_s for each in loads[name]] for name in (ours, other)]
    return Row(
        title,
        median_ratio(*rates),
        ours=median(rates[0], "/s"),
        other=median(rates[1], "/s"),
        at_least=MIN_ACKNOWLEDGED_RATIO if "end" in ours else MIN_PREFETCH_RATIO,
    )


def _p99(loads: Loads) -> Row:
    ours, pool = (
        [seen(each.p99_ms, each) for each in loads[f"end-of-call, {name}"]]
        for name in ("ours", "pool")
    )
    return Row(
        "2 kB, p99, pool over ours",
        median_ratio(pool, ours),
        ours=median(ours, " ms"),
        other=median(pool, " ms"),
    )


def _failed(loads: Loads) -> int:
    return sum(each.errors + each.non_2xx for group in loads.values() for each in group)


if __name__ == "__main__":
    main()

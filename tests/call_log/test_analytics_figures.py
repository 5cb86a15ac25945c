from __future__ import annotations

import math
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millis_hooks.call_log.deliveries import insert_deliveries
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.queries.analytics import (
    LONGEST,
    Report,
    Scope,
    read_report,
)
from millis_hooks.call_log.queries.buckets import cut, interval_for, last_days
from millis_hooks.call_log.queries.day_totals import roll_up
from millis_hooks.call_log.queries.tally import count_between, percentile
from millis_hooks.call_log.tables import deliveries
from millis_hooks.call_log.upkeep.removal import remove_sessions
from millis_hooks.exceptions import StorageError
from support import databases
from support.storage import ended, opened, prefetched, rows, writing
from support.stored_calls import NOW, StoredCalls

pytestmark = pytest.mark.both_databases

BERLIN = ZoneInfo("Europe/Berlin")
KATHMANDU = ZoneInfo("Asia/Kathmandu")  # a quarter to the hour
#: Clocks are set back in Berlin on the last day of it.
WEEK_BEGAN = datetime(2026, 10, 19, tzinfo=UTC)
WEEK = Scope(
    since=datetime(2026, 10, 19, tzinfo=BERLIN), until=datetime(2026, 10, 26, 12, tzinfo=BERLIN)
)


@dataclass
class Told:
    """A call as a test makes it up."""

    minute: int
    agent_id: str | None
    outcome: str | None
    call_status: str | None
    duration_s: float | None
    prefetch_ms: float | None
    costs: list[tuple[str | None, str | None, float | None]] = field(default_factory=list)
    attempts: list[tuple[str, float]] = field(default_factory=list)

    @property
    def at(self) -> datetime:
        return WEEK_BEGAN - timedelta(days=8) + timedelta(minutes=self.minute)

    @property
    def cost(self) -> float | None:
        credits_ = [credit for *_, credit in self.costs if credit is not None]
        return sum(credits_) if credits_ else None


numbers = st.floats(0, 2000)
told_calls = st.builds(
    Told,
    minute=st.integers(0, 16 * 24 * 60),
    agent_id=st.sampled_from(["a", "b", None]),
    outcome=st.sampled_from(["completed", "failed", "unreached", "voicemail", None]),
    call_status=st.sampled_from(["user-ended", "error", "never heard of", None]),
    duration_s=st.none() | numbers,
    prefetch_ms=st.none() | numbers,
    costs=st.lists(
        st.tuples(
            st.sampled_from(["llm", "tts", None]),
            st.sampled_from(["openai", None]),
            st.none() | st.floats(0, 5),
        ),
        max_size=3,
    ),
    attempts=st.lists(
        st.tuples(st.sampled_from(["succeeded", "failed", "timed_out", "handed_back"]), numbers),
        max_size=2,
    ),
)


def add(log: StoredCalls, number: int, told: Told) -> int:
    call_id = log.add_call(
        f"-s{number}",
        minutes_ago=(NOW - told.at) / timedelta(minutes=1),
        agent_id=told.agent_id,
        outcome=told.outcome,
        call_status=told.call_status,
        duration_s=told.duration_s,
        prefetch_ms=told.prefetch_ms,
        prefetch_outcome=None if told.prefetch_ms is None else "fresh",
        cost_total=told.cost,
    )
    for position, (type_, provider, credit) in enumerate(told.costs):
        log.add_cost(call_id, position, type=type_, provider=provider, credit=credit)
    run_id = log.add_run(call_id, "save", "succeeded")
    for tried, (outcome, duration_ms) in enumerate(told.attempts, 1):
        log.add_attempt(run_id, tried, outcome=outcome, duration_ms=duration_ms)
    return call_id


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    stored = StoredCalls(tmp_path)
    yield stored
    stored.database.close()


def report(log: StoredCalls, scope: Scope = WEEK) -> Report:
    return Queries(log.database.reader).ask(partial(read_report, scope=scope))


def make_totals(log: StoredCalls) -> int:
    return sum(roll_up(log.database.reader, log.write, now=NOW))


def nearest_rank(values: Sequence[float | None], share: float) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[max(math.ceil(share * len(known)), 1) - 1] if known else None


def check(found: Report, told: Sequence[Told], scope: Scope) -> None:
    """Hold a report to what counting the calls one by one gives."""
    chosen = [call for call in told if not scope.agents or call.agent_id in scope.agents]
    within = [call for call in chosen if scope.since <= call.at < scope.until]
    before = [call for call in chosen if scope.since - scope.span <= call.at < scope.since]
    tiles = found.tiles
    assert (tiles.calls.value, tiles.calls.before) == (len(within), len(before))
    lengths = [[call.duration_s for call in each] for each in (within, before)]
    medians = (tiles.median_duration_s.value, tiles.median_duration_s.before)
    assert medians == tuple(nearest_rank(each, 0.5) for each in lengths)
    assert found.durations.p90_s == nearest_rank(lengths[0], 0.9)
    assert sum(found.durations.counts) == sum(value is not None for value in lengths[0])
    latencies = [call.prefetch_ms for call in within]
    assert tiles.prefetch_p95_ms.value == nearest_rank(latencies, 0.95)
    assert found.prefetch.p99_ms == nearest_rank(latencies, 0.99)
    assert found.statuses == Counter(call.call_status or "" for call in within)
    assert found.outcomes["failed"] == sum(call.outcome == "failed" for call in within)
    costs = [call.cost for call in within if call.cost is not None]
    assert tiles.cost.value == (pytest.approx(sum(costs)) if costs else None)
    check_split(found, within, scope)
    check_handler(found, within)
    days = Counter(call.at.astimezone(scope.zone).date() for call in within)
    assert {bucket.start.date(): bucket.calls for bucket in found.buckets if bucket.calls} == days
    assert len(found.buckets) == len(tiles.calls.series) == 8


def check_split(found: Report, within: Sequence[Told], scope: Scope) -> None:
    split = defaultdict[str, float](float)
    for call in within:
        for type_, provider, credit in call.costs:
            name = type_ if scope.split == "type" else provider
            split[name or ""] += credit or 0
    assert {name: cost for name, cost in found.costs.items() if cost} == pytest.approx(
        {name: cost for name, cost in split.items() if cost}
    )


def check_handler(found: Report, within: Sequence[Told]) -> None:
    tried = [attempt for call in within for attempt in call.attempts]
    if not within:
        assert not found.handlers
        return
    [handler] = found.handlers
    assert (handler.handler, handler.runs, handler.attempts) == ("save", len(within), len(tried))
    assert handler.failed_attempts == sum(end in ("failed", "timed_out") for end, _ in tried)
    assert handler.p95_ms == nearest_rank([duration_ms for _, duration_ms in tried], 0.95)


@given(
    st.lists(told_calls, max_size=12),
    st.sampled_from([UTC, BERLIN, KATHMANDU]),
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.sampled_from(["type", "provider"]),
)
@settings(max_examples=settings().max_examples // 5)
def test_figures_are_those_of_the_calls_one_by_one_with_totals_and_without(
    told: list[Told], zone: Any, agents: tuple[str, ...], split: Any
) -> None:
    zone = ZoneInfo("UTC") if zone is UTC else zone
    until = datetime(2026, 10, 26, 12, 20, tzinfo=zone)
    since = datetime(2026, 10, 19, tzinfo=zone)
    scope = Scope(since=since, until=until, zone=zone, agents=agents, split=split, interval="day")
    with tempfile.TemporaryDirectory() as folder, databases.freed():
        log = StoredCalls(Path(folder))
        for number, each in enumerate(told):
            add(log, number, each)
        check(report(log, scope), told, scope)
        make_totals(log)
        check(report(log, scope), told, scope)
        going = [f"-s{number}" for number in range(0, len(told), 3)]
        log.write(lambda connection: remove_sessions(connection, going))
        left = [each for number, each in enumerate(told) if number % 3]
        check(report(log, scope), left, scope)
        log.database.close()


def test_nothing_is_what_there_is_to_say_of_an_empty_period(log: StoredCalls) -> None:
    found = report(log)
    assert found.tiles.calls.value == 0
    assert found.tiles.error_rate.value is None
    assert found.tiles.cost.value is None
    assert found.durations.median_s is None
    assert found.prefetch.p95_ms is None
    assert (found.statuses, found.costs, found.handlers) == ({}, {}, ())


def test_groups_hold_every_call_and_error_rate_is_of_all(log: StoredCalls) -> None:
    outcomes = ["completed", "chat", "voicemail", "timeout", "failed", "unreached", "unknown", None]
    for outcome in outcomes:
        log.add_call(f"-{outcome}", outcome=outcome)
    found = report(log, Scope(since=NOW - timedelta(days=1), until=NOW))
    assert list(found.outcomes.values()) == [1, 1, 1, 1, 1, 3]
    assert found.tiles.error_rate.value == 1 / 8


def test_the_last_bar_holds_all_that_last_ten_minutes_and_more(log: StoredCalls) -> None:
    for number, duration_s in enumerate([0, 29.9, 30, 599, 600, 9000]):
        log.add_call(f"-{number}", duration_s=duration_s)
    counts = report(log, Scope(since=NOW - timedelta(days=1), until=NOW)).durations.counts
    assert (len(counts), counts[:2], counts[-2:]) == (21, (2, 1), (1, 2))


def test_a_day_with_few_prefetches_has_a_gap_instead_of_percentiles(log: StoredCalls) -> None:
    for number in range(39):
        log.add_call(f"-{number}", minutes_ago=60 * 24 * (number % 2), prefetch_ms=float(number))
    scope = Scope(since=NOW - timedelta(days=1.5), until=NOW + timedelta(hours=1), interval="day")
    found = report(log, scope)
    assert [bucket.prefetch.count for bucket in found.buckets] == [19, 20]
    assert [bucket.prefetch.p50_ms for bucket in found.buckets] == [None, 18]
    assert found.tiles.prefetch_p95_ms.series == (None, 36)


def test_a_handler_of_each_hook_is_distinguished(log: StoredCalls) -> None:
    call_id = log.add_call()
    log.add_run(call_id, "save", "failed")
    log.add_run(call_id, "save", "succeeded", hook="failed")
    told = report(log, Scope(since=NOW - timedelta(days=1), until=NOW)).handlers
    assert [(each.hook, each.handler, each.failed_runs) for each in told] == [
        ("end_of_call", "save", 1),
        ("failed", "save", 0),
    ]


def test_attempts_under_way_do_not_count(log: StoredCalls) -> None:
    run_id = log.add_run(log.add_call(), "save", "running")
    log.add_attempt(run_id)
    assert report(log, Scope(since=NOW - timedelta(days=1), until=NOW)).handlers[0].attempts == 0


def test_a_call_counts_once_however_often_it_is_delivered_and_read(tmp_path: Path) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        processor = Processor(database, writer, runs_for=lambda _: ["save"])
        stored = [prefetched(latency_ms=12.0), ended(), ended()]
        writer.run(lambda connection: insert_deliveries(connection, stored))
        for row in rows(database, deliveries):
            processor.process([row.id])
        scope = Scope(since=NOW - timedelta(days=1), until=NOW + timedelta(hours=1))
        found = Queries(database.reader).ask(partial(read_report, scope=scope))
    assert (found.tiles.calls.value, found.prefetch_outcomes) == (1, {"fresh": 1})
    assert found.handlers[0].runs == 1


def test_a_day_on_which_clocks_change_is_one_bucket() -> None:
    days = list(cut(WEEK.since, WEEK.until, "day", BERLIN))
    lengths = [(until - start.astimezone(UTC)) / timedelta(hours=1) for start, until in days]
    assert lengths == [24, 24, 24, 24, 24, 24, 25, 12]
    assert {start.hour for start, _ in days} == {0}


def test_hours_follow_local_clocks_and_an_hour_that_comes_twice_is_two() -> None:
    since = datetime(2026, 10, 25, 0, 30, tzinfo=BERLIN)
    found = list(cut(since, since + timedelta(hours=4), "hour", BERLIN))
    assert [start.hour for start, _ in found] == [0, 1, 2, 2, 3, 4]
    quarters = cut(NOW, NOW + timedelta(hours=2), "hour", KATHMANDU)
    assert [start.minute for start, _ in quarters] == [5, 0, 0]


def test_a_day_whose_midnight_clocks_skip_begins_at_one() -> None:
    beirut = ZoneInfo("Asia/Beirut")
    since = datetime(2026, 3, 28, 12, tzinfo=beirut)
    found = list(cut(since, since + timedelta(days=2), "day", beirut))
    assert [start.hour for start, _ in found] == [12, 1, 0]


def test_weeks_begin_on_monday() -> None:
    found = list(cut(NOW, NOW + timedelta(days=10), "week", BERLIN))
    assert [start.isoweekday() for start, _ in found] == [6, 1, 1]


@pytest.mark.parametrize(
    ("days", "wanted", "interval"),
    [
        (1, None, "hour"),
        (30, None, "day"),
        (365, None, "week"),
        (30, "hour", "hour"),
        (365, "hour", "day"),
        (3650, "hour", "week"),
        (365, "day", "day"),
        (1, "week", "week"),
    ],
)
def test_an_interval_that_is_too_fine_gives_way(days: int, wanted: Any, interval: str) -> None:
    assert interval_for(timedelta(days=days), wanted) == interval


def test_the_last_days_begin_at_a_local_midnight() -> None:
    since, until = last_days(30, now=NOW, zone=BERLIN)
    assert since == datetime(2026, 10, 23, tzinfo=BERLIN)
    assert until == NOW


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (NOW, NOW),
        (NOW, NOW - timedelta(days=1)),
        (datetime(1, 1, 1, tzinfo=UTC), NOW),
        (NOW, datetime(9999, 1, 1, tzinfo=UTC)),
        (NOW, NOW + LONGEST + timedelta(days=1)),
    ],
)
def test_a_period_that_makes_no_sense_is_refused(since: datetime, until: datetime) -> None:
    with pytest.raises(ValueError, match="The period"):
        Scope(since=since, until=until)


@given(st.lists(st.lists(st.floats(-1e9, 1e9), max_size=8), max_size=6), st.floats(0.01, 1))
def test_percentiles_of_several_lists_are_those_of_all_numbers(
    lists: list[list[float]], share: float
) -> None:
    together = [number for each in lists for number in each]
    assert percentile([sorted(each) for each in lists], share) == nearest_rank(together, share)


def test_numbers_with_none_between_them_are_distinguished() -> None:
    first = 1.0
    for _ in range(4):
        following = math.nextafter(first, 2)
        assert [percentile([[first], [following]], share) for share in (0.5, 1)] == [
            first,
            following,
        ]
        first = following


@given(st.lists(st.lists(st.floats(0, 100), max_size=8), max_size=6))
def test_every_number_is_in_one_step(lists: list[list[float]]) -> None:
    together = [number for each in lists for number in each]
    steps = count_between([sorted(each) for each in lists], [10, 50])
    borders = [-math.inf, 10, 50, math.inf]
    expected = [sum(low <= number < high for number in together) for low, high in pairwise(borders)]
    assert list(steps) == expected


@pytest.mark.sqlite_only
def test_a_log_that_cannot_be_read_raises_a_storage_error(log: StoredCalls) -> None:
    with sqlite3.connect(log.database.path) as other:
        other.execute("DROP TABLE changed_days")
    other.close()
    with pytest.raises(StorageError, match="could not be read"):
        report(log)

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from millis_hooks.call_log.changed_days import mark_days, mark_days_of
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.queries.analytics import Report, Scope, read_report
from millis_hooks.call_log.queries.day_totals import SETTLED_AFTER, roll_up
from millis_hooks.call_log.queries.divisions import MOST_DIVISIONS
from millis_hooks.call_log.tables import (
    calls,
    changed_days,
    cost_items,
    day_divisions,
    day_totals,
    handler_runs,
    inbox,
    rereads,
)
from millis_hooks.call_log.upkeep.removal import remove_sessions
from millis_hooks.call_log.upkeep.reprocess import Chosen, Reparse
from millis_hooks.call_log.writer import Write, Writer
from millis_hooks.protocol.samples import end_of_call_body
from support import databases
from support.storage import ended, prefetched, rows, writing
from support.stored_calls import NOW, StoredCalls

pytestmark = pytest.mark.both_databases

YESTERDAY = NOW - timedelta(days=1)
KOLKATA = ZoneInfo("Asia/Kolkata")
#: The sessions of the property test begin around this midnight.
MIDNIGHT = datetime(2026, 11, 18, tzinfo=UTC)
LATER = MIDNIGHT + timedelta(days=9)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    stored = StoredCalls(tmp_path)
    yield stored
    stored.database.close()


def make_totals(log: StoredCalls, *, now: datetime = NOW, write: Write | None = None) -> int:
    return sum(roll_up(log.database.reader, write or log.write, now=now))


def report(log: StoredCalls, *, days: float = 3) -> Report:
    scope = Scope(since=NOW - timedelta(days=days), until=NOW)
    return Queries(log.database.reader).ask(partial(read_report, scope=scope))


def marked(log: StoredCalls) -> list[date]:
    return [row.day for row in rows(log.database, changed_days)]


def is_made_of_totals(log: StoredCalls) -> bool:
    """Tell whether the report stays when the calls are gone without a mark."""
    before = report(log).tiles.calls.value
    log.write(lambda connection: connection.execute(delete(calls)))
    return report(log).tiles.calls.value == before


def test_a_report_reads_totals_instead_of_calls(log: StoredCalls) -> None:
    log.add_call(minutes_ago=60 * 24)
    make_totals(log)
    assert is_made_of_totals(log)


def test_totals_are_made_once_and_only_of_days_that_are_over(log: StoredCalls) -> None:
    log.add_call("-old", minutes_ago=60 * 24)
    log.add_call("-new", minutes_ago=60)
    assert [make_totals(log), make_totals(log)] == [1, 0]
    tomorrow = datetime(2026, 11, 22, tzinfo=UTC)
    assert make_totals(log, now=tomorrow + SETTLED_AFTER / 2) == 0
    assert make_totals(log, now=tomorrow + timedelta(days=1)) == 1


def test_a_day_that_changes_while_it_is_read_stays_marked(log: StoredCalls) -> None:
    log.add_call("-first", minutes_ago=60 * 24)
    writes: list[int] = []

    def late(work: Any, /) -> Any:
        """Write, but before the totals are stored let another call be."""
        writes.append(len(writes))
        if writes[-1] == 1:  # the first write only merges marks
            log.add_call("-second", minutes_ago=60 * 24)
        return log.write(work)

    make_totals(log, write=late)
    assert marked(log) == [YESTERDAY.date()]
    assert report(log).tiles.calls.value == 2
    make_totals(log)
    assert (marked(log), report(log).tiles.calls.value) == ([], 2)


def test_a_day_that_was_emptied_has_no_totals(log: StoredCalls) -> None:
    log.add_call(minutes_ago=60 * 24, agent_id="a")
    make_totals(log)
    assert {row.agent_id for row in rows(log.database, day_totals)} == {"", "a"}
    log.write(lambda connection: remove_sessions(connection, ["-call"]))
    assert report(log).tiles.calls.value == 0
    make_totals(log)
    assert rows(log.database, day_totals) == []


def test_many_marks_of_a_day_become_one(log: StoredCalls) -> None:
    for number in range(3):
        log.add_call(f"-{number}", minutes_ago=1)
    make_totals(log)
    assert marked(log) == [NOW.date()]


def test_days_are_marked_by_when_their_calls_were_received(log: StoredCalls) -> None:
    old = log.add_call("-old", minutes_ago=60 * 24)
    log.add_call("-new", minutes_ago=60)
    log.write(lambda connection: connection.execute(delete(changed_days)))
    log.write(lambda connection: mark_days_of(connection, [old]))
    assert marked(log) == [YESTERDAY.date()]
    east = NOW.replace(hour=1).astimezone(KOLKATA)
    log.write(lambda connection: mark_days(connection, [east, east]))
    assert marked(log) == [YESTERDAY.date(), NOW.date()]


def test_days_of_a_zone_half_an_hour_off_are_made_of_totals(log: StoredCalls) -> None:
    for hours in range(72):
        log.add_call(f"-{hours}", minutes_ago=60 * hours + 7)
    scope = Scope(
        since=datetime(2026, 11, 19, tzinfo=KOLKATA),
        until=datetime(2026, 11, 21, tzinfo=KOLKATA),
        zone=KOLKATA,
        interval="day",
    )
    before = Queries(log.database.reader).ask(partial(read_report, scope=scope))
    assert [bucket.calls for bucket in before.buckets] == [24, 24]
    make_totals(log)
    log.write(lambda connection: connection.execute(delete(calls)))
    assert Queries(log.database.reader).ask(partial(read_report, scope=scope)) == before


def test_seconds_beside_a_half_hour_are_read_from_the_calls(log: StoredCalls) -> None:
    log.add_call("-in", minutes_ago=60 * 24)
    log.add_call("-out", minutes_ago=60 * 24 + 0.5)
    make_totals(log)
    assert report(log, days=1).tiles.calls.value == 1


@dataclass
class Action:
    """Something that happens to a session of the property test."""

    kind: str
    session: int
    variant: int

    @property
    def session_id(self) -> str:
        return f"-s{self.session}"

    @property
    def at(self) -> datetime:
        return MIDNIGHT + timedelta(minutes=20 * (self.session - 2) + 7 * self.variant)

    @property
    def delivery(self) -> Delivery:
        if self.kind == "prefetch":
            return prefetched(self.session_id, at=self.at, latency_ms=5.0 * self.variant)
        status = ("user-ended", "busy", "error")[self.variant]
        body = end_of_call_body(
            session_id=self.session_id, duration_s=10.0 * self.variant, call_status=status
        )
        return ended(self.session_id, body, at=self.at)


actions = st.builds(
    Action,
    kind=st.sampled_from(["prefetch", "end", "end", "end", "make_totals", "forget", "reparse"]),
    session=st.integers(0, 4),
    variant=st.integers(0, 2),
)


def plain_count(log: StoredCalls, scope: Scope) -> tuple[object, ...]:
    """Count the calls of a period one by one."""
    chosen = [
        row for row in rows(log.database, calls) if scope.since <= row.received_at < scope.until
    ]
    ids = {row.id for row in chosen}
    costs = [row.credit for row in rows(log.database, cost_items) if row.call_id in ids]
    runs = [row for row in rows(log.database, handler_runs) if row.call_id in ids]
    lengths = sorted(row.duration_s for row in chosen if row.duration_s is not None)
    latencies = [row.prefetch_ms for row in chosen if row.prefetch_ms is not None]
    return (
        len(chosen),
        Counter(row.call_status or "" for row in chosen),
        pytest.approx(sum(costs)),
        len(runs),
        lengths[(len(lengths) - 1) // 2] if lengths else None,
        len(latencies),
        Counter(row.received_at.astimezone(scope.zone).date() for row in chosen),
    )


def reported(found: Report) -> tuple[object, ...]:
    return (
        found.tiles.calls.value,
        found.statuses,
        sum(found.costs.values()),
        sum(handler.runs for handler in found.handlers),
        found.durations.median_s,
        found.prefetch.count,
        Counter({bucket.start.date(): bucket.calls for bucket in found.buckets if bucket.calls}),
    )


def happen(log: StoredCalls, writer: Writer, processor: Processor, action: Action) -> None:
    if action.kind == "make_totals":
        make_totals(log, now=LATER)
    elif action.kind == "forget":
        log.write(lambda connection: connection.execute(_DONE))
        log.write(lambda connection: remove_sessions(connection, [action.session_id]))
    elif action.kind == "reparse":
        log.write(lambda connection: connection.execute(_DAMAGE))
        work = Reparse(log.database, Chosen(), version="1", afresh=True)
        work.put_back()
        while processor.process_chunk(rereads):
            pass
        work.end()
    else:
        writer.run(lambda connection: insert_deliveries(connection, [action.delivery]))
        while processor.process_chunk() or rows(log.database, inbox):
            pass


@given(st.lists(actions, max_size=12), st.sampled_from([UTC, KOLKATA]))
@settings(max_examples=settings().max_examples // 5)
def test_a_report_is_a_plain_count_whatever_has_happened(done: list[Action], zone: Any) -> None:
    scope = Scope(since=LATER - timedelta(days=12), until=LATER, zone=zone, interval="day")
    with tempfile.TemporaryDirectory() as folder, databases.freed():
        log = StoredCalls(Path(folder))
        with writing(log.database) as writer:
            processor = Processor(log.database, writer, runs_for=lambda _: ["save"])
            for action in done:
                happen(log, writer, processor, action)
                found = Queries(log.database.reader).ask(partial(read_report, scope=scope))
                assert reported(found) == plain_count(log, scope)
        log.database.close()


#: What reading the deliveries again puts right.
_DAMAGE = update(calls).values(call_status="damaged", prefetch_ms=1.5)
#: Sessions are only removed when their handlers are done.
_DONE = update(handler_runs).values(state="succeeded")


def test_results_are_summed_and_shared_out_with_totals_and_without(log: StoredCalls) -> None:
    for number in range(25):
        call_id = log.add_call(f"-{number}", minutes_ago=60 * 24 + number)
        log.add_results(
            call_id, booked=number < 5, score=number % 2, tag="abc"[number % 3], note=f"{number}"
        )
    before = report(log).results
    assert [(each.name, each.value, each.calls) for each in before] == [
        ("booked", "false", 20),
        ("booked", "true", 5),
        ("score", None, 25),
        ("tag", "a", 9),
        ("tag", "b", 8),
        ("tag", "c", 8),
    ]
    assert (before[1].share, before[2].total, before[2].average) == (0.2, 12, 0.48)
    assert make_totals(log) == 1
    assert report(log).results == before


def add_compared(log: StoredCalls) -> None:
    """Add three calls of yesterday: two of agent `a` with plan A, one of `b` with plan B."""
    for number, plan in enumerate("AAB"):
        outcome = ("completed", "failed")[number % 2]
        minutes_ago = 60 * 24 + number
        columns: dict[str, Any] = {"agent_id": plan.lower(), "outcome": outcome, "duration_s": 60.0}
        call_id = log.add_call(f"-{number}", minutes_ago=minutes_ago, **columns)
        log.add_metadata(call_id, {"plan": plan, "keep.variant": "ab"[number % 2]})
        log.add_results(call_id, booked=number > 0, score=number)


def compared(log: StoredCalls, by: str, **others: Any) -> Report:
    scope = Scope(since=NOW - timedelta(days=3), until=NOW, by=by, **others)
    return Queries(log.database.reader).ask(partial(read_report, scope=scope))


@pytest.mark.parametrize("with_totals", [False, True])
def test_calls_and_results_are_compared_by_the_values_of_metadata(
    log: StoredCalls, with_totals: bool
) -> None:
    add_compared(log)
    if with_totals:
        make_totals(log)
        log.write(lambda connection: connection.execute(delete(calls)))
    found = compared(log, "plan")
    assert found.comparison is not None
    assert [(each.name, each.calls, each.outcomes) for each in found.comparison.divisions] == [
        ("A", 2, {"completed": 1, "failed": 1}),
        ("B", 1, {"completed": 1}),
    ]
    assert [
        (each.by, each.name, each.value, each.share, each.average) for each in found.results
    ] == [
        ("A", "booked", "false", 0.5, None),
        ("A", "booked", "true", 0.5, None),
        ("B", "booked", "true", 1, None),
        ("A", "score", None, None, 0.5),
        ("B", "score", None, None, 2),
    ]
    of_one = compared(log, "plan", agents=("b",)).comparison
    assert of_one is not None
    assert [(each.name, each.calls) for each in of_one.divisions] == [("B", 1)]


@pytest.mark.parametrize("with_totals", [False, True])
@pytest.mark.parametrize("by", ["variant", "keep.variant"])
def test_a_key_of_keep_is_found_with_its_prefix_and_without(
    log: StoredCalls, by: str, with_totals: bool
) -> None:
    add_compared(log)
    if with_totals:
        make_totals(log)
    found = compared(log, by).comparison
    assert found is not None
    assert (found.key, [(each.name, each.calls) for each in found.divisions]) == (
        "keep.variant",
        [("a", 2), ("b", 1)],
    )


def test_a_day_with_too_many_values_of_a_key_is_left_out_and_said(log: StoredCalls) -> None:
    for number in range(MOST_DIVISIONS + 1):
        call_id = log.add_call(f"-{number}", minutes_ago=60 * 24 + number)
        log.add_metadata(call_id, {"customer": f"c{number}"})
    before = compared(log, "customer").comparison
    assert before is not None
    assert (len(before.divisions), before.values) == (MOST_DIVISIONS, MOST_DIVISIONS + 1)
    make_totals(log)
    after = compared(log, "customer").comparison
    assert after is not None
    assert (after.divisions, after.is_partial) == ((), True)


def test_values_of_a_call_that_was_removed_are_in_no_totals(log: StoredCalls) -> None:
    add_compared(log)
    make_totals(log)
    log.write(lambda connection: remove_sessions(connection, ["-0"]))
    assert (rows(log.database, day_divisions), rows(log.database, day_totals)) == ([], [])
    assert compared(log, "plan").tiles.calls.value == 2

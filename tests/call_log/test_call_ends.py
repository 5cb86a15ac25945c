"""Several ends of one call: what is known of it is the same in any order, and is shown and told."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select

from millis_hooks.call_log.call_ends import ReadEnds, read_whole
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.search import call_search
from millis_hooks.call_log.tables import (
    call_metadata,
    calls,
    cost_items,
    deliveries,
    drift,
    handler_runs,
    handlers,
    rereads,
)
from millis_hooks.call_log.upkeep.reprocess import Chosen, Reparse, put_back_one
from millis_hooks.call_log.writer import Writer
from millis_hooks.protocol.events import EndOfCall, merged
from millis_hooks.runs.replay import replay_call
from millis_hooks.runs.runner import event_of, read_bodies
from millis_hooks.runs.store import ClaimedRun
from support.storage import NOW, ended, opened, prefetched, rows, writing

SPOKEN = [{"role": "user", "content": "never call me again"}]
UNDER_WAY = {"call_status": "in-progress", "duration": 3, "chat": []}
OVER = {
    "call_status": "user-ended",
    "duration": 41,
    "chat": SPOKEN,
    "recording": {"recording_url": "https://files.example/r.mp3"},
    "call_analysis": {"opt_out_detection": True},
    "cost_breakdown": [{"type": "llm", "credit": 2}],
    "metadata": {"tier": "gold", "seat": None},
}
POOR = {
    "call_status": "agent-ended",
    "chat": None,
    "recording": {"recording_url": ""},
    "metadata": {"tier": "", "seat": "4a"},
    "duration": "long",
    "voip": {"from": "+14155550134", "to": "+14155550100"},
}
CHAT = {"call_status": "chat_completion", "chat": [{"role": "user", "content": "hi"}]}


def end(sent: dict[str, Any], minute: int, **columns: Any) -> Delivery:
    body = json.dumps({"session_id": "s", "agent_id": "-a", **sent}).encode()
    return ended("s", body, at=NOW + timedelta(minutes=minute), **columns)


class Log:
    def __init__(self, database: Database, writer: Writer) -> None:
        self.database = database
        self.writer = writer
        self.handlers = {"usual"}
        self.hearing: set[str] = set()
        self.processor = Processor(
            database,
            writer,
            runs_for=self.runs_for,
            hears_of_changes=lambda name: name in self.hearing,
        )

    def runs_for(self, call: EndOfCall) -> Sequence[str]:
        return sorted(name for name in self.handlers if name != call.call_status)

    def take(self, *batch: Delivery) -> None:
        for delivery in batch:
            asyncio.run(self.writer.store(delivery))
            while self.processor.process_chunk():
                pass

    def read_again(self) -> None:
        Reparse(self.database, Chosen(), version="1").put_back()
        while self.processor.process_chunk(rereads):
            pass

    def call(self) -> Any:
        (call,) = rows(self.database, calls)
        return call

    def runs(self) -> list[tuple[str, str | None, bool]]:
        found = rows(self.database, handler_runs)
        return [(run.handler, run.change, run.is_latest) for run in found]

    def succeed(self) -> None:
        self.writer.run(
            lambda connection: connection.execute(handler_runs.update().values(state="succeeded"))
        )

    def projection(self) -> dict[str, Any]:
        """All that is derived of the call, without the ids that tell of the order."""
        times = {row.id: row.received_at for row in rows(self.database, deliveries)}
        call = dict(self.call()._mapping)
        call["delivery_id"] = times[call["delivery_id"]]
        del call["id"], call["unhandled"]
        found: dict[str, Any] = {"call": call}
        for table in (call_metadata, cost_items):
            found[table.name] = [
                {name: value for name, value in row._mapping.items() if name != "call_id"}
                for row in rows(self.database, table)
            ]
        seen = [(times[row.delivery_id], row.path) for row in rows(self.database, drift)]
        with self.database.reader.connect() as connection:
            searched = connection.scalars(select(call_search.c.folded)).all()
        return {**found, "searched": searched, "drift": sorted(seen)}

    def clear(self) -> None:
        def delete_all(connection: Connection) -> None:
            for table in (drift, handler_runs, call_metadata, cost_items, calls, deliveries):
                connection.execute(delete(table))
            connection.execute(delete(call_search))

        self.writer.run(delete_all)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with opened(tmp_path) as database, writing(database) as writer:
        yield Log(database, writer)


@pytest.mark.both_databases
def test_the_end_of_a_call_that_is_over_replaces_one_of_a_call_under_way(log: Log) -> None:
    log.take(end(UNDER_WAY, 0), end(OVER, 1))
    call = log.call()
    assert (call.call_status, call.outcome, call.duration_s) == ("user-ended", "completed", 41)
    assert (call.opted_out, call.cost_total, call.turns) == (True, 2, 1)
    assert call.ended_at == NOW + timedelta(minutes=1)
    assert call.repeated


@pytest.mark.both_databases
def test_a_later_end_that_says_less_loses_nothing(log: Log) -> None:
    log.take(end(OVER, 0), end(POOR, 1))
    call = log.call()
    assert (call.call_status, call.duration_s, call.snippet) == (
        "agent-ended", 41, "never call me again",
    )  # fmt: skip
    assert (call.recording_url, call.channel) == ("https://files.example/r.mp3", "phone")
    kept = {row.key: row.value for row in rows(log.database, call_metadata)}
    assert kept == {"tier": "gold", "seat": "4a"}


def test_a_call_that_is_over_is_not_under_way_again(log: Log) -> None:
    log.take(end(OVER, 0), end(UNDER_WAY | {"chars_used": 7}, 1))
    call = log.call()
    assert (call.call_status, call.duration_s, call.chars_used) == ("user-ended", 41, 7)


ARRIVING = (
    end(UNDER_WAY, 1),
    end(OVER, 2),
    end(POOR, 3),
    end(OVER, 4),
    end(CHAT | {"metadata": '{"tier": "silver"}'}, 0, source="millis_api"),
    prefetched("s", "session_id=s&agent_id=-b&from=%2B14155550199", at=NOW, latency_ms=5),
    prefetched("s", "session_id=s", at=NOW - timedelta(minutes=1), outcome="late", latency_ms=9),
)


@pytest.mark.parametrize("chosen", list(itertools.combinations(ARRIVING, 3))[::7])
def test_what_is_known_of_a_call_does_not_depend_on_the_order(
    log: Log, chosen: Sequence[Delivery]
) -> None:
    found = []
    for order in itertools.permutations(chosen):
        log.clear()
        log.take(*order)
        found.append(log.projection())
    for each in found:
        assert each == found[0]


@pytest.mark.both_databases
@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations(ARRIVING))
def test_reading_again_changes_nothing_in_any_order(log: Log, order: Sequence[Delivery]) -> None:
    log.clear()
    log.take(*order)
    before = log.projection()
    runs = log.runs()
    for delivery in rows(log.database, deliveries):
        log.writer.run(partial(put_back_one, delivery_id=delivery.id))
        log.processor.process([delivery.id], rereads)
    log.read_again()
    assert (log.projection(), log.runs()) == (before, runs)


@pytest.mark.both_databases
def test_by_default_a_change_calls_no_handler_again(log: Log) -> None:
    log.take(end(UNDER_WAY, 0))
    log.succeed()
    log.take(end(OVER, 1))
    assert log.runs() == [("usual", None, True)]


@pytest.mark.both_databases
def test_a_handler_that_asks_for_it_is_called_again_on_a_change(log: Log) -> None:
    log.hearing = {"usual"}
    log.take(end(UNDER_WAY, 0))
    log.succeed()
    log.take(end(OVER, 1), end(OVER, 2), end(UNDER_WAY, 3))
    (first, again) = log.runs()
    assert first == ("usual", None, False)
    assert again[0] == "usual"
    assert again[1]
    assert again[2]


def test_a_run_that_has_not_begun_will_see_the_change_by_itself(log: Log) -> None:
    log.hearing = {"usual"}
    log.take(end(UNDER_WAY, 0), end(OVER, 1))
    assert log.runs() == [("usual", None, True)]


def test_a_handler_that_wants_the_call_only_now_is_called_for_the_first_time(log: Log) -> None:
    log.handlers = {"in-progress"}
    log.take(end(UNDER_WAY, 0))
    assert log.runs() == []
    assert log.call().unhandled
    log.take(end(OVER, 1))
    assert log.runs() == [("in-progress", None, True)]
    assert not log.call().unhandled


def test_an_imported_change_calls_no_handler(log: Log) -> None:
    log.hearing = {"usual"}
    log.take(end(UNDER_WAY, 0))
    log.succeed()
    log.take(end(OVER, 1, imported=True))
    assert log.call().call_status == "user-ended"
    assert log.runs() == [("usual", None, True)]


def test_a_handler_is_called_with_all_that_is_known(log: Log) -> None:
    log.take(end(OVER, 0), end(POOR, 1))
    with log.database.reader.connect() as connection:
        call = read_whole(connection, "s", own_numbers=frozenset({"+14155550100"}))
    assert call is not None
    assert (call.call_status, call.direction) == ("agent-ended", "inbound")
    assert [message.content for message in call.chat] == ["never call me again"]
    assert call.metadata == {"tier": "gold", "seat": "4a"}


def test_of_very_many_ends_the_first_and_the_last_tell(log: Log) -> None:
    batch = [end(OVER | {"duration": number}, number) for number in range(24)]
    log.take(*batch)
    assert log.call().duration_s == 23
    log.read_again()
    assert log.call().duration_s == 23
    assert len(rows(log.database, deliveries)) == 24


def test_unknown_fields_and_nested_objects_are_merged() -> None:
    first = read({"x": {"a": {"b": 1, "c": []}, "d": 0}, "y": "kept", "z": False})
    later = read({"x": {"a": {"b": "", "c": [2]}, "d": 0}, "y": {}, "z": None})
    both = {"x": {"a": {"b": 1, "c": [2]}, "d": 0}, "y": "kept", "z": False}
    assert merged(first, later).raw == {"session_id": "s", **both}


def read(sent: dict[str, Any]) -> EndOfCall:
    return EndOfCall.from_raw({"session_id": "s", **sent})


@pytest.mark.both_databases
def test_the_run_of_a_change_has_a_key_of_its_own_and_keeps_it_when_replayed(log: Log) -> None:
    log.hearing = {"usual"}
    log.take(end(UNDER_WAY, 0))
    log.succeed()
    log.take(end(OVER, 1))
    log.succeed()
    log.writer.run(write_handler)
    log.writer.run(lambda connection: replay_call(connection, "s", NOW))
    keys = []
    for run in rows(log.database, handler_runs):
        claimed = ClaimedRun(run.id, run.call_id, run.hook, run.handler, 1, None, 1, run.change)
        bodies = read_bodies(log.database.reader, [claimed])
        call = event_of(
            log.database.reader, claimed, bodies, own_numbers=frozenset(), read_ends=ReadEnds()
        )
        assert isinstance(call, EndOfCall)
        call._handler = run.handler
        keys.append((call.idempotency_key, call.is_change, call.call_status))
    assert keys[0] == ("s:usual", False, "user-ended")
    assert keys[1] == keys[2]
    assert keys[1][0].startswith("s:usual:")
    assert keys[1][1:] == (True, "user-ended")


def write_handler(connection: Connection) -> None:
    connection.execute(
        insert(handlers).values(
            hook="end_of_call",
            name="usual",
            max_attempts=5,
            timeout_s=1.0,
            repeatable=True,
            filters="{}",
            seen_at=NOW,
        )
    )

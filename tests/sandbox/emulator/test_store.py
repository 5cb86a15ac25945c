"""The file in which the sandbox keeps agents and calls."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from millis_hooks.sandbox.emulator.schemas import LogQuery
from millis_hooks.sandbox.emulator.store import Rehearsal, Store, StoredAgent

NOW = datetime(2026, 11, 21, 14, 20, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "calls-sandbox.db"


def entry(session_id: str, at: datetime = NOW, **fields: Any) -> dict[str, Any]:
    return {"session_id": session_id, "ts": at.timestamp(), "call_status": "user-ended"} | fields


STEPS = Rehearsal({}, [{"kind": "x"}])


def test_a_call_is_kept_for_a_day(file: Path, clock: Clock) -> None:
    store = Store(file, now=clock)
    store.put_call(entry("-old"), STEPS, messages=[{"role": "user", "content": "Hello"}])
    clock.now += timedelta(hours=23)
    store.put_call(entry("-new", clock.now), STEPS)
    assert store.messages("-old") == [{"role": "user", "content": "Hello"}]
    assert store.rehearsal("-old") == STEPS
    clock.now += timedelta(hours=2)
    assert (store.call("-old"), store.rehearsal("-old")) == (None, None)
    assert store.messages("-old") == []
    assert [one["session_id"] for one in store.calls(LogQuery())] == ["-new"]
    store.put_call(entry("-newer", clock.now), STEPS)
    store.close()
    with sqlite3.connect(file) as connection:
        kept = connection.execute("SELECT session_id FROM calls ORDER BY 1").fetchall()
    connection.close()
    assert kept == [("-new",), ("-newer",)]


def test_no_two_calls_have_the_same_time(file: Path, clock: Clock) -> None:
    store = Store(file, now=clock)
    for session_id in ("-a", "-b", "-c", "-a"):
        store.put_call(entry(session_id), STEPS)
    times = [one["ts"] for one in store.calls(LogQuery())]
    assert len(times) == len(set(times)) == 3
    store.close()


def test_a_call_that_was_cut_off_leaves_the_call_logs(file: Path, clock: Clock) -> None:
    store = Store(file, now=clock)
    store.put_call(entry("-cut", call_status="in-progress"), STEPS)
    store.close()
    store = Store(file, now=clock)
    assert store.call("-cut") is None
    assert store.calls(LogQuery()) == []
    store.close()


def test_a_file_of_another_version_is_replaced(file: Path, clock: Clock) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE agents (something TEXT)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    store = Store(file, now=clock)
    store.put_agent(StoredAgent("-a", "Bookings", {"prompt": "p"}, 1))
    assert store.agents() == [StoredAgent("-a", "Bookings", {"prompt": "p"}, 1)]
    store.close()


def test_a_call_of_the_page_is_kept_with_its_form_as_far_as_it_went(
    file: Path, clock: Clock
) -> None:
    store = Store(file, now=clock)
    rehearsal = Rehearsal({"dry_run": True}, [{"kind": "x"}])
    store.put_call(entry("-a", call_status="in-progress"), STEPS)
    store.put_call(entry("-a", call_status="in-progress"), rehearsal)
    store.close()
    store = Store(file, now=clock)
    assert store.rehearsal("-a") == rehearsal
    assert store.rehearsal("-\ud83d") is None
    clock.now += timedelta(hours=25)
    assert store.rehearsal("-a") is None
    store.close()

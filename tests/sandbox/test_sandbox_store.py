"""The file in which the sandbox keeps agents and calls."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from millis_hooks.sandbox.emulator.schemas import LogQuery
from millis_hooks.sandbox.emulator.store import KnownAgent, Shelf

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


def test_a_call_is_kept_for_a_day(file: Path, clock: Clock) -> None:
    shelf = Shelf(file, now=clock)
    shelf.keep(
        entry("-old"), messages=[{"role": "user", "content": "Hello"}], steps=[{"kind": "x"}]
    )
    clock.now += timedelta(hours=23)
    shelf.keep(entry("-new", clock.now))
    assert shelf.messages("-old") == [{"role": "user", "content": "Hello"}]
    assert shelf.steps("-old") == [{"kind": "x"}]
    clock.now += timedelta(hours=2)
    assert (shelf.call("-old"), shelf.messages("-old"), shelf.steps("-old")) == (None, [], [])
    assert [one["session_id"] for one in shelf.calls(LogQuery())] == ["-new"]
    shelf.keep(entry("-newer", clock.now))
    shelf.close()
    with sqlite3.connect(file) as connection:
        kept = connection.execute("SELECT session_id FROM calls ORDER BY 1").fetchall()
    connection.close()
    assert kept == [("-new",), ("-newer",)]


def test_no_two_calls_are_told_apart_by_the_same_time(file: Path, clock: Clock) -> None:
    shelf = Shelf(file, now=clock)
    for session_id in ("-a", "-b", "-c", "-a"):
        shelf.keep(entry(session_id))
    times = [one["ts"] for one in shelf.calls(LogQuery())]
    assert len(times) == len(set(times)) == 3
    shelf.close()


def test_a_call_that_was_cut_off_is_not_under_way_for_ever(file: Path, clock: Clock) -> None:
    shelf = Shelf(file, now=clock)
    shelf.keep(entry("-cut", call_status="in-progress"))
    shelf.close()
    shelf = Shelf(file, now=clock)
    assert shelf.call("-cut") is None
    shelf.close()


def test_a_file_of_another_version_is_begun_anew(file: Path, clock: Clock) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE agents (something TEXT)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    shelf = Shelf(file, now=clock)
    shelf.put_agent(KnownAgent("-a", "Bookings", {"prompt": "p"}, 1))
    assert shelf.agents() == [KnownAgent("-a", "Bookings", {"prompt": "p"}, 1)]
    shelf.close()

"""`tail`: what has happened to calls, as it happens."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE

import pytest
from sqlalchemy import insert, update
from typer.testing import CliRunner, Result

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.call_rows import pending_run
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.health import read_backlog
from millis_hooks.call_log.queries.followed import Follower, Happening
from millis_hooks.call_log.tables import attempts, calls, handler_runs
from millis_hooks.cli.commands import app
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import end_of_call_body
from support.app import END_OF_CALL, PREFETCH, MakeHooks, serving
from support.databases import url_in
from support.programs import SCRIPT, Program
from support.storage import NOW, ended, opened, prefetched, writing
from support.waiting import eventually

NUMBER = "+14155550134"

Tail = Callable[..., Result]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


def look(follower: Follower, log: Database) -> list[Happening]:
    with log.reader.connect() as connection:
        return follower.look(connection)


def follow(log: Database, *, last: int = 0) -> Follower:
    with log.reader.connect() as connection:
        return Follower(connection, last=last)


def store(folder: Path, *sessions: str) -> None:
    """Have calls begin and end, and be processed."""

    async def deliver() -> None:
        for session in sessions:
            call_log.writer.record(prefetched(session))
            await call_log.writer.store(ended(session, at=NOW + timedelta(minutes=1)))

    call_log = CallLog(url_in(folder))
    asyncio.run(deliver())
    eventually(lambda: not waiting(call_log.database))
    call_log.close()


def waiting(database: Database) -> int:
    with database.reader.connect() as connection:
        return read_backlog(connection).unprocessed


@pytest.mark.both_databases
def test_what_comes_in_is_reported_once(tmp_path: Path, log: Database) -> None:
    follower = follow(log)
    store(tmp_path, "-s1")
    told = look(follower, log)
    assert [(each.kind, each.session_id) for each in told] == [
        ("prefetch", "-s1"),
        ("end_of_call", "-s1"),
    ]
    assert told[1].call_status == "user-ended"
    assert look(follower, log) == []


@pytest.mark.both_databases
def test_nothing_is_reported_before_it_is_processed(log: Database) -> None:
    follower = follow(log)
    with writing(log) as writer:
        asyncio.run(writer.store(ended("-s1")))
        assert look(follower, log) == []


@pytest.mark.both_databases
def test_it_begins_where_it_is_reported_to(tmp_path: Path, log: Database) -> None:
    store(tmp_path, "-s1", "-s2")
    assert len(look(follow(log, last=3), log)) == 3
    assert look(follow(log), log) == []


@pytest.mark.both_databases
def test_an_attempt_is_reported_when_it_has_ended(log: Database) -> None:
    call = {"id": 1, "session_id": "-s1", "received_at": NOW}
    with log.writer.begin() as connection:
        connection.execute(insert(calls), call)
        connection.execute(insert(handler_runs), pending_run(1, "book", NOW) | {"id": 1})
    follower = follow(log)
    with log.writer.begin() as connection:
        connection.execute(insert(attempts), {"run_id": 1, "number": 1, "started_at": NOW})
    assert look(follower, log) == []
    end = {"ended_at": NOW + timedelta(seconds=1), "outcome": "failed", "error_type": "OSError"}
    with log.writer.begin() as connection:
        connection.execute(update(attempts).values(end))
    [told] = look(follower, log)
    assert (told.handler, told.attempt, told.outcome, told.error) == (
        "book",
        1,
        "failed",
        "OSError",
    )
    assert look(follower, log) == []


@pytest.fixture
def tail(make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch) -> Tail:
    """Run the command on a log that has one call, whose handler failed."""
    hooks = make_hooks()
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", hooks.settings.database_url)

    @hooks.on_end_of_call(max_attempts=1)
    def book(call: EndOfCall) -> None:
        raise RuntimeError(f"\x1b[2Jno slot for {NUMBER}")

    def run(*args: str) -> Result:
        return CliRunner().invoke(app, ["tail", "--no-follow", *args])

    with serving(hooks) as client:
        client.get(PREFETCH)
        client.post(END_OF_CALL, content=end_of_call_body(session_id="-s1"))
        eventually(lambda: "attempt" in run().output)
    return run


def test_a_line_says_what_happened(tail: Tail) -> None:
    lines = tail().output.splitlines()
    assert [line.split()[2] for line in lines] == ["prefetch", "end", "attempt"]
    assert "User ended" in lines[1]
    assert "book, attempt 1: run failed" in lines[2]


def test_a_terminal_is_not_obeyed(tail: Tail) -> None:
    assert "\x1b" not in tail().output


def test_numbers_are_masked(tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_MASK_NUMBERS", "full")
    told = tail("--json").output
    assert "5550134" not in told
    assert "\\u202234" not in told  # masked in part, it ends like that


def test_json_is_one_object_in_each_line(tail: Tail) -> None:
    told = [json.loads(line) for line in tail("--json").output.splitlines()]
    assert [each["kind"] for each in told] == ["prefetch", "end_of_call", "attempt"]


@pytest.mark.both_databases
def test_it_may_be_about_one_session(tail: Tail) -> None:
    assert "prefetch" not in tail("--session", "-s1").output
    assert tail("--agent", "nobody").output == ""


def test_it_ends_where_something_happens_all_the_time(
    tail: Tail, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefetch = Happening(at=NOW, kind="prefetch", session_id="-s1", outcome="fresh")
    monkeypatch.setattr(Follower, "look", lambda *_: [prefetch])
    assert len(tail().output.splitlines()) == 1


def test_it_continues_until_it_is_interrupted(tmp_path: Path, log: Database) -> None:
    variables = {"MILLIS_HOOKS_DATABASE_URL": url_in(tmp_path)}
    store(tmp_path, "-s1")
    with Program([SCRIPT, "tail"], variables=variables, stdout=PIPE, stderr=PIPE) as it:
        assert it.stdout is not None
        assert "-s1" in it.stdout.readline()
        store(tmp_path, "-s2")
        assert any("-s2" in it.stdout.readline() for _ in range(2))
        it.send_signal(signal.SIGINT)
        _, errors = it.communicate(timeout=30)
    assert (it.returncode, errors) == (0, "")

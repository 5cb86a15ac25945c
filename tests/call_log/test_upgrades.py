"""Call logs of every earlier release: upgraded, killed in between, all at once; nothing is lost."""

from __future__ import annotations

import logging
import multiprocessing
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.migrations import HEAD, VERSION_TABLE, migrate
from millis_hooks.exceptions import StorageError
from support.databases import url_in
from support.old_logs import SCHEMAS, Rows, contents, make_old_log
from support.sites import Site
from support.storage import opened

#: Upgrades a log, and stands still after so many statements until it is killed.
UPGRADE = """
import sys
from itertools import count
from sqlalchemy import Engine, event
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.migrations import migrate

url, stand_still_after = sys.argv[1], int(sys.argv[2])
steps = count(1)

def step(*_):
    if next(steps) == stand_still_after:
        print("standing still", flush=True)
        sys.stdin.read()

for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
    event.listen(Engine, name, step)
migrate(Database(url))
print(next(steps) - 1)
"""


def upgrading(folder: Path, *, stand_still_after: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", UPGRADE, url_in(folder), str(stand_still_after)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def steps_of_an_upgrade(folder: Path, schema: str) -> int:
    folder.mkdir()
    make_old_log(folder, schema)
    return int(upgrading(folder).communicate()[0])


def kill_upgrade(folder: Path, *, after: int) -> None:
    with upgrading(folder, stand_still_after=after) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "standing still\n"
        process.kill()


def version_of(folder: Path) -> str | None:
    database = Database(url_in(folder))
    database.close()
    return database.schema_version()


HOW_THE_INDEX_IS_KEPT = tuple(
    f"call_search_{name}" for name in ("config", "data", "docsize", "idx")
)


def lacking(before: Rows, after: Rows) -> list[str]:
    """The tables in which not every row is still there with every value it had."""
    return [
        table
        for table, rows in before.items()
        if table not in HOW_THE_INDEX_IS_KEPT
        and [{name: new[name] for name in old} for old, new in zip(rows, after[table], strict=True)]
        != rows
    ]


def is_sound(folder: Path) -> bool:
    with sqlite3.connect(folder / "log.db") as connection:
        integrity = connection.execute("PRAGMA integrity_check").fetchall()
        return (
            integrity == [("ok",)] and not connection.execute("PRAGMA foreign_key_check").fetchall()
        )


def upgrade_at_once(url: str, ready: Barrier) -> None:
    ready.wait(20)
    database = Database(url)
    migrate(database)
    database.close()


def as_upgraded(before: Rows) -> Rows:
    """What an earlier release called failed is parked now, and who upgraded is at HEAD."""
    runs = [
        run | {"state": "parked"} if run["state"] == "failed" and "spent" not in run else run
        for run in before["handler_runs"]
    ]
    return before | {"handler_runs": runs, VERSION_TABLE: [{"version_num": HEAD}]}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_everything_is_there_after_an_upgrade(tmp_path: Path, schema: str) -> None:
    make_old_log(tmp_path, schema)
    before = contents(tmp_path)
    with opened(tmp_path):
        pass
    assert lacking(as_upgraded(before), contents(tmp_path)) == []
    assert is_sound(tmp_path)


def test_runs_of_the_first_release_know_what_they_have_spent(tmp_path: Path) -> None:
    make_old_log(tmp_path, "0001", calls=4)
    with opened(tmp_path):
        pass
    runs = contents(tmp_path)["handler_runs"]
    assert [(run["state"], run["spent"]) for run in runs] == [
        ("pending", 0),
        ("parked", 2),
        ("running", 1),
        ("succeeded", 1),
    ]
    assert all(run["state_since"] == run["created_at"] for run in runs)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_service_goes_on_where_an_earlier_release_stopped(tmp_path: Path, schema: str) -> None:
    make_old_log(tmp_path, schema)
    site = Site(tmp_path, "@hooks.on_end_of_call\ndef sync_crm(call): note(call, 'ended')")
    with site.serving() as server:
        server.deliver("-new")
        server.stop()
    site.finish()
    assert site.noted("ended").keys() >= {"-new", "-waiting", "-s1", "-s3"}


def test_twenty_kills_in_the_middle_of_an_upgrade_lose_nothing(tmp_path: Path) -> None:
    steps = steps_of_an_upgrade(tmp_path / "other", "0001")
    make_old_log(tmp_path, "0001")
    before = contents(tmp_path)
    for moment in random.sample(range(1, steps + 1), 20):
        kill_upgrade(tmp_path, after=moment)
        assert version_of(tmp_path) == "0001", moment
    assert contents(tmp_path) == before
    with opened(tmp_path):
        pass
    assert lacking(as_upgraded(before), contents(tmp_path)) == []
    assert is_sound(tmp_path)


def test_processes_that_upgrade_at_once_do_it_once(tmp_path: Path) -> None:
    make_old_log(tmp_path, "0001")
    before = contents(tmp_path)
    context = multiprocessing.get_context("spawn")
    arguments = (url_in(tmp_path), context.Barrier(3))
    processes = [context.Process(target=upgrade_at_once, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert lacking(as_upgraded(before), contents(tmp_path)) == []


@pytest.fixture
def upgrader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    """Another process that has an old log locked; nobody waits long for it."""
    make_old_log(tmp_path, "0001")
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0.01)
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_long_upgrade_by_another_process_is_waited_for(
    tmp_path: Path,
    upgrader: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def finish(record: logging.LogRecord) -> bool:
        if upgrader.in_transaction:
            upgrader.execute("ROLLBACK")
        return True

    logger = logging.getLogger("millis_hooks.call_log")
    monkeypatch.setattr(logger, "filters", [finish])
    with opened(tmp_path):
        assert "another process may be upgrading it; waiting" in caplog.text
    assert version_of(tmp_path) == HEAD


def test_a_lock_that_stays_is_not_waited_for_for_ever(
    tmp_path: Path, upgrader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.migrations.UPGRADE_WAIT_S", 0)
    database = Database(url_in(tmp_path))
    with pytest.raises(StorageError, match="cannot be prepared: database is locked"):
        migrate(database)
    database.close()

"""A copy of a log in use is whole and sound; the file of a log can be made smaller."""

from __future__ import annotations

import signal
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from typer.testing import CliRunner, Result

from millis_hooks.call_log import database as database_module
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.locks import FileHolder
from millis_hooks.call_log.tables import keys
from millis_hooks.call_log.upkeep import file
from millis_hooks.call_log.upkeep.file import back_up, interruptible, vacuum
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import ConfigError, StorageError
from support.databases import url_in
from support.storage import opened, rows

Run = Callable[..., Result]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        add_keys(database, range(100))
        yield database


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    return lambda *args: CliRunner().invoke(app, args)


def add_keys(database: Database, numbers: range) -> None:
    """Add rows of 100 kB, which take many pages each."""
    many = [{"name": f"key {number:03}", "value": bytes(100_000)} for number in numbers]
    with database.writer.begin() as connection:
        connection.execute(insert(keys), many)


def names_in(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as copy:
        return [name for (name,) in copy.execute("SELECT name FROM keys ORDER BY name")]


def names(numbers: range) -> list[str]:
    return [f"key {number:03}" for number in numbers]


def test_a_copy_has_what_was_there_when_it_began(database: Database, target: Path) -> None:
    steps: list[int] = []

    def write_meanwhile(done: int, total: int) -> None:
        add_keys(database, range(100 + len(steps), 101 + len(steps)))
        steps.append(total)

    back_up(database, target, copied=write_meanwhile)
    assert names_in(target) == names(range(100))
    assert len(steps) > 2
    assert len(set(steps)) == 1  # it never began anew
    assert len(rows(database, keys)) == 100 + len(steps)


def test_a_copy_is_a_call_log_of_its_owner_only(database: Database, target: Path) -> None:
    size_bytes = back_up(database, target)
    assert size_bytes == target.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    copy = Database(f"sqlite:///{target}")
    try:
        assert len(rows(copy, keys)) == 100
    finally:
        copy.close()
    assert sorted(file.name for file in target.parent.glob("copy*")) == ["copy.db"]


def test_a_file_that_exists_is_replaced_only_by_force(database: Database, target: Path) -> None:
    target.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        back_up(database, target)
    assert target.read_text() == "mine"
    back_up(database, target, force=True)
    assert names_in(target) == names(range(100))


def test_a_file_that_appears_meanwhile_is_not_replaced(database: Database, target: Path) -> None:
    def appear(done: int, total: int) -> None:
        target.write_text("mine")

    with pytest.raises(ConfigError, match="exists"):
        back_up(database, target, copied=appear)
    assert target.read_text() == "mine"


def test_a_backup_into_the_log_itself_is_refused(database: Database, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.hardlink_to(database.path)
    for target in (database.path, link):
        with pytest.raises(ConfigError, match="is the call log itself"):
            back_up(database, target, force=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere/copy.db", "There is no folder"), (".", "is not a file"), ("used.db", "is in use")],
)
def test_a_copy_that_cannot_be_is_refused(
    database: Database, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "used.db-wal").touch()
    with pytest.raises(ConfigError, match=reason):
        back_up(database, tmp_path / name)


def test_without_room_on_the_disk_nothing_is_begun(
    database: Database, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: FreeDisk(5))
    with pytest.raises(ConfigError, match="5 are free there"):
        back_up(database, target)


class FreeDisk:
    def __init__(self, free: int) -> None:
        self.free = free


def test_what_is_interrupted_leaves_nothing_behind(database: Database, target: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(database, target, copied=interrupt)
    assert list(target.parent.glob("copy*")) == []
    add_keys(database, range(100, 101))  # and no transaction open


def test_a_copy_that_is_not_sound_is_not_kept(database: Database, target: Path) -> None:
    with database.writer.begin() as connection:
        connection.execute(text("PRAGMA writable_schema=ON"))
        connection.execute(text("UPDATE sqlite_master SET rootpage=2 WHERE name='ix_calls_agent'"))
    with pytest.raises(StorageError, match="not sound"):
        back_up(database, target)
    assert not target.exists()


def test_the_command_says_what_is_in_the_copy(database: Database, run: Run, target: Path) -> None:
    result = run("backup", str(target))
    assert result.stdout.startswith(f"{target}: 10.")
    assert "checked and sound. It has every call that was acknowledged before" in result.stdout
    assert names_in(target) == names(range(100))
    assert run("backup", str(target)).exit_code == 2


def remove_keys(database: Database) -> None:
    with database.writer.begin() as connection:
        connection.execute(keys.delete().where(keys.c.name >= "key 010"))


def test_a_vacuum_gives_space_back_and_keeps_the_rest(database: Database, run: Run) -> None:
    remove_keys(database)
    before = database.path.stat().st_size
    result = run("vacuum")
    assert result.exit_code == 0, result.output
    assert " MB before, 1." in result.stdout
    assert database.path.stat().st_size < before / 5
    assert [row.name for row in rows(database, keys)] == names(range(10))


def test_the_copy_of_a_vacuum_is_made_on_the_log_s_own_disk(database: Database) -> None:
    statements: list[str] = []
    with closing(database.writer.raw_connection()) as pooled:
        connection: Any = pooled.driver_connection
        connection.set_trace_callback(statements.append)
    vacuum(database)
    folder = f"PRAGMA temp_store_directory='{database.path.parent}'"
    assert statements.index("PRAGMA temp_store=FILE") < statements.index("VACUUM")
    assert statements.index(folder) < statements.index("VACUUM")


def test_a_vacuum_needs_room_for_two(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_keys(database)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: FreeDisk(1_000_000))
    result = run("vacuum")
    assert result.exit_code == 1
    assert "beside the log for a time, and 1.0 MB are free" in result.stderr


def test_beside_a_service_a_vacuum_is_only_done_by_force(database: Database, run: Run) -> None:
    holder = FileHolder(database.runner_lock)
    assert holder.hold()
    assert "A service runs on this log" in run("vacuum").stderr
    assert run("vacuum", "--force").exit_code == 0
    holder.let_go()


def test_a_vacuum_that_has_to_wait_too_long_leaves_the_log_as_it_was(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.writer.begin() as connection:
        connection.execute(select(keys))
        other = Database(str(database.url))
        try:
            with other.writer.connect() as waiting:
                raw: Any = waiting.connection.driver_connection
                raw.execute("PRAGMA busy_timeout=0")
            for module in (database_module, file):
                monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.01)
            with pytest.raises(StorageError, match="is as it was"):
                vacuum(other)
        finally:
            other.close()


def test_a_long_statement_can_be_interrupted() -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with closing(sqlite3.connect(":memory:")) as connection, interrupted_soon():
        with pytest.raises(KeyboardInterrupt), interruptible(connection):
            connection.execute(endless)
        assert connection.execute("SELECT 1").fetchone() == (1,)


@contextmanager
def interrupted_soon() -> Iterator[None]:
    """What Ctrl-C does, a moment from now."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

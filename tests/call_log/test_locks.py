"""Where SQLite has the bug of WAL resets, our programs write to a call log one at a time."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE

import pytest
from sqlalchemy.exc import OperationalError

from millis_hooks.call_log import database as database_module
from millis_hooks.call_log import locks
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.dialects import is_locked
from millis_hooks.call_log.locks import LockedConnection
from millis_hooks.call_log.upkeep.file import vacuum
from millis_hooks.call_log.upkeep.removal import empty_wal
from support.programs import Program
from support.storage import opened

# Notes when the driver is told to begin, and when its commit has returned: by then SQLite has also
# copied the -wal file, if it was time to.
PROGRAM = """
import json, sys, time
from millis_hooks.call_log import locks
from millis_hooks.call_log.database import Database

locks.has_wal_reset_bug = lambda: True
database, spans = Database("sqlite:///" + sys.argv[1]), []
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    with database.writer.begin() as connection:
        begun = time.monotonic_ns()
        connection.exec_driver_sql("PRAGMA wal_autocheckpoint=20")
        connection.exec_driver_sql("INSERT INTO t VALUES (randomblob(20000))")
        if number == int(sys.argv[3]):
            print("writing", flush=True)
            sys.stdin.readline()
        log = connection.connection.driver_connection
        log.ended = lambda: spans.append((begun, time.monotonic_ns()))
    if sys.argv[3] == "-1" and number % 10 == 9:
        from millis_hooks.call_log.upkeep.removal import empty_wal
        empty_wal(database.writer)
print(json.dumps(spans))
"""
ENDED = """
from millis_hooks.call_log.locks import LockedConnection
unlock = LockedConnection.unlock
def unlock_and_note(self):
    if hasattr(self, "ended") and not self.in_transaction:
        self.ended()
        del self.ended
    unlock(self)
LockedConnection.unlock = unlock_and_note
"""


@pytest.fixture(autouse=True)
def affected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever SQLite this Python has."""
    monkeypatch.setattr(locks, "has_wal_reset_bug", lambda: True)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        with database.writer.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x)")
        yield database


def program(log: Database, writes: int = 20, *, stops_in: int = -1) -> Program:
    """A program of ours that is ready to write."""
    command = ["-c", ENDED + PROGRAM, str(log.path), str(writes), str(stops_in)]
    started = Program(command, stdin=PIPE, stdout=PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def go_on(*programs: Program) -> None:
    for each in programs:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()


def test_no_write_of_one_program_meets_one_of_another(log: Database) -> None:
    both = [program(log), program(log)]
    go_on(*both)
    spans = []
    for each in both:
        told, _ = each.communicate(timeout=60)
        assert each.returncode == 0
        spans += json.loads(told)
    spans.sort()
    assert len(spans) == 40
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(spans))
    with log.reader.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 40
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def test_the_system_takes_the_lock_from_a_program_that_dies(log: Database) -> None:
    other = program(log, stops_in=0)
    go_on(other)
    assert other.stdout is not None
    assert other.stdout.readline() == "writing\n"
    assert not is_free(log)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert is_free(log)
    insert(log)


def test_a_waiting_writer_continues_when_the_lock_is_free(log: Database) -> None:
    for work in (insert, vacuum, lambda log: empty_wal(log.writer)):
        thread = threading.Thread(target=work, args=(log,))
        with held(log):
            thread.start()
            thread.join(0.05)
            assert thread.is_alive()
        thread.join(10)
        assert not thread.is_alive()


def test_a_lock_that_is_never_free_is_said_as_sqlite_says_it(
    log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr("millis_hooks.call_log.upkeep.removal.BUSY_TIMEOUT_S", 0.01)
    with held(log):
        with pytest.raises(OperationalError) as caught:
            insert(log)
        assert is_locked(caught.value)
        assert empty_wal(log.writer) is False
    insert(log)


def test_the_lock_is_free_after_every_end_of_a_transaction(log: Database) -> None:
    insert(log)
    assert is_free(log)
    with pytest.raises(OperationalError), log.writer.begin() as connection:
        connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")
    assert is_free(log)
    with log.reader.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM t")
        assert is_free(log)


def test_nothing_is_written_while_the_lock_is_not_to_be_had(
    log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that cannot begin leaves the lock to others."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.01)
    with log.writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")
    with sqlite3.connect(log.path) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        with pytest.raises(OperationalError):
            insert(log)
        foreign.rollback()
    foreign.close()
    assert is_free(log)


def test_where_sqlite_is_mended_the_lock_is_taken_for_the_sake_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "has_wal_reset_bug", lambda: False)
    database = Database(f"sqlite:///{tmp_path / 'mended.db'}")
    lock = tmp_path / "mended.db-lock"
    with database.writer.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    assert not lock.exists()
    lock.touch()  # by a program with another SQLite
    with database.writer.begin():
        assert not is_free(database)
    database.close()


def insert(log: Database) -> None:
    with log.writer.begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")


@contextmanager
def held(log: Database) -> Iterator[None]:
    """The lock, held by somebody else."""
    other = sqlite3.connect(":memory:", factory=LockedConnection)
    other.lock_by(log.path)
    with other.alone(wait_s=0):
        yield
    other.close()


def is_free(log: Database) -> bool:
    try:
        with held(log):
            return True
    except sqlite3.OperationalError:
        return False


def test_the_lock_is_for_its_owner_only(log: Database) -> None:
    assert Path(f"{log.path}-lock").stat().st_mode & 0o077 == 0

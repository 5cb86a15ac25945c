from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.dialects import describe
from millis_hooks.call_log.locks import has_wal_reset_bug
from millis_hooks.exceptions import StorageError, WrongFileError
from support.databases import url_in
from support.storage import opened, writing


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_and_its_log_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        writer.run(lambda connection: connection.execute(text("CREATE TABLE t (x)")))
        lock = {"log.db-lock"} if has_wal_reset_bug() else set()
        names = {"log.db", "log.db-wal", "log.db-shm"} | lock
        modes = {path.name: oct(mode_of(path)) for path in tmp_path.iterdir()}
        assert modes == dict.fromkeys(names, "0o600")


@pytest.mark.parametrize("way", ["writer", "reader"])
@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),  # FULL
        ("foreign_keys", 1),
        ("busy_timeout", 10_000),
    ],
)
def test_every_connection_is_set_up_alike(
    tmp_path: Path,
    way: str,
    pragma: str,
    value: object,
    real_pragmas: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database._PRAGMAS", real_pragmas)
    with opened(tmp_path) as database, getattr(database, way).connect() as connection:
        assert connection.execute(text(f"PRAGMA {pragma}")).scalar() == value


def test_the_reader_cannot_write(tmp_path: Path) -> None:
    with (
        opened(tmp_path) as database,
        database.reader.connect() as connection,
        pytest.raises(OperationalError, match="readonly"),
    ):
        connection.execute(text("DELETE FROM calls"))


def test_the_writer_has_the_lock_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0)
    with (
        opened(tmp_path) as database,
        database.writer.begin(),
        pytest.raises(OperationalError, match="locked"),
    ):
        database.writer.connect().begin()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another process, about to write to a file that is not in WAL mode yet."""
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("PRAGMA user_version=1")
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_new_file_that_is_locked_is_waited_for(
    tmp_path: Path, lock: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: lock.execute("ROLLBACK"))
    with opened(tmp_path) as database, database.reader.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"


def test_a_new_file_that_stays_locked_is_given_up(
    tmp_path: Path, lock: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0)
    with pytest.raises(StorageError, match="database is locked"):
        CallLog(url_in(tmp_path))


def test_a_migration_does_not_enforce_foreign_keys(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        engine = database.open_for_migration()
        with engine.connect() as connection:
            assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 0
        engine.dispose()


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere/log\.db cannot be opened: No such file"):
        Database(url_in(tmp_path / "nowhere"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"minutes of the meeting" * 100)
    with pytest.raises(StorageError, match="is not a call log: file is not a database"):
        CallLog(url_in(tmp_path))


def test_an_error_is_described_without_the_statement_and_its_values(tmp_path: Path) -> None:
    with (
        opened(tmp_path) as database,
        database.reader.connect() as connection,
        pytest.raises(OperationalError) as caught,
    ):
        connection.execute(text("SELECT :x FROM nowhere"), {"x": "+14155550134"})
    assert describe(caught.value) == "no such table: nowhere"
    assert describe(ValueError("+14155550134")) == "ValueError"


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        log = CallLog(url_in(tmp_path))
        made.append(log.key("cookies"))
        other = log.key("other")
        log.close()
    assert made[0] == made[1] != other
    assert len(other) == 32


def test_a_closed_log_stores_nothing(tmp_path: Path) -> None:
    log = CallLog(url_in(tmp_path))
    log.close()
    with pytest.raises(StorageError, match="closed"):
        log.key("cookies")


@pytest.mark.parametrize(
    "lose",
    [
        "DELETE FROM millis_hooks_version",
        "UPDATE millis_hooks_version SET version_num = ' '",
        "INSERT INTO millis_hooks_version VALUES ('0001')",
    ],
)
def test_a_log_that_has_lost_its_version_is_refused_in_words(tmp_path: Path, lose: str) -> None:
    with opened(tmp_path) as database, database.writer.begin() as connection:
        connection.exec_driver_sql(lose)
    with pytest.raises(WrongFileError, match="it has lost its version"):
        CallLog(url_in(tmp_path))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (("log.db",), "was an empty file"),
        (("log.db-lock",), "is gone"),
        (("log.db-runner",), "is gone"),
        ((), ""),
    ],
)
def test_a_log_that_begins_in_place_of_another_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, make: tuple[str, ...], said: str
) -> None:
    for name in make:
        (tmp_path / name).touch()
    for _ in range(2):  # the second time it is there
        CallLog(url_in(tmp_path)).close()
    told = [each for each in caplog.messages if "a new call log begins" in each]
    assert len(told) == bool(said)
    assert said in "".join(told)

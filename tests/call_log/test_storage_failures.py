"""Storage that fails: nobody is told that a call is kept when it is not, prefetch goes on, and so
does everything else once the fault is gone."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from millis_hooks import MillisHooks
from millis_hooks.call_log import CallLog
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.health import Readiness
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.tables import deliveries, inbox
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import StorageError, StorageOutageError, WrongFileError
from millis_hooks.protocol.samples import end_of_call_body
from support.app import END_OF_CALL, PREFETCH, MakeHooks, Rows, our_log, serving
from support.databases import url_in
from support.faults import Fault, damage, failing_calls, fill, locked, overwrite, small_disk
from support.sites import Server, Site
from support.storage import ended, held, opened, prefetched, rows, writing
from support.waiting import eventually

BODY = end_of_call_body(session_id="-s1")
PAGE_BYTES = 4096


def deliver(server: Server, session_id: str) -> int:
    body = end_of_call_body(session_id=session_id)
    answer = server.ask("POST", END_OF_CALL, body)
    assert (answer.status == 503) == (answer.headers["Retry-After"] == "5")
    return answer.status


def probes(server: Server) -> tuple[int, int, int]:
    """What a prefetch, /healthz and /readyz answer."""
    alive, ready = server.ask("GET", "/healthz").status, server.ask("GET", "/readyz").status
    return server.ask("GET", PREFETCH).status, alive, ready


def recovers(server: Server) -> bool:
    return deliver(server, "-after") == 200 and probes(server) == (200, 200, 200)


def kept(folder: Path) -> list[str | None]:
    """The sessions whose end is kept, and that of each prefetch as `prefetch`."""
    with opened(folder) as database:
        found = rows(database, deliveries)
        ends = {row.session_id for row in found if row.kind == "end_of_call"}
        return sorted(ends) + [row.kind for row in found if row.kind == "prefetch"]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failing_calls(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def fault(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fault:
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAULT", str(tmp_path / "fault"))
    return Fault(tmp_path / "fault")


FAULTS = (
    ("write", errno.ENOSPC),
    ("write", errno.EROFS),
    ("write", errno.EIO),
    ("sync", errno.EIO),
)


def test_nothing_is_acknowledged_while_the_disk_fails(tmp_path: Path, fault: Fault) -> None:
    site = Site(tmp_path, "")
    with site.serving(with_library=True) as server:
        for kind, error_number in FAULTS:
            assert deliver(server, "-before") == 200
            fault.begin(kind, error_number)
            assert [deliver(server, f"-lost{n}") for n in range(3)] == [503] * 3
            # An answer of /readyz holds for a second.
            eventually(lambda: probes(server) == (200, 200, 503))
            assert server.ask("GET", "/login").status == 200  # at first nothing of it is loaded
            fault.end()
            eventually(lambda: recovers(server))
        server.stop()
    assert set(kept(tmp_path)) == {"-after", "-before", "prefetch"}
    # Those of each outage are kept, too.
    assert kept(tmp_path).count("prefetch") >= 2 * len(FAULTS)


def test_nothing_is_acknowledged_while_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path, size_bytes=16 * 1024 * 1024) as disk:
        site = Site(disk, "")
        with site.serving() as server:
            acknowledged = 0
            ballast = fill(disk)
            while deliver(server, f"-{acknowledged}") == 200:  # what SQLite has room for
                acknowledged += 1
            assert probes(server) == (200, 200, 503)
            ballast.unlink()
            eventually(lambda: recovers(server))
            server.stop()
        assert set(kept(disk)) == {"-after", "prefetch", *(f"-{n}" for n in range(acknowledged))}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a lock, nor for a second look."""
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr("millis_hooks.call_log.writer.RETRY_S", 0.01)
    monkeypatch.setattr("millis_hooks.call_log.health.FRESH_S", 0)


def answers(client: TestClient) -> tuple[int, int, int, int]:
    """What an end-of-call, a prefetch, /healthz and /readyz answer."""
    paths = (PREFETCH, "/healthz", "/readyz")
    acknowledged = client.post(END_OF_CALL, content=BODY)
    assert (acknowledged.status_code == 503) == ("retry-after" in acknowledged.headers)
    asked = [client.get(path).status_code for path in paths]
    return (acknowledged.status_code, asked[0], asked[1], asked[2])


@contextmanager
def out_of_order(client: TestClient) -> Iterator[None]:
    """Nothing is stored inside, and everything before and after."""
    assert answers(client) == (200, 200, 200, 200)
    yield
    assert answers(client) == (503, 200, 200, 503)


def back_in_order(client: TestClient) -> bool:
    return answers(client) == (200, 200, 200, 200)


def test_a_file_that_another_program_has_locked_is_written_once_it_is_free(
    hooks: MillisHooks, database: Path, rows: Rows, impatient: None
) -> None:
    with serving(hooks) as client:
        with locked(database):
            assert answers(client) == (503, 200, 200, 503)
        eventually(lambda: back_in_order(client))
    prefetches = rows("SELECT count(*) n FROM deliveries WHERE kind = 'prefetch'")
    assert prefetches[0]["n"] >= 2


def test_a_moved_file_gets_no_more_calls(
    hooks: MillisHooks, database: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = database.with_name("elsewhere.db")
    with serving(hooks) as client:
        with out_of_order(client):
            database.rename(elsewhere)
        assert not database.exists()
        elsewhere.rename(database)
        eventually(lambda: back_in_order(client))
    assert "was moved away or replaced while it was in use. Put it back" in our_log(caplog)


def test_a_file_that_was_replaced_is_left_alone(
    hooks: MillisHooks, database: Path, impatient: None
) -> None:
    original, backup = database.with_name("original.db"), database.with_name("backup.db")
    backup.write_bytes(database.read_bytes())
    content = backup.read_bytes()
    with serving(hooks) as client:
        with out_of_order(client):
            database.rename(original)
            backup.rename(database)
        assert database.read_bytes() == content
        original.rename(database)
        eventually(lambda: back_in_order(client))


def test_a_file_that_gets_damaged_is_not_written_to_and_may_be_mended(
    hooks: MillisHooks, database: Path, impatient: None
) -> None:
    with serving(hooks) as client:
        assert "The call log is damaged" not in client.get("/login").text
        with out_of_order(client):
            held_before = damage_at_rest(database)
            damaged = database.read_bytes()
        assert database.read_bytes() == damaged
        assert "The call log is damaged" in client.get("/login").text
        overwrite(database, held_before)
        eventually(lambda: client.post(END_OF_CALL, content=BODY).status_code == 200)
        assert answers(client) == (200, 200, 200, 503)  # said until a restart
        assert "The call log is damaged" in client.get("/login").text
    with serving(hooks) as client:
        assert answers(client) == (200, 200, 200, 200)
        assert "The call log is damaged" not in client.get("/login").text


def test_after_damage_calls_are_refused_where_that_is_set(
    make_hooks: MakeHooks, database: Path, impatient: None
) -> None:
    with serving(make_hooks(take_calls_when_damaged=False)) as client:
        with out_of_order(client):
            held_before = damage_at_rest(database)
        overwrite(database, held_before)
        assert answers(client) == (503, 200, 200, 503)


def damage_at_rest(file: Path) -> bytes:
    """Damage all but the first page; who has the others in memory has to read them again."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        eventually(lambda: other.execute("SELECT count(*) FROM inbox").fetchone() == (0,))
        eventually(lambda: other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    return damage(file, from_byte=PAGE_BYTES)


def no_log(_folder: Path) -> bytes:
    return b"minutes of the meeting\n" * 100


def log_of_another_program(folder: Path) -> bytes:
    with closing(sqlite3.connect(folder / "theirs.db")) as theirs:
        theirs.execute("CREATE TABLE calls (id, session_id)")
    return (folder / "theirs.db").read_bytes()


def log_without_beginning(folder: Path) -> bytes:
    return b"\0" * PAGE_BYTES + log_of_ours(folder)[PAGE_BYTES:]


def log_without_end(folder: Path) -> bytes:
    return log_of_ours(folder)[: 3 * PAGE_BYTES]


def log_with_damage(folder: Path) -> bytes:
    """One in which the page is damaged that deliveries are found from."""
    content = bytearray(log_of_ours(folder))
    with closing(sqlite3.connect(folder / "ours" / "log.db")) as ours:
        found = ours.execute("SELECT rootpage FROM sqlite_master WHERE name = 'deliveries'")
        (page,) = found.fetchone()
    content[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = b"\xa5" * PAGE_BYTES
    return bytes(content)


def log_of_ours(folder: Path) -> bytes:
    ours = folder / "ours"
    ours.mkdir()
    CallLog(url_in(ours)).close()
    return (ours / "log.db").read_bytes()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (no_log, "is not a call log: file is not a database"),
        (log_of_another_program, "is the database of another program"),
        (log_without_beginning, "is not a call log: file is not a database"),
        (log_without_end, "is damaged: database disk image is malformed"),
        (log_with_damage, "is damaged: database disk image is malformed"),
    ],
)
def test_a_file_that_is_damaged_or_not_ours_is_refused_and_left_as_it_is(
    tmp_path: Path, make_hooks: MakeHooks, make: object, told: str
) -> None:
    assert callable(make)
    file = tmp_path / "log.db"
    file.write_bytes(content := make(tmp_path))
    with pytest.raises(WrongFileError, match=told):
        CallLog(url_in(tmp_path))
    assert listing_calls(tmp_path) != 0 or make is log_with_damage  # of calls, none is damaged
    assert file.read_bytes() == content
    assert {path.name for path in tmp_path.glob("log.db-*")} <= {"log.db-lock"}


def listing_calls(folder: Path) -> int:
    environment = {"MILLIS_HOOKS_DATABASE_URL": url_in(folder)}
    return CliRunner().invoke(app, ["calls"], env=environment).exit_code


def test_a_start_does_not_wait_for_ever_for_a_lock(tmp_path: Path, impatient: None) -> None:
    with opened(tmp_path) as database:
        database.writer.connect().close()
    with (
        locked(tmp_path / "log.db"),
        pytest.raises(StorageError, match="cannot be used: database is locked"),
    ):
        CallLog(url_in(tmp_path))


def test_calls_that_are_left_of_a_file_that_is_gone_are_not_thrown_away(tmp_path: Path) -> None:
    wal = tmp_path / "log.db-wal"
    wal.write_bytes(b"calls")
    with pytest.raises(WrongFileError, match=r"log\.db is empty, but .*log\.db-wal holds calls"):
        Database(url_in(tmp_path))
    assert wal.read_bytes() == b"calls"


def test_a_call_is_not_given_up_because_of_the_disk(tmp_path: Path, impatient: None) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        asyncio.run(writer.store(ended()))
        processor = Processor(database, writer, runs_for=lambda call: ())
        with locked(tmp_path / "log.db"), pytest.raises(StorageOutageError):
            processor.process_chunk()
        assert [row.outcome for row in rows(database, deliveries)] == ["stored"]
        assert processor.process_chunk() == 1
        assert rows(database, inbox) == []


def test_records_wait_in_memory_while_nothing_can_be_written(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        with locked(tmp_path / "log.db"):
            for number in range(3):
                writer.record(prefetched(f"-s{number}"))
                with pytest.raises(StorageOutageError, match="database is locked"):
                    writer.run(lambda connection: None)
        eventually(lambda: len(rows(database, deliveries)) == 3)
        assert [row.session_id for row in rows(database, deliveries)] == ["-s0", "-s1", "-s2"]
    assert our_log(caplog).count("a write to the call log failed: database is locked") == 1


def test_records_are_tried_again_while_other_work_that_writes_nothing_goes_well(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        writer.run(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1"))
        for number in range(3):
            writer.record(prefetched(f"-s{number}", answer=b"." * 100_000))
        eventually(lambda: "is full" in our_log(caplog))
        for _ in range(20):
            writer.run(lambda connection: None)
        assert our_log(caplog).count("a write to the call log failed") == 1
        writer.run(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1000000"))
        eventually(lambda: len(rows(database, deliveries)) == 3)


def test_records_beyond_what_memory_may_hold_are_lost_and_counted(
    tmp_path: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.writer.MAX_RECORDS", 2)
    with opened(tmp_path) as database:
        with locked(tmp_path / "log.db"), writing(database) as writer:
            for number in range(5):
                writer.record(prefetched(f"-s{number}"))
                with pytest.raises(StorageOutageError):
                    writer.run(lambda connection: None)
        assert rows(database, deliveries) == []
    assert "2 records of requests could not be written and are lost" in our_log(caplog)


def test_a_disk_that_does_not_answer_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.health.WAIT_S", 0.01)
    with opened(tmp_path) as database, writing(database) as writer:
        readiness = Readiness(writer)
        with held(writer), pytest.raises(StorageOutageError, match="has not answered"):
            readiness.check()


def test_readiness_is_looked_up_once_a_second_however_often_it_is_asked(tmp_path: Path) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        readiness = Readiness(writer)
        readiness.check()
        writer.close()
        readiness.check()
        assert rows(database, deliveries) == []
        with pytest.raises(StorageError, match="closed"):
            Readiness(writer).check()

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.locks import LockedConnection
from millis_hooks.call_log.tables import deliveries, inbox, keys
from millis_hooks.call_log.writer import Writer
from millis_hooks.exceptions import StorageError, StorageOutageError
from support.storage import commits_of, ended, held, opened, prefetched, rows, writing
from support.waiting import eventually

NOT_STORABLE = ended("half \ud83d of a pair")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


@pytest.fixture
def writer(database: Database) -> Iterator[Writer]:
    with writing(database) as writer:
        yield writer


def stored(database: Database) -> list[str | None]:
    return [row.session_id for row in rows(database, deliveries)]


def store_all(writer: Writer, *batch: Delivery) -> list[BaseException | None]:
    """Store `batch` as one group; return what each got."""

    async def store() -> list[BaseException | None]:
        with held(writer):
            tasks = [asyncio.create_task(writer.store(delivery)) for delivery in batch]
            await asyncio.sleep(0)  # each has now joined the queue
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(store())


def is_queue_of(writer: Writer, size: int) -> bool:
    return writer._queue.qsize() == size


def run_all(writer: Writer, *jobs: Any) -> list[Future[Any]]:
    """Run `jobs` in one group."""
    with ThreadPoolExecutor(len(jobs)) as threads:
        with held(writer):
            futures = []
            for number, job in enumerate(jobs, start=1):
                futures.append(threads.submit(writer.run, job))
                eventually(partial(is_queue_of, writer, number))
        return futures


@contextmanager
def lock_after_next_commit(path: Path) -> Iterator[None]:
    """Let another program take the lock as soon as the transaction at hand is over."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    commit = LockedConnection.commit

    def commit_and_lock(connection: LockedConnection) -> None:
        commit(connection)
        if not other.in_transaction:
            other.execute("BEGIN IMMEDIATE")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LockedConnection, "commit", commit_and_lock)
        yield
    other.close()


def add_key(connection: Connection, name: str = "k") -> None:
    connection.execute(keys.insert().values(name=name, value=b"v"))


def break_down(connection: Connection) -> None:
    add_key(connection, "half done")
    raise ValueError("my own mistake")


def ask_nonsense(connection: Connection) -> None:
    connection.execute(text("SELECT x FROM nowhere"))


def fill_disk(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA max_page_count=1")


def free_disk(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA max_page_count=1000000")


@pytest.mark.both_databases
def test_what_is_stored_is_there_byte_for_byte_and_to_be_processed(
    database: Database, writer: Writer
) -> None:
    body = bytes(range(256))
    asyncio.run(writer.store(ended(body=body, query="a=1")))
    (row,) = rows(database, deliveries)
    assert (row.body, row.query, len(row.content_hash)) == (body, "a=1", 16)
    assert [todo.delivery_id for todo in rows(database, inbox)] == [row.id]


@pytest.mark.both_databases
def test_waiting_deliveries_share_one_commit(database: Database, writer: Writer) -> None:
    commits = commits_of(database)
    assert store_all(writer, *(ended(f"-s{n}") for n in range(40))) == [None] * 40
    assert len(commits) == 2  # the one they waited for, and theirs
    assert stored(database) == [f"-s{n}" for n in range(40)]


def test_a_group_ends_where_its_bodies_are_many_bytes(
    database: Database, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.writer.MAX_GROUP_BYTES", 10)
    commits = commits_of(database)
    store_all(writer, *(ended(f"-s{n}", b"." * 20) for n in range(4)))
    assert len(commits) == 5  # one of them that of the group before
    assert stored(database) == ["-s0", "-s1", "-s2", "-s3"]


@pytest.mark.both_databases
def test_a_delivery_that_cannot_be_stored_fails_alone(database: Database, writer: Writer) -> None:
    first, bad, last = store_all(writer, ended("-a"), NOT_STORABLE, ended("-b"))
    assert (first, last) == (None, None)
    assert isinstance(bad, StorageError)
    assert str(bad) == "The call log could not be written: UnicodeEncodeError."
    assert stored(database) == ["-a", "-b"]


@pytest.mark.both_databases
def test_a_record_that_cannot_be_stored_fails_alone(database: Database, writer: Writer) -> None:
    with held(writer):
        for delivery in (prefetched("-a"), prefetched("\ud83d", ""), prefetched("-b")):
            writer.record(delivery)
    writer.run(add_key)
    eventually(lambda: stored(database) == ["-a", "-b"])


def test_work_is_returned_what_it_returned(writer: Writer) -> None:
    assert writer.run(lambda connection: connection.scalar(text("SELECT 6 * 7"))) == 42


@pytest.mark.both_databases
def test_work_that_raises_is_undone_alone(database: Database, writer: Writer) -> None:
    commits = commits_of(database)
    good, bad = run_all(writer, add_key, break_down)
    assert good.result() is None
    assert isinstance(bad.exception(), ValueError)
    assert [key.name for key in rows(database, keys)] == ["k"]
    assert len(commits) == 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_work_cannot_end_the_writing_thread(writer: Writer, error: type[BaseException]) -> None:
    def leave(_connection: Connection) -> None:
        raise error

    with pytest.raises(error):
        writer.run(leave)
    writer.run(add_key)


@pytest.mark.both_databases
def test_work_that_leaves_a_statement_unfinished_fails_alone(
    database: Database, writer: Writer
) -> None:
    def leave_unfinished(connection: Connection) -> None:
        unread = connection.exec_driver_sql("UPDATE keys SET value = value RETURNING name")
        raise LookupError(type(unread))

    for name in "ab":
        writer.run(partial(add_key, name=name))
    bad, good = run_all(writer, leave_unfinished, partial(add_key, name="c"))
    assert isinstance(bad.exception(), LookupError)
    assert good.exception() is None


def test_work_the_database_refuses_fails_alone(database: Database, writer: Writer) -> None:
    bad, good = run_all(writer, ask_nonsense, add_key)
    assert isinstance(bad.exception(), StorageError)
    assert "no such table: nowhere" in str(bad.exception())
    assert good.result() is None
    assert [key.name for key in rows(database, keys)] == ["k"]


@pytest.mark.both_databases
def test_work_may_fail_in_different_ways_in_one_group(writer: Writer) -> None:
    raised, refused, good = run_all(writer, break_down, ask_nonsense, add_key)
    assert isinstance(raised.exception(), ValueError)
    assert isinstance(refused.exception(), StorageError)
    assert good.result() is None
    writer.run(lambda connection: None)


def test_a_full_disk_acknowledges_nothing(database: Database, writer: Writer) -> None:
    writer.run(fill_disk)
    large = b"." * 100_000
    results = store_all(writer, *(ended(f"-s{n}", large) for n in range(3)))
    assert [type(result) for result in results] == [StorageOutageError] * 3
    assert "full" in str(results[0])
    assert stored(database) == []


def test_writing_continues_once_there_is_room_again(database: Database, writer: Writer) -> None:
    writer.run(fill_disk)
    large = b"." * 100_000
    store_all(writer, ended("-lost", large))
    writer.run(free_disk)
    assert store_all(writer, ended("-kept", large)) == [None]
    assert stored(database) == ["-kept"]


def test_a_failed_commit_acknowledges_nothing(database: Database, writer: Writer) -> None:
    commits = commits_of(database)

    def refuse(_connection: Connection) -> None:
        if len(commits) > 1:  # the first is of those they waited for
            raise sqlite3.OperationalError("disk I/O error")

    event.listen(database.writer, "commit", refuse)
    results = store_all(writer, ended("-a"), ended("-b"))
    assert [type(result) for result in results] == [StorageError] * 2
    assert stored(database) == []


def test_all_fail_at_once_while_the_file_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0.01)
    with (
        opened(tmp_path) as database,
        writing(database) as writer,
        lock_after_next_commit(tmp_path / "log.db"),
    ):
        results = store_all(writer, *(ended(f"-s{n}") for n in range(5)))
    assert [str(result) for result in results] == [
        "The call log could not be written: database is locked."
    ] * 5
    assert len(caplog.messages) == 1  # one wait for the lock, not one for each


def test_records_without_a_waiter_are_written_soon(database: Database, writer: Writer) -> None:
    writer.record(prefetched("-a"))
    eventually(lambda: stored(database) == ["-a"])


def test_records_share_the_next_commit(database: Database, writer: Writer) -> None:
    commits = commits_of(database)
    writer.record(prefetched("-a"))
    asyncio.run(writer.store(ended("-b")))
    assert sorted(map(str, stored(database))) == ["-a", "-b"]
    assert len(commits) == 1


def test_records_of_many_threads_are_all_written(database: Database, writer: Writer) -> None:
    with ThreadPoolExecutor(8) as threads:
        threads.map(writer.record, [prefetched(f"-s{n}") for n in range(200)])
    eventually(lambda: len(stored(database)) == 200)


def test_a_flood_of_records_is_dropped_and_counted(
    database: Database,
    writer: Writer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.writer.MAX_RECORDS", 3)
    with held(writer):
        for number in range(5):
            writer.record(prefetched(f"-s{number}"))
    writer.run(add_key)
    assert stored(database) == ["-s0", "-s1", "-s2"]
    assert "2 records of requests dropped" in caplog.text


@pytest.mark.both_databases
def test_what_is_rejected_is_kept_but_not_processed(database: Database, writer: Writer) -> None:
    writer.record(ended("-a", outcome="rejected"))
    writer.run(add_key)
    assert stored(database) == ["-a"]
    assert rows(database, inbox) == []


def test_processing_is_woken_by_deliveries_and_by_nothing_else(database: Database) -> None:
    calls: list[str] = []
    with writing(database, on_stored=lambda: calls.append("stored")) as writer:
        writer.run(add_key)
        assert calls == []
        asyncio.run(writer.store(ended()))
    assert calls == ["stored"]


def test_a_flood_is_when_many_wait_for_one_commit(
    database: Database, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.writer.FLOOD_WAITING", 3)
    store_all(writer, ended("-a"), ended("-b"), ended("-c"))
    assert writer.is_flooded
    store_all(writer, ended("-d"))
    assert not writer.is_flooded


def test_a_cancelled_waiter_delays_no_other(database: Database, writer: Writer) -> None:
    async def store() -> None:
        with held(writer):
            tasks = [asyncio.create_task(writer.store(d)) for d in (ended("-a"), NOT_STORABLE)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await writer.store(ended("-b"))

    asyncio.run(store())
    assert stored(database) == ["-a", "-b"]


def test_a_closed_event_loop_delays_no_other(database: Database, writer: Writer) -> None:
    async def leave() -> None:
        task = asyncio.create_task(writer.store(ended("-a")))
        await asyncio.sleep(0)
        task.cancel()

    with held(writer):
        asyncio.run(leave())
    writer.run(add_key)
    assert stored(database) == ["-a"]


def test_closing_writes_what_is_waiting(database: Database, writer: Writer) -> None:
    closing = threading.Thread(target=writer.close)

    async def store() -> None:
        with held(writer):
            writer.record(prefetched("-a"))
            task = asyncio.create_task(writer.store(ended("-b")))
            await asyncio.sleep(0)
            closing.start()
        await task

    asyncio.run(store())
    closing.join()
    assert sorted(map(str, stored(database))) == ["-a", "-b"]


def test_nothing_is_stored_once_it_is_closed(writer: Writer) -> None:
    writer.close()
    with pytest.raises(StorageError, match=r"^The call log is closed\.$"):
        asyncio.run(writer.store(ended()))
    with pytest.raises(StorageError):
        writer.run(add_key)

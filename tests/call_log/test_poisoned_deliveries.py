"""A delivery that ends every process that reads it is set aside after two attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from millis_hooks.call_log import processing
from millis_hooks.call_log.call_rows import Written
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.projection import Digest, digest_delivery
from millis_hooks.call_log.tables import calls, deliveries, handler_runs, inbox, rereads
from millis_hooks.call_log.upkeep.reprocess import put_back_one
from millis_hooks.call_log.writer import Writer
from millis_hooks.exceptions import StorageOutageError
from millis_hooks.protocol.reading import LARGE_BYTES
from millis_hooks.protocol.samples import end_of_call_body
from support.sites import Site
from support.storage import ended, opened, rows, writing
from support.waiting import eventually

LONG_S = 600.0
LARGE = end_of_call_body(session_id="large", metadata={"note": "x" * LARGE_BYTES})


class DeathError(BaseException):
    """What ends a process: no code that runs in it catches this."""


class Log:
    """A call log whose processes die of some deliveries."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self.database = database
        self.writer = writer
        self.deadly = {"poison", "large"}
        self.read: list[str] = []

    def store(self, *batch: Delivery) -> None:
        for delivery in batch:
            asyncio.run(self.writer.store(delivery))

    def digest(self, row: Row[Any], **asked: Any) -> Digest:
        self.read.append(row.session_id)
        if row.session_id in self.deadly:
            raise DeathError
        return digest_delivery(row, **asked)

    def process(self) -> Processor:
        return Processor(self.database, self.writer, runs_for=lambda call: ["notify"])

    def live(self, process: Processor | None = None) -> bool:
        """Empty the inbox in a process, a new one unless given; return whether it survives."""
        process = process or self.process()
        try:
            while process.process_chunk():
                pass
        except DeathError:
            return False
        return True

    def attempts(self) -> list[int]:
        return [waiting.attempts for waiting in rows(self.database, inbox)]

    def reasons(self) -> dict[str, str | None]:
        return {row.session_id: row.reason for row in rows(self.database, deliveries)}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    with opened(tmp_path) as database, writing(database) as writer:
        log = Log(database, writer)
        monkeypatch.setattr(processing, "digest_delivery", log.digest)
        yield log


@pytest.mark.both_databases
@pytest.mark.parametrize("body", [None, LARGE], ids=["poison", "large"])
def test_what_two_processes_died_of_is_set_aside(log: Log, body: bytes | None) -> None:
    first = log.process()
    poison = "large" if body else "poison"
    log.store(ended("a"), ended(poison, body), ended("b"))
    deaths = 2 if body else 3  # what is small is first read with others, without a count
    assert [log.live(first), *(log.live() for _ in range(deaths))] == [*[False] * deaths, True]
    assert log.read.count(poison) == deaths
    assert log.attempts() == []
    assert {call.session_id for call in rows(log.database, calls)} == {"a", "b"}
    reasons = log.reasons()
    assert reasons.pop(poison) == "set aside: the process ended 2 times while this was read"
    assert set(reasons.values()) == {None}


@pytest.mark.both_databases
def test_what_was_set_aside_is_read_again_when_someone_asks(log: Log) -> None:
    first = log.process()
    log.store(ended("poison"))
    assert [log.live(first), log.live(), log.live(), log.live()] == [False, False, False, True]
    log.deadly.clear()
    assert log.writer.run(partial(put_back_one, delivery_id=1))
    assert log.process().process([1], rereads) == 1
    (delivery,) = rows(log.database, deliveries)
    assert (delivery.outcome, delivery.reason) == ("stored", None)
    assert len(rows(log.database, handler_runs)) == 1


@pytest.mark.both_databases
def test_what_is_being_read_elsewhere_is_neither_read_nor_set_aside(log: Log) -> None:
    first = log.process()
    log.store(ended("poison"), ended("a"))
    assert not log.live(first)
    other = log.process()
    log.deadly.clear()
    seen: list[tuple[int, list[int]]] = []

    def look(row: Row[Any], **asked: Any) -> Digest:
        if not seen:
            seen.append((other.process_chunk(), log.attempts()))
        return digest_delivery(row, **asked)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processing, "digest_delivery", look)
        assert log.live()
    assert seen == [(0, [1, 0])]
    assert {call.session_id for call in rows(log.database, calls)} == {"poison", "a"}


@pytest.mark.both_databases
def test_a_delivery_taken_by_another_process_counts_no_attempt(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.store(ended("a"))
    process = log.process()
    with monkeypatch.context() as patched:
        patched.setattr(processing, "write", lambda *_, **__: Written(0, has_runs=False))
        assert process.process_chunk() == 1
    assert log.attempts() == [0]


def test_a_delivery_that_a_process_survived_counts_no_attempt(log: Log) -> None:
    log.store(ended("a"))
    process = log.process()

    def fail(row: Row[Any], **asked: Any) -> Digest:
        raise StorageOutageError("the disk is full")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processing, "digest_delivery", fail)
        for _ in range(4):
            with pytest.raises(StorageOutageError):
                process.process_chunk()
    assert log.attempts() == [1]
    assert log.live(process)
    assert len(rows(log.database, calls)) == 1


def test_a_delivery_too_large_for_memory_is_set_aside_alone(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.deadly.clear()
    process = log.process()
    log.store(ended("large", LARGE), ended("a"))

    def fail(row: Row[Any], **asked: Any) -> Digest:
        if row.session_id == "large":
            raise MemoryError
        return digest_delivery(row, **asked)

    monkeypatch.setattr(processing, "digest_delivery", fail)
    assert log.live(process)
    assert log.reasons() == {"large": "MemoryError", "a": None}


def test_a_new_process_leaves_what_another_died_of_for_a_while(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log.process()
    log.store(ended("poison"))
    assert [log.live(first), log.live()] == [False, False]
    log.deadly.clear()
    monkeypatch.setattr(processing, "SETTLES_S", LONG_S)
    process = log.process()
    log.store(ended("a"))
    with running(process):
        eventually(lambda: log.attempts() == [1])
    assert log.read == ["poison", "poison", "a"]
    monkeypatch.setattr(processing, "SETTLES_S", 0.0)
    with running(log.process()):
        eventually(lambda: log.attempts() == [])


@contextmanager
def running(process: Processor) -> Iterator[None]:
    process.start()
    process.wake()
    yield
    process.close()


@pytest.mark.both_databases
def test_ordinary_deliveries_are_not_counted(log: Log) -> None:
    process = log.process()
    log.store(*(ended(f"s{number}") for number in range(8)))
    process._count_attempt = None  # type: ignore[assignment,method-assign]
    assert log.live(process)
    assert len(rows(log.database, calls)) == 8


HANDLERS = """
from millis_hooks.call_log import processing
digest_delivery = processing.digest_delivery

def digest(row, **asked):
    if b"poison" in row.body:
        os._exit(9)
    return digest_delivery(row, **asked)

processing.digest_delivery = digest

@hooks.on_end_of_call
def notify(call):
    note(call, "notified")
"""


def test_a_service_that_died_of_a_delivery_again_and_again_continues_without_it(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path, HANDLERS)
    with site.serving() as server:
        server.deliver("poison")
        assert server.process.wait(20) == 9
    for _ in range(2):
        with site.starting() as process:  # it may die before it says that it is ready
            assert process.wait(20) == 9
    with site.serving() as server:
        server.deliver("good")
        eventually(lambda: site.noted("notified") == {"good": 1})
        server.stop()
    with opened(tmp_path) as database:
        by_session = {row.session_id: row.outcome for row in rows(database, deliveries)}
    assert by_session == {"poison": "unparsed", "good": "stored"}

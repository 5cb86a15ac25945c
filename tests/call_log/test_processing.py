from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.call_ends import ReadEnds
from millis_hooks.call_log.call_rows import write
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.projection import digest_delivery
from millis_hooks.call_log.search import matching_ids, terms_of
from millis_hooks.call_log.sessions import SessionReader
from millis_hooks.call_log.tables import (
    call_metadata,
    calls,
    cost_items,
    deliveries,
    handler_runs,
    inbox,
)
from millis_hooks.call_log.writer import Writer
from millis_hooks.exceptions import StorageError
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from support.databases import url_in
from support.storage import NOW, ended, opened, prefetched, rows, writing
from support.waiting import eventually

pytestmark = pytest.mark.both_databases


class Log:
    """A call log whose inbox is emptied when a test says so."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self.database = database
        self.writer = writer
        self.handlers = ["notify"]
        self.times_woken = 0
        self.processor = Processor(
            database, writer, runs_for=lambda call: self.handlers, on_runs=self._wake
        )

    def process(self, *batch: Delivery) -> list[int]:
        """Store `batch`, empty the inbox, and return the sizes of the chunks it took."""
        store(self.writer, *batch)
        sizes = []
        while size := self.processor.process_chunk():
            sizes.append(size)
        assert rows(self.database, inbox) == []
        return sizes

    def found(self, searched: str) -> list[int]:
        with self.database.reader.connect() as connection:
            return [row.id for row in connection.execute(matching_ids(terms_of(searched)))]

    def _wake(self) -> None:
        self.times_woken += 1


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with opened(tmp_path) as database, writing(database) as writer:
        yield Log(database, writer)


def store(writer: Writer, *batch: Delivery) -> None:
    async def store() -> None:
        for delivery in batch:
            await writer.store(delivery)

    asyncio.run(store())


def test_an_end_of_call_becomes_a_call_with_costs_text_and_runs(log: Log) -> None:
    log.process(ended("-s1"))
    (call,) = rows(log.database, calls)
    (run,) = rows(log.database, handler_runs)
    assert (call.session_id, call.received_at, call.ended_at) == ("-s1", NOW, NOW)
    assert {cost.call_id for cost in rows(log.database, cost_items)} == {call.id}
    assert log.found("table for two") == log.found("-s1") == [call.id]
    assert (run.call_id, run.handler, run.state) == (call.id, "notify", "pending")


def test_the_runner_is_woken_only_for_new_runs(log: Log) -> None:
    log.process(ended("-s1"), prefetched("-s2"))
    assert log.times_woken == 1
    log.handlers = []
    log.process(ended("-s3"))
    assert log.times_woken == 1


def test_a_redelivery_changes_nothing_but_that_it_is_reported(log: Log) -> None:
    delivery = ended("-s1")
    log.process(delivery)
    tables = (calls, call_metadata, cost_items, handler_runs)
    before = [rows(log.database, table) for table in tables]
    log.process(delivery, delivery._replace(received_at=NOW + timedelta(hours=1)))
    (call,), *others = [rows(log.database, table) for table in tables]
    assert dict(call._mapping) == {**before[0][0]._mapping, "repeated": True}
    assert others == before[1:]
    assert len(rows(log.database, deliveries)) == 3


def test_metadata_of_an_ended_call_is_kept_as_text(log: Log) -> None:
    sent: dict[str, Any] = {"tier": "gold", "age": 41, "vip": True, "tags": ["a", "ü"]}
    sent |= {"none": None, "": "\0"}
    log.process(ended("-s1", end_of_call_body(session_id="-s1", metadata=sent)))
    kept = {row.key: row.value for row in rows(log.database, call_metadata)}
    assert kept == {
        "tier": "gold", "age": "41", "vip": "true", "tags": '["a", "ü"]', "none": "null", "": "�",
    }  # fmt: skip


def test_metadata_without_end_is_cut(log: Log) -> None:
    deep: Any = []
    for _ in range(150):
        deep = [deep]
    sent = {"k" * 500: "v" * 500, "k" * 501: "w", "deep": deep}
    sent |= {str(number): number for number in range(1000)}
    log.process(ended("-s1", end_of_call_body(session_id="-s1", metadata=sent)))
    kept = rows(log.database, call_metadata)
    assert len(kept) < 60
    assert max(len(row.key + row.value) for row in kept) <= 400


def test_metadata_is_listed_by_when_its_call_was_received(log: Log) -> None:
    body = end_of_call_body(session_id="-s1", metadata={"tier": "gold"})
    log.process(ended("-s1", body), prefetched("-s1", at=NOW - timedelta(minutes=3)))
    (call,), (kept,) = rows(log.database, calls), rows(log.database, call_metadata)
    assert kept.received_at == call.received_at == NOW - timedelta(minutes=3)


def test_another_body_for_the_same_call_is_kept_next_to_the_first(log: Log) -> None:
    first, second = (end_of_call_body(session_id="-s1", duration_s=d) for d in (10, 99))
    log.process(ended("-s1", first), ended("-s1", second, at=NOW + timedelta(seconds=1)))
    assert [call.duration_s for call in rows(log.database, calls)] == [99]
    assert [delivery.body for delivery in rows(log.database, deliveries)] == [first, second]


def test_what_two_processes_took_at_once_is_written_once(log: Log) -> None:
    store(log.writer, ended("-s1"))
    reader = SessionReader(partial(digest_delivery, own_numbers=frozenset()), lambda _: ["notify"])
    with log.database.reader.connect() as connection:
        batch = reader.read(connection, [1])
    work = partial(write, batch=batch, hears_of_changes=lambda name: False)
    assert [log.writer.run(work).deliveries for _ in range(2)] == [1, 0]
    assert len(rows(log.database, handler_runs)) == len(rows(log.database, calls)) == 1


def test_what_changed_since_it_was_read_is_read_anew(log: Log) -> None:
    store(log.writer, ended("-s1"))
    reader = SessionReader(partial(digest_delivery, own_numbers=frozenset()), lambda _: ["notify"])
    with log.database.reader.connect() as connection:
        batch = reader.read(connection, [1])
    store(log.writer, prefetched("-s1", latency_ms=3.0))
    log.processor.process([2])
    work = partial(write, batch=batch, hears_of_changes=lambda name: False)
    assert log.writer.run(work).deliveries == 0
    log.process()
    (call,) = rows(log.database, calls)
    assert (call.prefetch_ms, call.delivery_id) == (3.0, 1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_call_is_the_same_whichever_webhook_is_processed_first(
    log: Log, order: tuple[int, int]
) -> None:
    start = prefetched("-s1", at=NOW - timedelta(minutes=2), latency_ms=12.5)
    both = start, ended("-s1")
    log.process(*(both[index] for index in order))
    (call,) = rows(log.database, calls)
    assert (call.received_at, call.ended_at) == (start.received_at, NOW)
    assert (call.prefetch_ms, call.prefetch_outcome, call.outcome) == (12.5, "fresh", "completed")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_prefetch_knows_the_telephone_an_end_of_call_leaves_out(
    log: Log, order: tuple[int, int]
) -> None:
    body = end_of_call_body(session_id="-s1", from_phone=None, to_phone=None)
    both = (
        prefetched("-s1", prefetch_query(session_id="-s1", from_phone="+14155550134")),
        ended("-s1", body),
    )
    log.process(*(both[index] for index in order))
    (call,) = rows(log.database, calls)
    assert (call.channel, call.from_phone) == ("phone", "+14155550134")


def test_a_call_can_be_found_from_its_prefetch_on_and_once(log: Log) -> None:
    start = prefetched("-s1", prefetch_query(session_id="-s1", from_phone="+14155550134"))
    log.process(start)
    assert log.found("5550134") == [1]
    log.process(ended("-s1"), start)
    assert log.found("5550134") == log.found("table for two") == [1]


def test_a_prefetch_alone_is_a_call_that_has_not_ended(log: Log) -> None:
    log.process(prefetched("-s1"))
    (call,) = rows(log.database, calls)
    assert (call.session_id, call.ended_at, call.delivery_id) == ("-s1", None, None)
    assert rows(log.database, handler_runs) == []


def test_a_prefetch_without_a_session_makes_no_call(log: Log) -> None:
    assert log.process(prefetched("-s1", "agent_id=-a1"), prefetched("-s2", "")) == [2]
    assert rows(log.database, calls) == []


OF_B = prefetched("-s1", prefetch_query(session_id="-s1", agent_id="B"))
END_OF_A = ended("-s1", end_of_call_body(session_id="-s1", agent_id="A"))._replace(secret_agent="A")
END_OF_B = ended("-s1", end_of_call_body(session_id="-s1", agent_id="B"))


@pytest.mark.parametrize(
    "foreign",
    [
        END_OF_A,
        END_OF_B._replace(secret_agent="A"),
        ended("-s1", b'{"session_id": "-s1"}')._replace(secret_agent="A"),
        OF_B._replace(secret_agent="A", outcome="failed"),
        prefetched("-s1", "session_id=-s1&agent_id=A")._replace(secret_agent="A"),
    ],
)
def test_what_is_another_agent_s_is_kept_and_means_nothing(log: Log, foreign: Delivery) -> None:
    log.process(OF_B)
    before = [rows(log.database, table) for table in (calls, handler_runs)]
    log.process(foreign)
    assert [rows(log.database, table) for table in (calls, handler_runs)] == before
    _, kept = rows(log.database, deliveries)
    assert (kept.body, kept.outcome) == (foreign.body, "rejected")
    assert "another agent" in kept.reason
    log.process(END_OF_B)
    assert [(call.agent_id, call.ended_at) for call in rows(log.database, calls)] == [("B", NOW)]


def test_the_beginning_of_a_session_is_processed_before_its_end(log: Log) -> None:
    may_write = threading.Event()
    log.writer.submit(lambda _connection: may_write.wait(5))

    async def deliver() -> None:
        log.writer.record(OF_B)
        end = asyncio.create_task(log.writer.store(END_OF_A))
        await asyncio.sleep(0)
        may_write.set()
        await end

    asyncio.run(deliver())
    log.process()
    assert [row.outcome for row in rows(log.database, deliveries)] == ["fresh", "rejected"]


def test_an_unreadable_delivery_delays_no_other(log: Log) -> None:
    unreadable = [ended(f"-u{n}", body) for n, body in enumerate([b"", b"[1]", b"{", b"\xff" * 9])]
    log.process(*unreadable, ended("-s1"))
    assert [call.session_id for call in rows(log.database, calls)] == ["-s1"]
    assert len(rows(log.database, deliveries)) == 5


def test_a_filter_that_raises_costs_its_own_call_only(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    def runs_for(call: EndOfCall) -> list[str]:
        if call.session_id == "-bad":
            raise RuntimeError("filter")
        return []

    processor = Processor(log.database, log.writer, runs_for=runs_for)
    store(log.writer, ended("-bad"), ended("-s1"))
    assert processor.process_chunk() == 2
    assert [call.session_id for call in rows(log.database, calls)] == ["-s1"]
    assert [row.outcome for row in rows(log.database, deliveries)] == ["unparsed", "stored"]
    assert "delivery 1 could not be processed" in caplog.text


def test_an_end_that_was_read_is_handed_on_once(log: Log) -> None:
    read = ReadEnds()
    wanted = {"-s1", "-twice"}
    processor = Processor(
        log.database,
        log.writer,
        runs_for=lambda call: ["save"] if call.session_id in wanted else [],
        read_ends=read,
    )
    store(log.writer, ended("-s1"), ended("-other"), ended("-twice"), ended("-twice", b"{}"))
    store(log.writer, ended("-twice", end_of_call_body(session_id="-twice", duration_s=99)))
    processor.process_chunk()
    taken = {each.id: read.take(each.id) for each in rows(log.database, deliveries)}
    assert [call.session_id for call in taken.values() if call] == ["-s1"]
    assert read.take(1) is None


def test_ends_that_were_read_are_bounded_in_bytes() -> None:
    read, call = ReadEnds(), EndOfCall.from_raw({"session_id": "-s1"})
    for delivery_id in (1, 2, 2, 3):
        read.put(delivery_id, call, 1_000_000)
    assert [read.take(each) is call for each in (1, 2, 3)] == [False, True, True]


def test_a_chunk_is_bounded_in_number(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millis_hooks.call_log.processing.CHUNK_DELIVERIES", 2)
    assert log.process(*(ended(f"-s{n}") for n in range(5))) == [2, 2, 1]


def test_a_chunk_is_bounded_in_bytes(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millis_hooks.call_log.processing.CHUNK_BYTES", 10)
    assert log.process(*(ended(f"-s{n}") for n in range(3))) == [1, 1, 1]


def test_a_chunk_holds_any_number_of_deliveries_of_a_session(log: Log) -> None:
    assert log.process(prefetched("-s1"), ended("-s2"), ended("-s1"), ended("-s1")) == [4]
    assert [call.repeated for call in rows(log.database, calls)] == [True, False]


@pytest.mark.sqlite_only
def test_what_could_not_be_written_waits_in_the_inbox(log: Log) -> None:
    store(log.writer, ended("-s1"))
    log.writer.close()
    with pytest.raises(StorageError):
        log.processor.process_chunk()
    with writing(log.database) as writer:
        again = Processor(log.database, writer, runs_for=lambda call: ["notify"])
        assert again.process_chunk() == 1
    assert len(rows(log.database, handler_runs)) == 1


def opened_log(folder: Path, on_runs: Callable[[], None] = lambda: None) -> CallLog:
    return CallLog(url_in(folder), runs_for=lambda call: ["notify"], on_runs=on_runs)


def test_what_an_earlier_process_left_is_processed_at_the_start(tmp_path: Path) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        store(writer, *(ended(f"-s{n}") for n in range(3)))
    log = opened_log(tmp_path)
    eventually(lambda: len(rows(log.database, handler_runs)) == 3)
    log.close()


def test_what_is_stored_is_processed_without_being_asked(tmp_path: Path) -> None:
    log = opened_log(tmp_path)
    store(log.writer, ended("-s1"))
    eventually(lambda: rows(log.database, calls))
    store(log.writer, ended("-s2"))
    eventually(lambda: len(rows(log.database, calls)) == 2)
    log.close()


def test_a_flood_is_processed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millis_hooks.call_log.writer.FLOOD_WAITING", 0)
    monkeypatch.setattr("millis_hooks.call_log.processing.CHUNK_DELIVERIES", 1)
    log = opened_log(tmp_path)
    store(log.writer, *(ended(f"-s{n}") for n in range(3)))
    eventually(lambda: len(rows(log.database, calls)) == 3)
    log.close()


def test_closing_finishes_the_chunk_at_hand_and_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.processing.CHUNK_DELIVERIES", 1)
    with opened(tmp_path) as database, writing(database) as writer:
        store(writer, *(ended(f"-s{n}") for n in range(3)))
    at_hand, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        at_hand.set()
        go_on.wait(10)

    log = opened_log(tmp_path, wait)
    at_hand.wait(10)
    closing = threading.Thread(target=log.close)
    closing.start()
    eventually(lambda: log.processor._closing.is_set())
    go_on.set()
    closing.join()
    with opened(tmp_path) as database:
        assert (len(rows(database, calls)), len(rows(database, inbox))) == (1, 2)


def test_processing_outlives_a_failing_call_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.processing.SWEEP_S", 0.01)
    log = opened_log(tmp_path)
    log.writer.run(lambda connection: connection.execute(text("ALTER TABLE inbox RENAME TO gone")))
    eventually(lambda: "processing waits" in caplog.text)
    log.writer.run(lambda connection: connection.execute(text("ALTER TABLE gone RENAME TO inbox")))
    store(log.writer, ended("-s1"))
    eventually(lambda: rows(log.database, calls))
    log.close()

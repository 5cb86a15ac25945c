from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update
from typer.testing import CliRunner, Result

from millis_hooks.call_log import processing
from millis_hooks.call_log.call_ends import RunsFor
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.search import call_search
from millis_hooks.call_log.tables import (
    call_metadata,
    calls,
    cost_items,
    deliveries,
    drift,
    handler_runs,
    handlers,
    inbox,
    keys,
    metadata,
    rereads,
)
from millis_hooks.call_log.upkeep import reprocess
from millis_hooks.call_log.upkeep.reprocess import (
    Chosen,
    Reparse,
    Reread,
    registered_runs,
)
from millis_hooks.cli import maintenance
from millis_hooks.cli.commands import app
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import OWN_PHONE, VINTAGES, end_of_call_body, prefetch_query
from support import databases
from support.storage import NOW, ended, opened, prefetched, rows, writing
from support.waiting import eventually

#: What is not read from deliveries: what people, handlers and the service itself have written, and
#: totals, with the marks that they are to be made again.
_NOT_DERIVED = {
    "attempts",
    "changed_days",
    "day_divisions",
    "day_totals",
    "handlers",
    "inbox",
    "keys",
    "operator_sessions",
    "rereads",
}

LATER = NOW + timedelta(minutes=2)
EVERYTHING = Chosen()


class Log:
    """A call log that deliveries are put into, and read again in."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def take(self, *batch: Delivery) -> None:
        """Store and process `batch` as the service does."""
        with writing(self.database) as writer:
            asyncio.run(store(writer.store, batch))
            processor = Processor(self.database, writer, runs_for=lambda call: ["notify"])
            while processor.process_chunk() or rows(self.database, inbox):
                pass

    def keep(self, *batch: Delivery) -> None:
        """Store `batch` as if it had been processed long ago, and nothing come of it."""
        with writing(self.database) as writer:
            asyncio.run(store(writer.store, batch))
        self.write(delete(inbox))

    def reparse(
        self, chosen: Chosen = EVERYTHING, *, runs_for: RunsFor = lambda call: ["notify"]
    ) -> Reread:
        """Put back what is chosen, and read it as a process does that calls no handlers."""
        with writing(self.database) as writer:
            processor = Processor(self.database, writer, runs_for=runs_for)
            work = Reparse(self.database, chosen, version="1")
            work.put_back()
            while processor.process_chunk(rereads):
                pass
            work.end()
        return work.result(waiting=0)

    def write(self, *statements: Any) -> None:
        with self.database.writer.begin() as connection:
            for statement in statements:
                connection.execute(statement)


async def store(write: Callable[[Delivery], Any], batch: Sequence[Delivery]) -> None:
    await asyncio.gather(*map(write, batch))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with opened(tmp_path) as database:
        yield Log(database)


@pytest.fixture(scope="module")
def mixed_log(
    tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind
) -> Iterator[Log]:
    """A log of sessions of every kind, for tests that leave it as it was."""
    with opened(tmp_path_factory.mktemp("mixed")) as database:
        log = Log(database)
        log.take(*mixed_deliveries())
        yield log


def everything(log: Log) -> dict[str, list[tuple[Any, ...]]]:
    """All that is derived, by session instead of by the ids that one log happened to give."""
    with log.database.reader.connect() as connection:
        found = {table.name: _rows(connection, table) for table in metadata.sorted_tables}
        texts = select(calls.c.session_id, call_search.c.folded).join_from(
            calls, call_search, call_search.c.rowid == calls.c.id
        )
        found["call_search"] = sorted(map(tuple, connection.execute(texts)))
    return {name: rows for name, rows in found.items() if name not in _NOT_DERIVED}


def _rows(connection: Connection, table: Any) -> list[tuple[Any, ...]]:
    named = [column for column in table.c if column.name not in {"id", "call_id"}]
    chosen = select(*named)
    if "call_id" in table.c and table is not calls:
        chosen = select(calls.c.session_id, *named).join(table, table.c.call_id == calls.c.id)
    return sorted(map(tuple, connection.execute(chosen)), key=repr)


def mixed_deliveries() -> list[Delivery]:
    """Sessions of every kind, with what goes wrong with each."""
    batch: list[Delivery] = []
    for number, vintage in enumerate(VINTAGES):
        session = f"-{vintage}"
        query = prefetch_query(vintage, session_id=session)
        body = end_of_call_body(vintage, session_id=session, metadata={"plan": "gold", "n": number})
        batch.append(prefetched(session, query, at=NOW, latency_ms=3.5))
        batch.append(ended(session, body, at=LATER))
        batch.append(ended(session, body, at=LATER + timedelta(hours=1)))
    batch += [
        prefetched("-live", at=NOW, latency_ms=2.0),
        ended("-late-start", at=LATER),
        prefetched("-late-start", at=NOW, outcome="failed", reason="it raised"),
        ended("-two", end_of_call_body(session_id="-two", duration_s=10), at=NOW),
        ended("-two", end_of_call_body(session_id="-two", duration_s=99), at=LATER),
        prefetched("", "agent_id=a", at=NOW)._replace(session_id=None),
        Delivery("end_of_call", NOW, "unparsed", 200, reason="not JSON", body=b"{"),
        Delivery("end_of_call", NOW, "rejected", 401, body=b""),
    ]
    return batch


DAMAGE = {
    "derived columns": [
        update(calls).values(
            agent_id="?", from_phone=None, outcome=None, cost_total=7, prefetch_ms=None, turns=0
        )
    ],
    "which end counts": [update(calls).values(delivery_id=None, ended_at=None)],
    "times": [update(calls).values(received_at=LATER + timedelta(days=1))],
    "costs": [delete(cost_items).where(cost_items.c.position == 0)],
    "metadata": [update(call_metadata).values(value="?")],
    "lost metadata": [delete(call_metadata)],
    "what is searched": [text("UPDATE call_search SET folded = 'gone'")],
    "lost text": [text("DELETE FROM call_search")],
    "drift": [update(drift).values(path="?")],
    "lost drift": [delete(drift)],
    "invented drift": [
        text("INSERT INTO drift (delivery_id, kind, path, sample, seen_at)"
             " SELECT id, 'unreadable', 'x', 'y', received_at FROM deliveries"
             " WHERE outcome != 'rejected'")
    ],
    "whole calls": [delete(handler_runs), delete(call_search), delete(calls)],
}  # fmt: skip


@pytest.mark.both_databases
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_was_damaged_comes_out_as_in_a_fresh_call_log(
    mixed_log: Log, damage: list[Any]
) -> None:
    fresh = everything(mixed_log)
    mixed_log.write(*damage)
    assert everything(mixed_log) != fresh
    mixed_log.reparse()
    assert everything(mixed_log) == fresh


@pytest.mark.both_databases
def test_nothing_is_written_where_nothing_has_changed(mixed_log: Log) -> None:
    before = [rows(mixed_log.database, table) for table in metadata.sorted_tables]
    reread = mixed_log.reparse()
    assert [rows(mixed_log.database, table) for table in metadata.sorted_tables] == before
    assert reread == Reread(deliveries=len(mixed_deliveries()) - 1, unreadable=1)


def unread(session_id: str, *, body: bytes = b"", **columns: Any) -> Delivery:
    """An end-of-call that an older version could not read."""
    body = body or end_of_call_body(session_id=session_id, metadata={"plan": "gold"})
    columns = {"at": LATER, "outcome": "unparsed", "reason": "not JSON", **columns}
    return ended(session_id, body, **columns)._replace(session_id=None)


@pytest.mark.both_databases
@pytest.mark.parametrize("chosen", [Chosen(), Chosen(unparsed=True), Chosen(since=LATER)])
def test_what_could_not_be_read_becomes_a_call_and_gets_its_runs(log: Log, chosen: Chosen) -> None:
    log.take(prefetched("-s1"))
    log.keep(unread("-s1"))
    assert log.reparse(chosen) == Reread(2 if chosen == EVERYTHING else 1, recovered=1)
    (call,) = rows(log.database, calls)
    (run,) = rows(log.database, handler_runs)
    delivery = rows(log.database, deliveries)[-1]
    assert (call.delivery_id, call.ended_at, call.prefetch_outcome) == (2, LATER, "fresh")
    assert (run.call_id, run.handler, run.state) == (call.id, "notify", "pending")
    assert (delivery.outcome, delivery.reason, delivery.session_id) == ("stored", None, "-s1")


@pytest.mark.both_databases
def test_the_result_is_that_of_a_fresh_call_log(log: Log, tmp_path: Path) -> None:
    sent = [unread(session_id) for session_id in ("-s1", "-s2", "-s1")]
    log.keep(*sent)
    log.reparse()
    (tmp_path / "fresh").mkdir()
    with opened(tmp_path / "fresh") as database:
        fresh = Log(database)
        for delivery, session_id in zip(sent, ("-s1", "-s2", "-s1"), strict=True):
            fresh.take(delivery._replace(outcome="stored", reason=None, session_id=session_id))
        assert everything(log) == everything(fresh)


@pytest.mark.both_databases
def test_a_call_that_was_handled_is_not_handled_again(log: Log) -> None:
    log.take(ended("-s1", at=LATER))
    runs = rows(log.database, handler_runs)
    log.keep(unread("-s1", at=NOW))
    log.write(update(calls).values(delivery_id=None, ended_at=None))
    log.reparse()
    assert rows(log.database, handler_runs) == runs


def test_handlers_that_came_later_change_nothing_of_a_call(log: Log) -> None:
    log.take(ended("-s1"))
    assert log.reparse(runs_for=lambda call: []) == Reread(1)
    assert [call.unhandled for call in rows(log.database, calls)] == [False]


def test_what_was_imported_gets_no_runs(log: Log) -> None:
    log.keep(unread("-s1", imported=True))
    log.reparse()
    assert [call.ended_at for call in rows(log.database, calls)] == [LATER]
    assert rows(log.database, handler_runs) == []


def bound(agent_id: str) -> Delivery:
    """An end-of-call by the secret of agent A that an older version could not read."""
    body = end_of_call_body(session_id="-s1", agent_id=agent_id)
    return unread("-s1", body=body, secret_agent="A")


@pytest.mark.parametrize(
    ("began", "ended_by", "outcome"),
    [("B", "A", "rejected"), ("A", "B", "rejected"), ("A", "A", "stored")],
)
def test_what_is_read_at_last_is_still_good_for_the_agent_of_its_secret_alone(
    log: Log, began: str, ended_by: str, outcome: str
) -> None:
    log.take(prefetched("-s1", prefetch_query(session_id="-s1", agent_id=began)))
    log.keep(bound(ended_by))
    is_good = outcome == "stored"
    assert log.reparse().recovered == is_good
    (call,) = rows(log.database, calls)
    assert (call.agent_id, call.ended_at) == (began, LATER if is_good else None)
    assert rows(log.database, deliveries)[-1].outcome == outcome
    assert len(rows(log.database, handler_runs)) == is_good


@pytest.mark.both_databases
def test_what_cannot_be_read_any_more_is_shown_as_unparsed(log: Log) -> None:
    log.take(ended("-s1"))
    log.write(update(deliveries).values(body=b"[]"))
    before = rows(log.database, calls)
    assert log.reparse() == Reread(1, unreadable=1)
    (delivery,) = rows(log.database, deliveries)
    assert (delivery.outcome, delivery.reason) == (
        "unparsed",
        "not a JSON object but a list of 0 items",
    )
    assert rows(log.database, calls) == before


@pytest.mark.both_databases
def test_a_delivery_that_nothing_can_be_derived_from_holds_up_no_other(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    def runs_for(call: EndOfCall) -> list[str]:
        if call.session_id == "-bad":
            raise ZeroDivisionError
        return [1 << 80] if call.session_id == "-worse" else []  # type: ignore[list-item]

    log.keep(*map(unread, ("-s1", "-bad", "-worse", "-s2")))
    assert log.reparse(runs_for=runs_for) == Reread(4, 2, 2)
    assert [call.session_id for call in rows(log.database, calls)] == ["-s1", "-s2"]
    assert "delivery 2 could not be processed" in caplog.text
    assert "delivery 3 could not be processed" in caplog.text


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reprocess, "STEP", 5)
    monkeypatch.setattr(processing, "CHUNK_DELIVERIES", 5)


@pytest.mark.both_databases
@pytest.mark.usefixtures("_small_steps")
def test_an_interrupted_one_continues_where_it_was(log: Log) -> None:
    log.take(*(ended(f"-s{number}") for number in range(7)))
    with writing(log.database) as writer:
        processor = Processor(log.database, writer, runs_for=lambda call: [])
        Reparse(log.database, EVERYTHING, version="1").put_back()
        assert processor.process_chunk(rereads) == 5
    going_on = Reparse(log.database, EVERYTHING, version="1")
    assert (going_on.is_resumed, going_on.total, going_on.waiting()) == (True, 2, 2)


@pytest.mark.both_databases
@pytest.mark.usefixtures("_small_steps")
def test_one_that_was_interrupted_while_putting_back_puts_back_the_rest(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.take(*(ended(f"-s{number}") for number in range(7)))
    with monkeypatch.context() as patched:
        patched.setattr(reprocess, "_write_place", _interrupt_after(reprocess._write_place))
        with pytest.raises(KeyboardInterrupt):
            Reparse(log.database, EVERYTHING, version="1").put_back()
    going_on = Reparse(log.database, EVERYTHING, version="1")
    going_on.put_back()
    assert (going_on.total, going_on.waiting()) == (7, 7)


def _interrupt_after(
    write_place: Callable[[Connection, list[object]], None],
) -> Callable[..., None]:
    steps = iter([write_place])

    def write(connection: Connection, place: list[object]) -> None:
        for step in steps:
            return step(connection, place)
        raise KeyboardInterrupt

    return write


@pytest.mark.parametrize(
    "other",
    [
        {"version": "2"},
        {"chosen": Chosen(unparsed=True)},
        {"own_numbers": frozenset({"+1"})},
        {"afresh": True},
    ],
)
def test_other_work_begins_at_the_beginning(log: Log, other: dict[str, Any]) -> None:
    log.take(*(ended(f"-s{number}") for number in range(7)))
    same: dict[str, Any] = {"chosen": Chosen(), "version": "1"}
    Reparse(log.database, **same).put_back()
    assert not Reparse(log.database, **same | other).is_resumed


@pytest.mark.both_databases
def test_one_that_has_ended_leaves_nothing_behind(log: Log) -> None:
    log.take(ended("-s1"))
    log.reparse()
    assert rows(log.database, keys) == rows(log.database, rereads) == []
    assert not Reparse(log.database, Chosen(), version="1").is_resumed


def test_a_removed_delivery_is_not_read_again(log: Log) -> None:
    log.take(ended("-s1"), ended("-s2"))
    Reparse(log.database, EVERYTHING, version="1").put_back()
    log.write(delete(handler_runs), delete(cost_items), delete(call_metadata), delete(calls))
    log.write(delete(deliveries).where(deliveries.c.id == 1))
    assert [row.delivery_id for row in rows(log.database, rereads)] == [2]


@pytest.mark.both_databases
def test_a_session_is_read_with_all_its_deliveries_and_no_other(log: Log) -> None:
    log.take(*mixed_deliveries())
    log.write(update(calls).values(turns=77))
    assert log.reparse(Chosen(session_id="-v2")) == Reread(3)
    assert sum(call.turns != 77 for call in rows(log.database, calls)) == 1


@pytest.mark.both_databases
def test_what_is_not_processed_yet_is_left_to_the_service(log: Log) -> None:
    log.take(prefetched("-s1"))
    with writing(log.database) as writer:
        asyncio.run(store(writer.store, [ended("-s1", at=LATER)]))
    with writing(log.database) as writer:
        work = Reparse(log.database, EVERYTHING, version="1")
        work.put_back()
        processor = Processor(log.database, writer, runs_for=lambda call: ["notify"])
        assert (work.total, processor.process_chunk(rereads)) == (1, 1)
    assert [row.delivery_id for row in rows(log.database, inbox)] == [2]
    log.take()
    assert len(rows(log.database, handler_runs)) == 1


@pytest.mark.both_databases
def test_what_the_service_does_meanwhile_is_not_undone(log: Log) -> None:
    log.take(ended("-s1"))
    meanwhile = [prefetched("-s1", at=NOW - timedelta(minutes=1), latency_ms=2.0)]

    def runs_for(_call: EndOfCall) -> list[str]:
        if meanwhile and log.database.is_file:
            log.take(meanwhile.pop())
        return []

    assert log.reparse(runs_for=runs_for) == Reread(1)
    log.take(*meanwhile)
    assert [call.prefetch_ms for call in rows(log.database, calls)] == [2.0]


def test_runs_are_for_the_handlers_that_were_written_down(log: Log) -> None:
    known = {"hook": "end_of_call", "max_attempts": 5, "timeout_s": 1.0, "repeatable": True}
    wanted = {"all": {}, "phone": {"channel": ["phone"]}, "web": {"channel": ["web"]}}
    log.write(
        *(
            insert(handlers).values(
                known | {"name": name, "filters": json.dumps(filters), "seen_at": NOW}
            )
            for name, filters in wanted.items()
        )
    )
    with log.database.reader.connect() as connection:
        runs_for = registered_runs(connection)
    assert runs_for(EndOfCall.parse(end_of_call_body())) == ["all", "phone"]


@pytest.mark.both_databases
def test_reading_again_while_calls_come_in_loses_and_doubles_nothing(log: Log) -> None:
    sessions = [
        (prefetched(f"-s{number}", latency_ms=1.0), ended(f"-s{number}", at=LATER))
        for number in range(20)
    ]

    def serve() -> None:
        for session in sessions[10:]:
            log.take(*session)

    log.take(*chain.from_iterable(sessions[:10]))
    with ThreadPoolExecutor(1) as service:
        done = service.submit(serve)
        while not done.done():
            log.reparse(runs_for=lambda call: [])
        done.result()
    assert len(rows(log.database, handler_runs)) == len(rows(log.database, calls)) == 20
    assert log.reparse() == Reread(40)


def run(log: Log, *arguments: str) -> Result:
    environment = {"MILLIS_HOOKS_DATABASE_URL": str(log.database.url)}
    return CliRunner().invoke(app, ["reparse", *arguments], env=environment)


def test_the_command_says_what_came_of_it(log: Log) -> None:
    log.take(ended("-s1"))
    log.keep(unread("-s2"), unread("-s3", body=b"{"))
    assert run(log).output == "Deliveries read: 3. Readable now: 1. Not readable: 1.\n"
    assert run(log, "--unparsed").output == "Deliveries read: 1. Not readable: 1.\n"
    assert run(log, "--session", "-s1").output == "Deliveries read: 1.\n"
    assert run(log, "--since", "2026-11-22").output == "Deliveries read: 0.\n"


def test_the_command_takes_no_session_that_is_not_there(log: Log) -> None:
    result = run(log, "--session", "-nobody")
    assert result.exit_code == 1
    assert "There is no delivery of session -nobody in the call log." in result.output


def test_the_command_reads_with_the_settings_there_are_now(log: Log) -> None:
    log.take(ended("-s1"))
    assert [call.direction for call in rows(log.database, calls)] == [None]
    environment = {
        "MILLIS_HOOKS_DATABASE_URL": str(log.database.url),
        "MILLIS_HOOKS_OWN_NUMBERS": OWN_PHONE,
    }
    assert CliRunner().invoke(app, ["reparse"], env=environment).exit_code == 0
    assert [call.direction for call in rows(log.database, calls)] == ["inbound"]


@pytest.mark.usefixtures("_small_steps")
def test_the_command_continues_where_it_was_stopped(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.take(*(ended(f"-s{number}") for number in range(7)))
    read = iter([True])

    def read_once(_database: Database, processor: Processor) -> None:
        if not next(read, False):
            raise KeyboardInterrupt
        processor.process_chunk(rereads)

    with monkeypatch.context() as patched:
        patched.setattr(maintenance, "_do_some", read_once)
        stopped = run(log)
    assert stopped.exit_code == 130
    assert "Stopped. Deliveries read: 5." in stopped.output
    gone_on = run(log)
    assert "Continuing where the last one was interrupted." in gone_on.output
    assert "Deliveries read: 2." in gone_on.output


@pytest.mark.both_databases
def test_a_service_that_runs_reads_again_for_the_command(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "SWEEP_S", 0.01)
    log.take(ended("-s1"))
    log.write(update(calls).values(turns=77))
    Reparse(log.database, EVERYTHING, version="1").put_back()
    with writing(log.database) as writer:
        service = Processor(log.database, writer, runs_for=lambda call: ["notify"])
        service.start()
        eventually(lambda: not rows(log.database, rereads))
        service.close()
    assert [call.turns for call in rows(log.database, calls)] != [77]

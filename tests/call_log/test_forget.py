"""What is known of a person goes, from every table and from the file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update
from typer.testing import CliRunner, Result

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.search import call_search
from millis_hooks.call_log.tables import calls, deliveries, handler_runs, inbox, metadata
from millis_hooks.call_log.upkeep import removal
from millis_hooks.call_log.upkeep.removal import Matches, Removal, writing_by
from millis_hooks.cli.commands import app
from millis_hooks.protocol.samples import OWN_PHONE, end_of_call_body, prefetch_query
from support.databases import url_in
from support.storage import ended, opened, prefetched, rows, writing

DIGITS = "4930901820"
NUMBER, OTHER = f"+{DIGITS}", "+33142685300"
#: Said once, and in letters that nothing else is written in.
WORD = "ⴽⴰⵎⵉⵍⵢⴰ"

Run = Callable[..., Result]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    return lambda *args, **options: CliRunner().invoke(app, ["forget", *args], **options)


def receive(database: Database, *batch: Delivery, handlers: tuple[str, ...] = ()) -> None:
    """Store and process what a service would."""

    async def store() -> None:
        for delivery in batch:
            await writer.store(delivery)

    with writing(database) as writer:
        asyncio.run(store())
        processor = Processor(database, writer, runs_for=lambda call: handlers)
        while processor.process_chunk():
            pass


def body(session_id: str, phone: str | None, *said: str) -> bytes:
    payload = json.loads(end_of_call_body(session_id=session_id, from_phone=phone))
    payload["chat"] = [{"role": "user", "content": line} for line in said]
    return json.dumps(payload, ensure_ascii=False).encode()


def whole_call(session_id: str, phone: str, *said: str) -> list[Delivery]:
    query = prefetch_query(session_id=session_id, from_phone=phone, metadata={"callback": phone})
    return [prefetched(session_id, query), ended(session_id, body(session_id, phone, *said))]


def of_nobody(delivery: Delivery) -> Delivery:
    """Return the delivery as one that names no session."""
    return delivery._replace(session_id=None)


def find(database: Database, number: str = NUMBER) -> Matches:
    return removal.find_number(database.reader, number)


def forget(database: Database, found: Matches) -> Removal:
    return sum(removal.forget(writing_by(database.writer), found), Removal())


def everything(database: Database) -> str:
    """Return all that stands in any table, bytes as text."""
    tables = [*metadata.sorted_tables, call_search]
    with database.reader.connect() as connection:
        found = [
            value for table in tables for row in connection.execute(select(table)) for value in row
        ]
    return "\n".join(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        for value in found
    )


def in_file(database: Database, wanted: str) -> bool:
    """Tell whether the bytes of a text are in any of the log's files."""
    files = database.path.parent.glob(f"{database.path.name}*")
    return any(wanted.encode() in file.read_bytes() for file in files)


@pytest.mark.parametrize("spelling", [NUMBER, DIGITS, "+49 (30) 90-18/20", " +49.30.901820 "])
def test_a_number_is_found_in_any_spelling(database: Database, spelling: str) -> None:
    receive(database, *whole_call("-s1", NUMBER), *whole_call("-s2", OTHER))
    assert removal.is_number(spelling)
    assert find(database, spelling).session_ids == ("-s1",)


@pytest.mark.parametrize("column", ["from_phone", "to_phone", "customer_phone"])
def test_a_call_is_found_by_each_of_its_numbers(database: Database, column: str) -> None:
    receive(database, *whole_call("-s1", OTHER), *whole_call("-s2", OTHER))
    with database.writer.begin() as connection:
        stored = {column: "0049 30 901820"[2:]}
        connection.execute(update(calls).where(calls.c.session_id == "-s1").values(stored))
    assert find(database).session_ids == ("-s1",)


@pytest.mark.parametrize(
    "query", ["session_id=-s1&note=call+%2B49+30+901820", "session_id=-s1&from=+4930901820"]
)
def test_a_prefetch_that_names_the_number_is_found(database: Database, query: str) -> None:
    receive(database, prefetched("-s1", query), ended("-s1", body("-s1", None)))
    assert find(database).session_ids == ("-s1",)


@pytest.mark.both_databases
def test_what_belongs_to_no_session_is_found_by_its_text(database: Database) -> None:
    unread = f'{{"from": "{NUMBER}"'.encode()
    receive(
        database,
        of_nobody(ended("", unread, outcome="unparsed")),
        of_nobody(ended("", b'"+49309018201"', outcome="unparsed")),
        of_nobody(prefetched("", f"from={NUMBER}")),
    )
    found = find(database)
    assert found == Matches((), (1, 3))
    assert forget(database, found) == Removal(deliveries=2)
    assert [row.id for row in rows(database, deliveries)] == [2]


@pytest.mark.both_databases
def test_metadata_that_names_the_number_finds_its_call(database: Database) -> None:
    sent = end_of_call_body(
        session_id="-s1", from_phone=None, to_phone=None, metadata={"callback": NUMBER}
    )
    receive(database, ended("-s1", sent), *whole_call("-s2", OTHER))
    assert find(database).session_ids == ("-s1",)


@pytest.mark.both_databases
def test_nothing_of_the_number_is_left_in_any_table(database: Database) -> None:
    receive(
        database,
        *whole_call("-s1", NUMBER, WORD),
        *whole_call("-s2", OTHER, "Hello."),
        *whole_call("-s3", NUMBER),
        handlers=("notify",),
    )
    end_runs(database)
    assert DIGITS in everything(database)
    found = find(database)
    planned = removal.plan_forgetting(database.reader, found)
    assert forget(database, found) == planned == Removal(2, 4, 2, 2)
    assert not [gone for gone in (DIGITS, WORD, "-s1", "-s3") if gone in everything(database)]
    assert [call.session_id for call in rows(database, calls)] == ["-s2"]


def end_runs(database: Database) -> None:
    with database.writer.begin() as connection:
        connection.execute(update(handler_runs).values(state="succeeded"))


def test_nothing_of_it_is_left_in_the_file(database: Database) -> None:
    with database.writer.begin() as connection:
        connection.execute(text("PRAGMA secure_delete=OFF"))
    receive(database, *whole_call("-s1", NUMBER, WORD), *whole_call("-s2", OTHER, "Hello."))
    pieces = [WORD[start : start + 3] for start in range(len(WORD) - 2)]
    found = find(database)
    assert in_file(database, DIGITS)
    assert any(piece[1:] in indexed(database) for piece in pieces)
    forget(database, found)
    list(removal.rewrite_search_index(writing_by(database.writer)))
    assert removal.empty_wal(database.writer)
    assert not [piece for piece in pieces if piece[1:] in indexed(database)]
    assert not in_file(database, DIGITS)
    assert not in_file(database, WORD)


def indexed(database: Database) -> str:
    """Return what the search index has in its pages."""
    with database.reader.connect() as connection:
        pages = connection.execute(text("SELECT block FROM call_search_data")).scalars()
        return b"".join(pages).decode("utf-8", "replace")


def test_a_search_still_finds_the_others(database: Database) -> None:
    receive(database, *whole_call("-s1", NUMBER, "Bonjour"), *whole_call("-s2", OTHER, "Bonsoir"))
    forget(database, find(database))
    list(removal.rewrite_search_index(writing_by(database.writer)))
    with database.reader.connect() as connection:
        found = connection.execute(
            text("SELECT folded FROM call_search WHERE call_search MATCH 'bon'")
        ).scalars()
        assert ["bonsoir" in each for each in found] == [True]
        connection.exec_driver_sql("SELECT 1")


def test_the_wal_cannot_be_emptied_while_someone_reads_from_it(database: Database) -> None:
    receive(database, *whole_call("-s1", NUMBER))
    with database.reader.connect() as connection:
        connection.execute(select(calls)).all()
        receive(database, *whole_call("-s2", NUMBER))
        assert not removal.empty_wal(database.writer)
    assert removal.empty_wal(database.writer)


@pytest.mark.both_databases
def test_other_sessions_in_which_it_is_spoken_of_are_named(database: Database) -> None:
    receive(
        database, *whole_call("-s1", NUMBER), *whole_call("-s2", OTHER, f"Call {DIGITS} instead.")
    )
    found = find(database)
    assert found.session_ids == ("-s1",)
    assert removal.mentions(database.reader, NUMBER, found) == ("-s2",)


@pytest.mark.parametrize("who", ["-s1", "12345", "", "+", "4930x901820"])
def test_a_text_that_is_not_a_number_is_reported(who: str) -> None:
    assert not removal.is_number(who)


def test_a_session_is_forgotten_by_its_id(database: Database, run: Run) -> None:
    receive(database, *whole_call("-s1", NUMBER, WORD), *whole_call("-s2", NUMBER))
    result = run("-s1", "--yes")
    assert result.exit_code == 0
    assert "Removed: 1 call, 2 webhook deliveries.\n" in result.stdout
    assert [call.session_id for call in rows(database, calls)] == ["-s2"]
    assert not in_file(database, WORD)


@pytest.mark.both_databases
def test_a_dry_run_lists_what_would_go(database: Database, run: Run) -> None:
    receive(database, *whole_call("-s1", NUMBER), *whole_call("-s2", OTHER, f"It is {DIGITS}."))
    result = run(NUMBER, "--dry-run")
    assert "Stored about it: 1 call, 2 webhook deliveries.\n  -s1\n" in result.stdout
    assert "Other sessions mention it, and stay:\n  -s2\n" in result.stderr
    assert len(rows(database, calls)) == 2


def test_what_is_not_done_stays_and_is_reported(database: Database, run: Run) -> None:
    receive(database, *whole_call("-s1", NUMBER), handlers=("notify",))
    receive(database, *whole_call("-s2", NUMBER))
    result = run(NUMBER, "--yes")
    assert result.exit_code == 1
    assert "Kept for now: 1" in result.stderr
    assert "Not everything is forgotten." in result.stderr
    assert [call.session_id for call in rows(database, calls)] == ["-s1"]


def test_a_delivery_that_is_not_processed_stays_and_is_reported(
    database: Database, run: Run
) -> None:
    receive(database, of_nobody(prefetched("", f"from={NUMBER}")))
    with database.writer.begin() as connection:
        connection.execute(insert(inbox), {"delivery_id": 1})
    assert "Not everything is forgotten." in run(NUMBER, "--yes").stderr
    assert len(rows(database, deliveries)) == 1


def test_what_an_interrupted_command_left_in_the_file_a_vacuum_removes(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[None]:
        yield
        raise KeyboardInterrupt

    receive(database, *whole_call("-s1", NUMBER, WORD), *whole_call("-s2", OTHER))
    with monkeypatch.context() as patched:
        patched.setattr("millis_hooks.cli.maintenance.rewrite_search_index", interrupted)
        result = run(NUMBER, "--yes")
    assert result.exit_code == 130
    assert "millis-hooks vacuum removes it" in result.stderr
    assert WORD[1:3] in indexed(database)
    CliRunner().invoke(app, ["vacuum"])
    assert WORD[1:3] not in indexed(database)


def test_what_the_service_may_remember_and_the_file_may_keep_is_reported(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_PREFETCH_FALLBACK", "last_good")
    monkeypatch.setattr("millis_hooks.cli.maintenance._PAUSE_S", 0.0)
    monkeypatch.setattr("millis_hooks.cli.maintenance._TRIES", 1)
    receive(database, *whole_call("-s1", NUMBER))
    with database.reader.connect() as connection:
        connection.execute(select(calls)).all()
        told = run(NUMBER, "--yes").stderr
    assert "(last_good): restart it" in told
    assert "the -wal file keeps old pages" in told


def test_where_simulated_calls_are_kept_is_reported(database: Database, run: Run) -> None:
    assert "rehearsed" not in run(NUMBER, "--yes").stderr
    file = database.path.with_name(f"{database.path.stem}-sandbox.db")
    file.touch()
    assert str(file) in run(NUMBER, "--yes").stderr.replace("\n", "")


def test_ones_own_number_is_in_every_call_and_is_refused(
    database: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_OWN_NUMBERS", OWN_PHONE)
    receive(database, *whole_call("-s1", NUMBER))
    result = run(OWN_PHONE, "--yes")
    assert result.exit_code == 2
    assert "OWN_NUMBERS" in result.stderr
    assert len(rows(database, calls)) == 1


def test_forget_asks_before_it_deletes(database: Database, run: Run) -> None:
    receive(database, *whole_call("-s1", NUMBER))
    assert run(NUMBER).exit_code == 2
    assert len(rows(database, calls)) == 1


def test_what_is_not_known_is_said(database: Database, run: Run) -> None:
    assert "There is no session -s9" in run("-s9").stderr
    assert "Stored about it: nothing." in run(NUMBER, "--yes").stdout
    assert "have a country code" in run("(030) 90 18 20", "--yes").stderr


def test_a_number_is_found_as_it_is_dialled_from_abroad(database: Database, run: Run) -> None:
    receive(database, *whole_call("-s1", NUMBER))
    assert "1 call" in run("0049 (0)30 90 18 20", "--dry-run").stdout

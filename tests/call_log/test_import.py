"""`import`: what comes back is what went out, once, and calls nobody's handlers."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Table, select
from typer.testing import CliRunner, Result

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.results import results_of
from millis_hooks.call_log.search import call_search
from millis_hooks.call_log.tables import (
    call_metadata,
    calls,
    cost_items,
    deliveries,
    drift,
    handler_runs,
    inbox,
)
from millis_hooks.call_log.transfer.import_ import Importer, entries, read_call, read_documents
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import PayloadError
from millis_hooks.protocol.samples import VINTAGES, end_of_call_body, prefetch_query
from support import programs
from support.databases import url_in
from support.storage import NOW, ended, opened, prefetched, rows, writing

#: What a log says of itself and not of its calls.
OWN = {"id", "delivery_id", "call_id", "unhandled", "imported"}

Run = Callable[..., Result]


@pytest.fixture
def run(log: Database, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the log; text is typed into it."""
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", str(log.url))
    return lambda *args, typed=b"": CliRunner().invoke(app, args, input=typed)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Database]:
    """An empty call log."""
    folder = tmp_path / "into"
    folder.mkdir()
    with opened(folder) as database:
        yield database


def receive(folder: Path, batch: Sequence[Delivery]) -> None:
    """Make a call log that has received `batch`, and handled every call."""
    with opened(folder) as database, writing(database) as writer:
        writer.run(lambda connection: insert_deliveries(connection, batch))
        processor = Processor(database, writer, runs_for=lambda call: ["notify"])
        while processor.process_chunk():
            pass


def of_every_kind() -> list[Delivery]:
    """Deliveries of all vintages, in order and not, repeated, changed, broken and refused."""
    batch = []
    for number, vintage in enumerate(VINTAGES):
        session = f"-{vintage}"
        query = prefetch_query(vintage, session_id=session, metadata={"plan": "gold"})
        body = end_of_call_body(vintage, session_id=session, metadata={"plan": "gold"})
        batch.append(prefetched(session, query, latency_ms=number + 0.5, answer=b"{}"))
        batch.append(ended(session, body, at=NOW + timedelta(seconds=9), answer=b"\xff"))
    batch.append(ended("-v2", batch[5].body, at=NOW + timedelta(seconds=10)))
    batch.append(ended("-v2", end_of_call_body(session_id="-v2", duration_s=7)))
    batch.append(prefetched("-live", reason="crm: é", outcome="late"))
    broken: Any = {"outcome": "unparsed", "reason": "not JSON"}
    batch.append(ended("", b"\x00\xfe", **broken)._replace(session_id=None))
    batch.append(ended("-lost", b"[]", redacted=True, query="a=b", content_type="x/y", **broken))
    refused = Delivery(
        "prefetch", NOW, "rejected", 401, reason="no secret", answer=b'{"error":"x"}'
    )
    return [*batch, refused]


def said(database: Database, table: Table) -> list[tuple[Any, ...]]:
    """What the rows of a table say of calls, in an order of its own."""
    columns = [column for column in table.c if column.name not in OWN]
    with database.reader.connect() as connection:
        found = connection.execute(select(*columns)).all()
    return sorted((tuple(row) for row in found), key=repr)


def searched(database: Database) -> list[tuple[Any, ...]]:
    text = select(calls.c.session_id, call_search.c.folded).join(
        call_search, call_search.c.rowid == calls.c.id
    )
    with database.reader.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(text))


def exported(folder: Path, batch: Sequence[Delivery]) -> Path:
    """What `export --raw` makes of a log that has received `batch`."""
    receive(folder, batch)
    file = folder / "calls.jsonl"
    env = {"MILLIS_HOOKS_DATABASE_URL": url_in(folder)}
    made = CliRunner().invoke(app, ["export", str(file), "--raw"], env=env)
    assert made.exit_code == 0, made.output
    return file


def entry(session_id: str = "-m1", **fields: Any) -> dict[str, Any]:
    """An entry of Millis' call logs."""
    call: dict[str, Any] = json.loads(end_of_call_body(session_id=session_id, started_at=NOW))
    return call | fields


@pytest.mark.both_databases
def test_what_went_out_comes_back_as_it_was(run: Run, log: Database, tmp_path: Path) -> None:
    batch = of_every_kind()
    imported = run("import", str(exported(tmp_path, batch)))
    assert imported.exit_code == 0, imported.output
    with opened(tmp_path) as original:
        for table in (calls, cost_items, call_metadata, drift, deliveries):
            assert said(log, table) == said(original, table), table.name
        assert searched(log) == searched(original)
    assert len(rows(log, deliveries)) == len(batch)
    assert rows(log, inbox) == []


@pytest.mark.both_databases
def test_a_second_time_brings_nothing(run: Run, log: Database, tmp_path: Path) -> None:
    file = exported(tmp_path, of_every_kind())
    run("import", str(file))
    before = said(log, deliveries), said(log, calls)
    again = run("import", str(file))
    assert again.stdout == "Deliveries imported: 0; in the log already: 16.\n"
    assert (said(log, deliveries), said(log, calls)) == before


@pytest.mark.both_databases
def test_results_are_imported_with_their_call(run: Run, log: Database) -> None:
    results = {"booked": True, "people": 4, "score": 4.5, "note": "window", "table": None}
    stored = [{"handler": "book", "name": name, "value": value} for name, value in results.items()]
    body = end_of_call_body(session_id="-a").decode()
    line = json.loads(delivered(session_id="-a", body_text=body)) | {"results": stored}
    for _ in range(2):
        imported = run("import", "-", typed=json.dumps(line))
        assert imported.exit_code == 0, imported.output
    with log.reader.connect() as connection:
        (found,) = results_of(connection, [row.id for row in rows(log, calls)]).values()
    assert {each.name: each.value for each in found} == results


@pytest.mark.parametrize("value", [[], {"a": 1}, 10**400, "x" * 501])
def test_a_result_that_no_handler_could_have_returned_is_refused(run: Run, value: object) -> None:
    line = json.loads(delivered()) | {"results": [{"handler": "a", "name": "b", "value": value}]}
    imported = run("import", "-", typed=json.dumps(line))
    assert imported.exit_code == 1
    assert "line 1: results.0.value" in imported.stderr


def test_no_handler_is_called_for_what_is_imported(run: Run, log: Database, tmp_path: Path) -> None:
    run("import", str(exported(tmp_path, of_every_kind())))
    assert {row.imported for row in rows(log, deliveries)} == {True}
    assert rows(log, handler_runs) == []


def test_nor_by_a_service_that_comes_first(log: Database) -> None:
    with writing(log) as writer:
        batch = [ended("-past", imported=True), ended("-now")]
        writer.run(lambda connection: insert_deliveries(connection, batch))
        processor = Processor(log, writer, runs_for=lambda call: ["notify"])
        while processor.process_chunk():
            pass
    past, now = rows(log, calls)
    assert past.session_id == "-past"
    assert [row.call_id for row in rows(log, handler_runs)] == [now.id]


#: The command in small batches, killed before its third.
KILLED = """
import os, signal
from itertools import count
from millis_hooks.call_log.transfer import import_
from millis_hooks.cli import main

import_._DELIVERIES = 10
batches, store = count(1), import_._store

def kill_or_go_on(*arguments):
    if next(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return store(*arguments)

import_._store = kill_or_go_on
main()
"""


def test_an_import_that_was_killed_continues(run: Run, log: Database, tmp_path: Path) -> None:
    batch = [ended(f"-{n}", at=NOW + timedelta(seconds=n)) for n in range(40)]
    file = exported(tmp_path, batch)
    variables = {"MILLIS_HOOKS_DATABASE_URL": str(log.url)}
    killed = programs.run(["-c", KILLED, "import", str(file)], variables=variables)
    assert killed.returncode == -signal.SIGKILL
    assert len(rows(log, deliveries)) == 20
    assert run("import", str(file)).exit_code == 0
    with writing(log) as writer:  # what was stored and not processed is for the service to do
        while Processor(log, writer, runs_for=lambda call: ()).process_chunk():
            pass
    assert len(rows(log, deliveries)) == len(rows(log, calls)) == 40


@pytest.mark.parametrize(
    "wrap",
    [
        lambda calls: "\n".join(json.dumps(call) for call in calls),
        lambda calls: json.dumps(calls),
        lambda calls: json.dumps(calls, indent=2),
        lambda calls: json.dumps({"histories": calls, "next_cursor": 1.5}, indent=4),
        lambda calls: json.dumps({"items": calls, "pagination": {"success": True}}),
    ],
    ids=["lines", "list", "list over lines", "call logs", "call histories"],
)
def test_entries_of_millis_call_logs_become_calls(
    run: Run, log: Database, wrap: Callable[[list[dict[str, Any]]], str]
) -> None:
    text = wrap([entry("-m1"), entry("-m2", duration=60)])
    assert run("import", "-", typed=text).stdout.startswith("Deliveries imported: 2;")
    first, second = rows(log, calls)
    assert (first.session_id, first.outcome, first.duration_s) == ("-m1", "completed", 41)
    assert (second.received_at, second.started_at) == (NOW + timedelta(seconds=60), NOW)
    assert run("import", "-", typed=text).stdout.endswith("in the log already: 2.\n")


def test_an_entry_of_a_call_that_is_not_over_is_left_out(run: Run, log: Database) -> None:
    told = run("import", "-", typed=json.dumps(entry(call_status="in-progress"))).stdout
    assert told.endswith("Calls in progress, left out: 1.\n")
    assert rows(log, deliveries) == []


@pytest.mark.parametrize("when", [{"ts": None}, {"ts": 4e9}])
def test_an_entry_without_a_time_is_of_now(run: Run, log: Database, when: dict[str, Any]) -> None:
    before = datetime.now(UTC)
    run("import", "-", typed=json.dumps(entry(**when)))
    (call,) = rows(log, calls)
    assert before <= call.received_at <= datetime.now(UTC)


@pytest.mark.both_databases
def test_an_entry_of_a_call_that_came_by_webhook_adds_to_it(run: Run, log: Database) -> None:
    with writing(log) as writer:
        batch = [ended("-m1", end_of_call_body(session_id="-m1", duration_s=7))]
        writer.run(lambda connection: insert_deliveries(connection, batch))
        processor = Processor(log, writer, runs_for=lambda call: ())
        while processor.process_chunk():
            pass
    run("import", "-", typed=json.dumps(entry("-m1")))
    assert len(rows(log, deliveries)) == 2
    assert [call.duration_s for call in rows(log, calls)] == [41]


def test_lines_that_cannot_be_read_are_reported_and_the_others_imported(
    run: Run, log: Database
) -> None:
    good = json.dumps(entry())
    typed = "\n".join(["{", good, "", "[1, 2]", "{}", '{"a"', '"x"', "nul", good])
    told = run("import", "-", typed=typed.replace("{\n", "oh\n", 1))
    assert told.exit_code == 1
    assert told.stdout == "Deliveries imported: 1; in the log already: 1.\n"
    counted, *lines, more = told.stderr.splitlines()
    assert counted == "Could not be read, and left out: 7"
    assert lines[0].startswith("  the standard input, line 1: not JSON")
    assert lines[1] == "  the standard input, line 4: not a call but the number 1"
    assert lines[3] == "  the standard input, line 5: neither a session_id nor a call_id"
    assert more == "  …"


def delivered(**fields: Any) -> bytes:
    """A line of ours, of one delivery."""
    known = {
        "kind": "end_of_call",
        "received_at": NOW.isoformat(),
        "outcome": "stored",
        "status_code": 200,
    }
    line = {"format": "millis-hooks-call/1", "masked": False, "deliveries": [known | fields]}
    return json.dumps(line).encode()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"kind": "beginning"},
            "deliveries.0.kind: Input should be 'prefetch', 'function' or 'end_of_call'",
        ),
        ({"received_at": "0001-01-01T00:00:00+14:00"}, "deliveries.0.received_at: Input should be"),
        ({"outcome": "good"}, "deliveries.0.outcome: Input should be"),
        ({"body": "x"}, "deliveries.0.body: Extra inputs are not permitted"),
        ({"kind": "prefetch", "answer_text": "{"}, "not JSON"),
        ({"body_base64": 7}, "deliveries.0.body_base64:"),
        ({"body_base64": "%"}, "deliveries.0.body_base64:"),
    ],
)
def test_a_line_of_ours_that_was_changed_is_refused(
    run: Run, log: Database, fields: dict[str, object], why: str
) -> None:
    refused = run("import", "-", typed=delivered(**fields))
    assert refused.exit_code == 1
    assert f"line 1: {why}" in refused.stderr
    assert rows(log, deliveries) == []


def test_of_another_format_or_masked_is_refused(run: Run) -> None:
    newer = delivered().replace(b"call/1", b"call/2")
    masked = delivered().replace(b"false", b"true")
    told = run("import", "-", typed=newer + b"\n" + masked).stderr
    assert "line 1: format: Input should be 'millis-hooks-call/1'" in told
    assert "line 2: it is masked; export with --raw what is to be imported" in told


@pytest.mark.both_databases
def test_text_that_no_database_takes_is_cleaned(run: Run, log: Database) -> None:
    typed = delivered(session_id="a\0b", reason="\ud800", body_text="{}")
    assert run("import", "-", typed=typed).exit_code == 0
    (row,) = rows(log, deliveries)
    assert row.session_id == "a�b"


def test_what_is_redacted_before_it_is_stored_is_so_here_too(
    run: Run, log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_REDACT_BEFORE_STORE", "true")
    text = json.dumps(entry())
    run("import", "-", typed=text)
    assert (
        run("import", "-", typed=text).stdout == "Deliveries imported: 0; in the log already: 1.\n"
    )
    (row,) = rows(log, deliveries)
    assert row.redacted
    assert b"table for two" not in row.body


def test_what_is_interrupted_says_how_far_it_came(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Importer, "take", interrupt)
    stopped = run("import", "-", typed=json.dumps(entry()))
    assert stopped.exit_code == 130
    assert "Stopped. Deliveries imported: 0" in stopped.stderr


def test_a_file_that_is_not_there_is_reported(run: Run) -> None:
    told = run("import", "nothing.jsonl")
    assert (told.exit_code, told.stderr) == (
        1,
        "Error: nothing.jsonl cannot be read: No such file or directory.\n",
    )
    assert ". cannot be read: Is a directory." in run("import", ".").stderr


def test_documents_that_are_too_long_are_skipped_whole() -> None:
    text = b"1\n" + b"x" * 25 + b"\n\n2\n" + b"y" * 25
    found = list(read_documents(BytesIO(text), max_bytes=10))
    assert [(each.line, each.text) for each in found] == [
        (1, b"1\n"),
        (2, None),
        (4, b"2\n"),
        (5, None),
    ]
    assert sum(each.size for each in found) == len(text) - 1  # but for the blank line


def test_a_file_that_is_one_value_may_be_too_long_as_well() -> None:
    (whole,) = read_documents(BytesIO(b"[\n" + b"1," * 20), max_bytes=10)
    assert whole.text is None


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NAMES = ["session_id", "format", "deliveries", "kind", "ts", "histories", "body_text", "masked"]


@given(st.dictionaries(st.sampled_from(NAMES), Json | st.just("end_of_call")))
def test_whatever_a_line_holds_is_taken_or_refused(line: dict[str, Any]) -> None:
    for value in entries(json.dumps(line).encode()):
        with suppress(PayloadError):
            read_call(value, NOW)


FIELDS = ["session_id", "received_at", "status_code", "latency_ms", "query", "body_base64"]


@given(st.dictionaries(st.sampled_from(FIELDS), Json))
def test_whatever_a_delivery_holds_is_taken_or_refused(fields: dict[str, Any]) -> None:
    for value in entries(delivered(**fields)):
        with suppress(PayloadError):
            read_call(value, NOW)

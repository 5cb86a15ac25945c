"""`export`: what goes out, in which form, and what is hidden of it."""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, insert
from typer.testing import CliRunner, Result

from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.tables import call_metadata, calls
from millis_hooks.call_log.transfer.export import guarded, read_calls, select_calls
from millis_hooks.cli.commands import app
from millis_hooks.cli.common import new_file
from millis_hooks.protocol.samples import end_of_call_body
from support.databases import url_in
from support.programs import SCRIPT, on_a_terminal
from support.stored_calls import NOW, StoredCalls

PHONE = "+14155550134"
SESSION = "-OA1XVnw"

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the call log in an empty folder."""
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    return lambda *args: CliRunner().invoke(app, args)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    stored = StoredCalls(tmp_path)
    yield stored
    stored.database.close()


def table(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def received(log: StoredCalls, body: bytes, **columns: Any) -> None:
    """A call, and the delivery it was told by."""
    log.add_call(SESSION)
    log.add_delivery(session_id=SESSION, body=body, **columns)


def test_csv_has_a_row_for_each_call_the_first_received_first(run: Run, log: StoredCalls) -> None:
    log.add_call("-later", minutes_ago=5)
    log.add_call(
        "-first", minutes_ago=9, duration_s=41.5, opted_out=True, snippet='"Hi",\r\nhe said'
    )
    first, later = table(run("export").stdout_bytes)
    assert (first["session_id"], later["session_id"]) == ("-first", "-later")
    assert first["received_at"] == "2026-11-21T14:11:00+00:00"
    assert (first["duration_s"], first["opted_out"]) == ("41.5", "true")
    assert first["snippet"] == '"Hi",\r\nhe said'
    assert later["duration_s"] == ""


def test_csv_is_as_rfc_4180_has_it(run: Run, log: StoredCalls) -> None:
    log.add_call(snippet='a "b", ü')
    heads, row = run("export").stdout_bytes.removesuffix(b"\r\n").split(b"\r\n")
    assert heads.startswith(b"session_id,received_at,")
    assert ',"a ""b"", ü",'.encode() in row


def test_csv_for_excel_has_a_byte_order_mark_and_ids_and_numbers_as_text(
    run: Run, log: StoredCalls
) -> None:
    log.add_call("-Ox1a", from_phone="+14155550134", call_id="012345", snippet="=1+1")
    assert not run("export").stdout.startswith("\ufeff")
    assert run("export", "--bom").stdout == "\ufeff" + run("export").stdout
    text = run("export", "--excel").stdout
    assert text.startswith("\ufeff")
    (row,) = csv.DictReader(text[1:].splitlines())
    assert [row[name] for name in ("session_id", "from_phone", "call_id", "snippet")] == [
        '="-Ox1a"', '="+14155550134"', '="012345"', "'=1+1",
    ]  # fmt: skip
    (row,) = csv.DictReader(run("export").stdout.splitlines())
    assert (row["session_id"], row["from_phone"]) == ("-Ox1a", "+14155550134")
    assert "--bom is for --format csv" in run("export", "--bom", "--format", "jsonl").stderr


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "-1+1|cmd",
        "-A1-B2",
        "-AB12",
        "-1-2",
        "+1+1",
        "@SUM(A1)",
        "\t=1",
        " =1",
        "\r=1",
        "'quoted",
        "＝1",
        "+49 30=x",
    ],
)
def test_what_a_spreadsheet_may_take_for_a_formula_is_guarded(text: str) -> None:
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", [PHONE, "+1415•••••34", SESSION, "-Ox_1-x", "-A1-Bx", "", "Hi", "a=b"]
)
def test_numbers_ids_and_plain_words_stay_as_they_are(text: str) -> None:
    assert guarded(text) == text


@given(st.text(alphabet="'=+-@\t\r\n 1aÄ(|\u200b＝"))
def test_a_program_that_takes_a_leading_apostrophe_away_has_the_text(text: str) -> None:
    assert guarded(text).removeprefix("'") == text


@pytest.mark.both_databases
def test_jsonl_has_a_call_on_each_line_with_what_was_received(run: Run, log: StoredCalls) -> None:
    received(log, b'{"session_id": "x"}', answer=b"{}", latency_ms=1.5)
    (line,) = lines(run("export", "--format", "jsonl", "--raw").stdout)
    assert line["format"] == "millis-hooks-call/1"
    assert (line["session_id"], line["masked"]) == (SESSION, False)
    (delivery,) = line["deliveries"]
    assert delivery["body_text"] == '{"session_id": "x"}'
    assert (delivery["answer_text"], delivery["latency_ms"]) == ("{}", 1.5)


def test_binary_bodies_are_exported_in_base64(run: Run, log: StoredCalls) -> None:
    log.add_delivery(body=b"\xff\x00", outcome="unparsed", reason="not JSON")
    (line,) = lines(run("export", "--format", "jsonl", "--raw").stdout)
    assert line["session_id"] is None
    assert line["deliveries"][0]["body_base64"] == "/wA="


@pytest.mark.both_databases
def test_calls_with_much_to_read_are_read_in_parts(run: Run, log: StoredCalls) -> None:
    for number in range(3):
        log.add_call(f"-{number}")
        log.add_delivery(session_id=f"-{number}", body=b"%d" % number * 3_000_000)
    found = lines(run("export", "--format", "jsonl", "--raw").stdout)
    bodies = [line["deliveries"][0]["body_text"][:1] for line in found]
    assert bodies == ["0", "1", "2"]


def test_secrets_are_hidden_unless_someone_asks_for_everything(run: Run, log: StoredCalls) -> None:
    body = {"session_id": SESSION, "agent_config": {"tools": [{"header": {"X": "hush"}}]}}
    received(log, json.dumps(body).encode())
    asked = {"query": "token=hush&tier=gold", "answer": b'{"metadata":{"api_key":"hush"}}'}
    log.add_delivery("prefetch", session_id=SESSION, outcome="fresh", **asked)
    log.add_delivery(session_id=SESSION, body=b"password: hush")
    masked = run("export", "--format", "jsonl").stdout
    assert "hush" not in masked
    assert "tier=gold" in masked
    assert lines(masked)[0]["masked"] is True
    assert run("export", "--format", "jsonl", "--raw").stdout.count("hush") == 4


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_numbers_and_words_are_hidden_as_the_settings_say(
    run: Run, log: StoredCalls, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_MASK_NUMBERS", "partial")
    monkeypatch.setenv("MILLIS_HOOKS_MASK_TEXT", "full")
    log.add_call(SESSION, from_phone=PHONE, snippet="a table for two")
    body = end_of_call_body(session_id=SESSION, from_phone=PHONE)
    log.add_delivery(session_id=SESSION, body=body, reason=f"no customer {PHONE}")
    told = run("export", "--format", form).stdout
    assert PHONE not in told
    assert "table for two" not in told
    assert "+1415•••••34" in told


def test_everything_is_for_jsonl_alone(run: Run, log: StoredCalls) -> None:
    refused = run("export", "--raw")
    assert refused.exit_code == 2
    assert "--raw is for --format jsonl" in refused.stderr


def interrupted(*_: object, **__: object) -> Iterator[Any]:
    raise KeyboardInterrupt
    yield


def test_a_file_is_for_its_owner_and_is_not_replaced_by_mistake(
    run: Run, log: StoredCalls, tmp_path: Path
) -> None:
    log.add_call()
    file = tmp_path / "calls.jsonl"
    assert run("export", str(file)).stderr == "Calls exported: 1.\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_text()
    log.add_call("-another")
    refused = run("export", str(file))
    assert (refused.exit_code, file.read_text()) == (1, before)
    assert "Add --force" in refused.stderr
    run("export", str(file), "--force")
    assert len(lines(file.read_text())) == 2


def test_an_export_that_was_interrupted_leaves_no_file(
    run: Run, log: StoredCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.add_call()
    monkeypatch.setattr("millis_hooks.cli.transfer.read_calls", interrupted)
    stopped = run("export", "calls.csv")
    assert (stopped.exit_code, stopped.stderr) == (130, "Error: Stopped after 0 of 1.\n")
    assert list(tmp_path.glob("calls*")) == []


def test_an_export_replaces_only_files(run: Run, log: StoredCalls, tmp_path: Path) -> None:
    assert f"{tmp_path} is not a file" in run("export", str(tmp_path), "--force").stderr


def test_a_file_that_cannot_be_made_is_reported(run: Run, log: StoredCalls) -> None:
    assert "cannot be written: No such file" in run("export", "nowhere/calls.csv").stderr


def test_a_file_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "calls.csv"
    with pytest.raises(BaseException, match="1"), new_file(file, force=False):
        file.write_text("somebody else's")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody else's"]


@pytest.mark.both_databases
def test_what_comes_later_is_not_in_it_and_what_goes_is_left_out(log: StoredCalls) -> None:
    for number in range(3):
        log.add_call(f"-{number}")
    with log.database.reader.connect() as connection:
        selection = select_calls(connection, CallFilter(range="all"), NOW)
    log.add_call("-later")
    log.write(lambda connection: connection.execute(delete(calls).where(calls.c.id == 2)))
    exported = read_calls(log.database.reader, selection)
    assert [call.columns["session_id"] for call in exported] == ["-0", "-2"]


def test_an_unknown_format_is_refused(run: Run, log: StoredCalls) -> None:
    assert "'csv', 'jsonl'." in run("export", "--format", "xls").stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--q", "aisle seat"),
        ("--outcome", "lost"),
        ("--status", "busy", "--status", "no-answer"),
        ("--agent", "-Ox1agent"),
        ("--channel", "phone", "--direction", "inbound"),
        ("--number", "+1 415 555 0134"),
        ("--since", "2026-11-21T14:18", "--until", "2026-11-21T14:19"),
        ("--min", "41", "--max", "42"),
        ("--cost-min", "0.5"),
        ("--meta", "plan=gold"),
        ("--handler", "failed"),
        ("--unparsed",),
        ("--duplicate",),
    ],
    ids=lambda options: options[0],
)
def test_the_filters_of_the_list_choose_what_goes_out(
    run: Run, log: StoredCalls, options: tuple[str, ...]
) -> None:
    log.add_call("-other", minutes_ago=3, agent_id="-Ox1other", duration_s=3)
    add_wanted(log, options[0])
    assert [row["session_id"] for row in table(run("export", *options).stdout_bytes)] == [SESSION]


def add_wanted(log: StoredCalls, option: str) -> None:
    """The call that the options of a test choose; only what is lost has not ended."""
    traits: dict[str, Any] = {
        "agent_id": "-Ox1agent",
        "call_status": "busy",
        "channel": "phone",
        "direction": "inbound",
        "from_phone": PHONE,
        "duration_s": 41.5,
        "cost_total": 0.5,
        "repeated": True,
    }
    if option == "--outcome":
        log.add_unended_call(SESSION, minutes_ago=500)
        return
    call_id = log.add_call(SESSION, minutes_ago=1.5, text="an aisle seat", **traits)
    pair = {"call_id": call_id, "key": "plan", "value": "gold", "received_at": NOW}
    log.write(lambda connection: connection.execute(insert(call_metadata), pair))
    log.add_run(call_id, "notify", "failed")
    log.add_delivery(session_id=SESSION, outcome="unparsed")


def test_calls_that_continue_are_exported_too(run: Run, log: StoredCalls) -> None:
    log.add_unended_call("-live", minutes_ago=1)
    assert len(table(run("export").stdout_bytes)) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--outcome", "good"), "'--outcome': 'good' is unknown. Known: completed,"),
        (("--channel", "fax"), "'--channel': 'fax' is unknown. Known: phone, web, chat."),
        (("--meta", "gold"), "'--meta': 'gold' is not KEY=VALUE."),
        (("--since", "monday"), "'--since': 'monday' is not a date."),
    ],
)
def test_a_filter_that_means_nothing_is_refused(
    run: Run, log: StoredCalls, options: tuple[str, ...], told: str
) -> None:
    refused = run("export", *options)
    assert refused.exit_code == 2
    assert told in refused.stderr


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_terminal_obeys_nothing_that_a_caller_said(
    log: StoredCalls, tmp_path: Path, form: str
) -> None:
    log.add_call(snippet="\x1b[2J\u202e" + "ü" * 5000)
    variables = {"MILLIS_HOOKS_DATABASE_URL": url_in(tmp_path)}
    shown = on_a_terminal([SCRIPT, "export", "--format", form], variables=variables)
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert "ü" * 5000 in shown

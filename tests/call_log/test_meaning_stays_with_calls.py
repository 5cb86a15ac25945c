"""Function requests, kept values, variants and results go, stay and are hidden with their call."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from millis_hooks import (
    EndOfCall,
    FunctionRequest,
    MillisHooks,
    PrefetchRequest,
    PrefetchResponse,
    variant,
)
from millis_hooks.cli.commands import app
from millis_hooks.testing import HooksClient

SESSION = "-Omeaning"
#: In a kept value, in an argument and an answer of a function, and in a result.
NUMBER, WORD = "+4930901820", "zugzwang"
EVERY = ["--source", "all"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of one call that has everything."""
    file = tmp_path / "log.db"
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{file}")
    make_log(file)
    return file


def make_log(file: Path, **settings: bool) -> None:
    hooks = MillisHooks(**settings)  # type: ignore[arg-type]

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> PrefetchResponse:
        variant(call, "short", "friendly")
        return PrefetchResponse(keep={"name": WORD, "plan": "B", "number": NUMBER})

    @hooks.function
    def note(call: FunctionRequest, text: str) -> str:
        """Note a text."""
        return f"Noted: {text}"

    @hooks.on_end_of_call
    def outcome(call: EndOfCall) -> dict[str, object]:
        return {"booked": True, "score": 4, "note": f"{WORD} {NUMBER}"}

    with HooksClient(hooks, database_url=f"sqlite:///{file}") as client:
        client.prefetch(session_id=SESSION)
        client.function("note", session_id=SESSION, text=f"{WORD} {NUMBER}")
        client.end_of_call(session_id=SESSION)


def run(*args: str) -> Result:
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    return done


def stored(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return what a log has of functions, of kept values and of results."""
    statements = {
        "functions": "select function, body, answer from deliveries where function notnull",
        "kept": "select kept from deliveries where kept notnull",
        "metadata": "select key, value from call_metadata where key like 'keep.%' order by key",
        "results": "select handler, name, text, number from call_results order by name",
    }
    with closing(sqlite3.connect(file)) as connection:
        return {name: connection.execute(each).fetchall() for name, each in statements.items()}


def test_a_call_with_everything_is_stored(log: Path) -> None:
    counts = {name: len(rows) for name, rows in stored(log).items()}
    assert counts == {"functions": 1, "kept": 1, "metadata": 4, "results": 3}


def copy(log: Path, other: Path) -> None:
    run("copy", "--from", f"sqlite:///{log}", "--to", f"sqlite:///{other}")


def back_up(log: Path, other: Path) -> None:
    run("backup", str(other))


def reparse(log: Path, other: Path) -> None:
    run("reparse", "--afresh")
    log.replace(other)


@pytest.mark.parametrize("move", [copy, back_up, reparse])
def test_what_moves_a_log_takes_everything_along(
    log: Path, tmp_path: Path, move: Callable[[Path, Path], None]
) -> None:
    before = stored(log)
    move(log, tmp_path / "other.db")
    assert stored(tmp_path / "other.db") == before


def test_an_export_brings_everything_into_another_log(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "calls.jsonl", tmp_path / "other.db"
    run("export", str(file), "--raw", *EVERY)
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{other}")
    run("import", str(file))
    assert stored(other) == stored(log)


@pytest.mark.parametrize("who", [SESSION, NUMBER])
def test_a_forgotten_call_leaves_nothing_in_the_file(log: Path, who: str) -> None:
    run("forget", who, "--yes")
    assert stored(log) == {"functions": [], "kept": [], "metadata": [], "results": []}
    assert WORD.encode() not in log.read_bytes()


def test_a_call_that_is_too_old_goes_with_everything(log: Path) -> None:
    with closing(sqlite3.connect(log)) as connection, connection:
        for table in ("calls", "deliveries"):
            connection.execute(f"update {table} set received_at = '2020-01-01 00:00:00'")
    run("prune", "--days", "1", "--yes", "--clock-is-right")
    assert stored(log) == {"functions": [], "kept": [], "metadata": [], "results": []}


@pytest.mark.parametrize("file", ["calls.csv", "calls.jsonl"])
def test_exports_hide_words_and_numbers_everywhere(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_MASK_TEXT", "full")
    monkeypatch.setenv("MILLIS_HOOKS_MASK_NUMBERS", "full")
    run("export", str(tmp_path / file), *EVERY)
    written = (tmp_path / file).read_text()
    assert WORD not in written
    assert NUMBER.lstrip("+") not in written
    assert "booked" in written


def test_the_page_and_the_list_hide_words_and_numbers_everywhere(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_MASK_TEXT", "full")
    monkeypatch.setenv("MILLIS_HOOKS_MASK_NUMBERS", "full")
    shown = [run("show", SESSION), run("show", SESSION, "--json")]
    shown.append(run("calls", *EVERY, "--column", "note", "--column", "keep.name"))
    shown.append(run("calls", *EVERY, "--json"))
    for each in shown:
        assert WORD not in each.stdout
        assert NUMBER.lstrip("+") not in each.stdout
    assert json.loads(shown[-1].stdout)[0]["results"][0]["name"] == "booked"


def test_what_is_redacted_before_it_is_stored_is_nowhere_in_the_file(tmp_path: Path) -> None:
    make_log(tmp_path / "log.db", redact_before_store=True)
    assert len(stored(tmp_path / "log.db")["results"]) == 3
    written = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert WORD.encode() not in written
    assert NUMBER.lstrip("+").encode() not in written

"""Operators are added, changed and removed by command, and what commands do is on record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner, Result

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.tables import audit_log, calls, operators, read_tokens
from millis_hooks.call_log.upkeep.removal import Removal, writing_by
from millis_hooks.cli.commands import app
from millis_hooks.operators import Operators, Refused, SignedIn
from millis_hooks.operators.accounts import is_password
from millis_hooks.runs.replay import Replayed
from support.databases import url_in
from support.storage import opened, rows
from support.stored_calls import NOW, StoredCalls

PASSWORD = "the password of anna"

Run = Callable[..., Result]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


@pytest.fixture
def run(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    return lambda *args, **options: CliRunner().invoke(app, args, **options)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is there to be asked."""
    monkeypatch.setattr("millis_hooks.cli.operators._is_terminal", lambda: True)


def add_anna(run: Run, *options: str) -> Result:
    result = run("operator", "add", "anna", "--password-stdin", *options, input=PASSWORD + "\n")
    assert result.exit_code == 0, result.output
    return result


def password_hash(database: Database) -> str:
    with database.reader.connect() as connection:
        return connection.scalar(select(operators.c.password_hash)) or ""


def recorded(database: Database) -> list[tuple[str | None, str, str | None]]:
    return [(row.operator, row.action, row.subject) for row in rows(database, audit_log)]


def test_an_operator_is_added_with_a_password_from_a_pipe(run: Run, database: Database) -> None:
    result = add_anna(run, "--role", "operate")
    assert result.stdout == "Added anna, who may operate.\n"
    assert is_password(password_hash(database), PASSWORD)
    assert PASSWORD not in result.output


def test_an_operator_may_only_view_unless_told_otherwise(run: Run, database: Database) -> None:
    add_anna(run)
    assert [row.role for row in rows(database, operators)] == ["view"]


def test_without_a_terminal_a_password_is_made_and_printed_once(
    run: Run, database: Database
) -> None:
    made = run("operator", "add", "Anna").stdout.splitlines()[-1]
    assert is_password(password_hash(database), made)
    assert made not in run("operator", "list").output


@pytest.mark.usefixtures("terminal")
def test_a_password_is_asked_for_twice_and_not_shown(run: Run, database: Database) -> None:
    answers = f"{PASSWORD}\nsomething else\n{PASSWORD}\n{PASSWORD}\n"
    result = run("operator", "add", "anna", input=answers)
    assert result.exit_code == 0, result.output
    assert PASSWORD not in result.output
    assert is_password(password_hash(database), PASSWORD)


def test_a_short_password_is_refused(run: Run, database: Database) -> None:
    result = run("operator", "add", "anna", "--password-stdin", input="short\n")
    assert result.exit_code == 2
    assert "at least 16" in result.stderr
    assert rows(database, operators) == []


def test_a_password_comes_from_one_place(run: Run) -> None:
    result = run("operator", "add", "anna", "--password-stdin", "--generate", input="x")
    assert result.exit_code == 2
    assert "Choose one" in result.stderr


@pytest.mark.parametrize(
    ("name", "said"), [("admin", "MILLIS_HOOKS_DASHBOARD_PASSWORD"), ("a b\x1b[2J", "cannot be")]
)
def test_not_every_name_may_be_added(run: Run, name: str, said: str) -> None:
    result = run("operator", "add", name)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "\x1b" not in result.stderr


def test_a_name_is_taken_once(run: Run) -> None:
    add_anna(run)
    result = run("operator", "add", "ANNA")
    assert result.exit_code == 1
    assert "already" in result.stderr


def test_operators_are_listed_without_their_hashes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Nobody can sign in" in run("operator", "list").stderr
    add_anna(run)
    listed = run("operator", "list").stdout
    assert listed.split()[:5] == ["Name", "Role", "Added", "Last", "seen"]
    assert "anna" in listed
    assert "never" in listed
    assert "argon2" not in listed
    monkeypatch.setenv("MILLIS_HOOKS_DASHBOARD_PASSWORD", PASSWORD)
    assert "There is also admin" in run("operator", "list").stderr


@pytest.mark.parametrize(
    "command", [("remove", "anna"), ("password", "anna", "--generate"), ("role", "anna", "view")]
)
def test_an_unknown_operator_cannot_be_changed(run: Run, command: tuple[str, ...]) -> None:
    result = run("operator", *command)
    assert result.exit_code == 1
    assert "There is no operator anna" in result.stderr


def desk(database: Database) -> Operators:
    return Operators(
        database.reader,
        write=writing_by(database.writer),
        signing_key=b"a key of the tests",
        password=None,
        now=lambda: NOW,
    )


def test_a_changed_password_ends_the_sessions_of_the_old_one(run: Run, database: Database) -> None:
    add_anna(run)
    session = desk(database).log_in("anna", PASSWORD)
    assert isinstance(session, SignedIn)
    changed = run("operator", "password", "anna", "--generate").stdout.splitlines()[-1]
    assert desk(database).resume(session.cookie) is None
    assert isinstance(desk(database).log_in("anna", changed), SignedIn)


def test_a_removed_operator_is_out(run: Run, database: Database) -> None:
    add_anna(run)
    session = desk(database).log_in("anna", PASSWORD)
    assert isinstance(session, SignedIn)
    assert run("operator", "remove", "anna").exit_code == 0
    assert desk(database).resume(session.cookie) is None
    assert desk(database).log_in("anna", PASSWORD) == Refused()


def test_what_is_done_to_operators_is_on_record(run: Run, database: Database) -> None:
    add_anna(run)
    run("operator", "role", "anna", "operate")
    run("operator", "password", "anna", "--generate")
    run("operator", "remove", "anna")
    assert recorded(database) == [
        ("command line", "add_operator", "anna, view"),
        ("command line", "change_role", "anna, operate"),
        ("command line", "change_password", "anna"),
        ("command line", "remove_operator", "anna"),
    ]


def test_what_commands_do_to_calls_is_on_record_without_numbers(run: Run, tmp_path: Path) -> None:
    stored = StoredCalls(tmp_path)
    now = datetime.now(UTC)
    call_id = stored.add_call("-call", from_phone="+4930901820", received_at=now)
    stored.add_handler("sync")
    stored.add_run(call_id, "sync", "failed")
    assert run("replay", "-call").exit_code == 0
    stored.add_call("-other", from_phone="+33142685300", received_at=now)
    stored.add_call("-old", received_at=now - timedelta(days=400))
    assert run("export", str(tmp_path / "calls.csv")).exit_code == 0
    assert run("forget", "+33 1 42 68 53 00", "--yes").exit_code == 0
    assert run("prune", "--yes").exit_code == 0
    done = [
        (action, str(what).partition(", rec")[0]) for _, action, what in recorded(stored.database)
    ]
    assert done == [
        ("replay", "-call"),
        ("export", "3 as csv"),
        ("forget", "1 call"),
        ("prune", "1 call"),
    ]
    stored.database.close()


def test_prune_refuses_while_the_clock_may_be_wrong(run: Run, tmp_path: Path) -> None:
    stored = StoredCalls(tmp_path)
    long_ago = datetime.now(UTC) - timedelta(days=400)
    stored.add_delivery(session_id="-old", received_at=long_ago)
    stored.add_call("-old", received_at=long_ago)
    refused = run("prune", "--yes")
    assert refused.exit_code != 0
    assert "add --clock-is-right" in " ".join(refused.output.split())
    assert run("prune", "--yes", "--clock-is-right").exit_code == 0
    assert rows(stored.database, calls) == []
    stored.database.close()


@pytest.mark.parametrize(
    ("command", "work", "done", "told"),
    [
        (["prune"], "call_log.upkeep.retention.prune", Removal(calls=1), "1 call"),
        (["forget", "-old"], "call_log.upkeep.removal.forget", Removal(calls=1), "1 call"),
        (["replay", "--status", "failed"], "cli.runs.replay_batch", Replayed(1), "1 queued"),
    ],
)
def test_what_an_interrupted_command_has_done_is_on_record(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    work: str,
    done: Removal | Replayed,
    told: str,
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[Removal | Replayed]:
        yield done
        raise KeyboardInterrupt

    stored = StoredCalls(tmp_path)
    call_id = stored.add_call("-old", received_at=datetime.now(UTC) - timedelta(days=400))
    stored.add_handler("sync")
    stored.add_run(call_id, "sync", "failed")
    steps = interrupted()
    is_batch = work.endswith("batch")
    patched = (lambda *_: (next(steps), 1)) if is_batch else interrupted
    monkeypatch.setattr(f"millis_hooks.{work}", patched)
    assert run(*command, "--yes").exit_code == 130
    ((_, action, what),) = recorded(stored.database)
    assert (action, str(what).partition(", rec")[0]) == (command[0], told)
    stored.database.close()


def test_a_log_that_can_only_be_read_is_still_exported(
    run: Run, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("INSERT", {}, Exception("attempt to write a readonly database"))

    monkeypatch.setattr("millis_hooks.operators.audit.record", refuse)
    result = run("export")
    assert result.exit_code == 0
    assert "audit log could not be written" in result.stderr


def test_a_token_is_shown_once_listed_used_and_revoked(run: Run, database: Database) -> None:
    added = run("token", "add", "Reports")
    token = added.stdout.strip()
    assert token.startswith("mht_")
    assert "Send it as Authorization: Bearer" in added.stderr
    assert run("token", "add", "reports").exit_code == 1
    listed = run("token", "list").stdout
    assert "reports" in listed
    assert "never" in listed
    assert token not in run("token", "list", "--json").stdout
    assert token not in str(rows(database, read_tokens))
    assert run("token", "revoke", "reports").stdout == "Revoked reports.\n"
    assert run("token", "revoke", "reports").exit_code == 1
    assert run("token", "add", "two words").exit_code == 2
    assert [row.action for row in rows(database, audit_log)] == ["add_token", "revoke_token"]

"""`runs` and `replay` as commands, on a real call log in a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text
from typer.testing import CliRunner, Result

from millis_hooks.call_log.call_rows import pending_run
from millis_hooks.call_log.tables import calls, handler_runs
from millis_hooks.cli.commands import app
from millis_hooks.runs.replay import replay_batch
from support.programs import SCRIPT, on_a_terminal
from support.storage import rows
from support.stored_calls import NOW, StoredCalls

SESSION = "-OA1XVnw"
CRM = "sync_crm"

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the call log in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{tmp_path}/log.db")
    return lambda *args: CliRunner().invoke(app, args)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    """A call log whose application has one handler that may be repeated, and one that may not."""
    stored = StoredCalls(tmp_path)
    stored.add_handler(CRM)
    stored.add_handler("charge_card", repeatable=False)
    yield stored
    stored.database.close()


def ended_call(log: StoredCalls, session_id: str = SESSION, **columns: Any) -> int:
    delivery_id = log.add_delivery(session_id=session_id)
    return log.add_call(session_id, delivery_id=delivery_id, **columns)


def park_many(log: StoredCalls, number: int) -> None:
    ids = range(1, number + 1)
    known = [{"id": id_, "session_id": f"-{id_}", "received_at": NOW} for id_ in ids]
    failed = [pending_run(id_, CRM, NOW) | {"state": "failed"} for id_ in ids]
    log.write(lambda connection: connection.execute(insert(calls), known))
    log.write(lambda connection: connection.execute(insert(handler_runs), failed))


def states(log: StoredCalls) -> list[str]:
    return [row.state for row in rows(log.database, handler_runs)]


def test_runs_are_listed_newest_first_below_their_numbers(run: Run, log: StoredCalls) -> None:
    call = ended_call(log)
    log.add_run(call, CRM, "succeeded", spent=2)
    failed = log.add_run(call, "charge_card", "failed", spent=5, reason="5 of 5 attempts failed")
    log.add_attempt(failed, 1, error_type="OldError", error_message="at first")
    log.add_attempt(failed, 2, error_type="CardError", error_message="declined")
    counted, heads, *lines = run("runs").stdout.splitlines()
    assert counted == "1 failed, 1 succeeded"
    assert heads.split()[:5] == ["Run", "Handler", "Session", "State", "Attempts"]
    assert lines[0].split()[:7] == ["2", "charge_card", SESSION, "failed", "5", "of", "5"]
    assert "5 of 5 attempts failed; CardError: declined" in lines[0]
    assert lines[1].split()[:7] == ["1", CRM, SESSION, "succeeded", "2", "of", "5"]


def test_a_reason_that_is_the_error_is_reported_once(run: Run, log: StoredCalls) -> None:
    failed = log.add_run(ended_call(log), CRM, "failed", reason="no such customer")
    log.add_attempt(failed, error_type="GiveUp", error_message="no such customer")
    assert run("runs").stdout.count("no such customer") == 1


def test_when_a_run_is_tried_again_is_reported(run: Run, log: StoredCalls) -> None:
    far = datetime.now(UTC) + timedelta(days=3)
    log.add_run(ended_call(log), CRM, "retrying", due_at=far)
    assert f"next {far:%Y-%m-%d %H:%M} " in run("runs").stdout


def test_replays_and_alerts_are_marked(run: Run, log: StoredCalls) -> None:
    call = ended_call(log)
    failed = log.add_run(call, CRM, "failed", is_latest=False)
    log.add_run(call, CRM, "succeeded", is_replay=True)
    log.add_run(call, "page_us", "succeeded", hook="failed", failed_run_id=failed, spent=1)
    shown = run("runs").stdout
    assert "2 succeeded" in shown
    assert f"{CRM} (replay)" in shown
    assert re.search(rf"page_us \(alert of run 1\) +{SESSION} +succeeded +1 ", shown)


def test_runs_can_be_narrowed_down(run: Run, log: StoredCalls) -> None:
    call = ended_call(log)
    log.add_run(call, CRM, "failed")
    log.add_run(call, "charge_card", "succeeded")
    log.add_run(ended_call(log, "-other"), CRM, "succeeded")
    listed = [
        [row["id"] for row in json.loads(run("runs", *args, "--json").stdout)]
        for args in (
            ["--status", "succeeded"],
            ["--handler", CRM],
            ["--session", SESSION],
            ["--limit", "1"],
            ["--handler", "go\0ne"],
        )
    ]
    assert listed == [[3, 2], [3, 1], [2, 1], [3], []]
    assert run("runs", "--handler", CRM, "--status", "failed").stdout.startswith(
        "1 failed, 1 succeeded\n"
    )


def test_runs_as_json_have_what_the_table_has(run: Run, log: StoredCalls) -> None:
    log.add_run(ended_call(log), CRM, "failed", spent=5, reason="given up")
    (listed,) = json.loads(run("runs", "--json").stdout)
    known = {"session_id": SESSION, "handler": CRM, "state": "failed", "reason": "given up"}
    assert listed.items() >= (known | {"spent": 5, "max_attempts": 5}).items()


def test_a_log_without_runs_lists_none(run: Run, log: StoredCalls) -> None:
    assert run("runs").stdout == "No runs.\n"
    assert run("runs", "--json").stdout == "[]\n"
    assert run("runs", "--status", "lost").exit_code == 2


@pytest.mark.parametrize("args", [["runs"], ["runs", "--json"], ["show", SESSION]])
def test_a_terminal_obeys_nothing_that_a_handler_raised(
    run: Run, log: StoredCalls, args: list[str]
) -> None:
    hostile = "[bold]\x1b[2J\u202e\n"
    failed = log.add_run(ended_call(log), hostile, "failed", reason=hostile)
    log.add_attempt(failed, error_type=hostile, error_message=hostile + "more")
    shown = run(*args).stdout
    assert "[bold]" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)


def test_show_tells_how_each_run_stands(run: Run, log: StoredCalls) -> None:
    call = ended_call(log)
    log.add_run(call, CRM, "failed", is_latest=False, spent=5, reason="5 of 5 attempts failed")
    log.add_run(call, CRM, "retrying", is_replay=True, spent=1, due_at=datetime.now(UTC))
    lines = [line for line in run("show", SESSION).stdout.splitlines() if CRM in line]
    assert re.match(rf"{CRM} \(replay\) +retrying +1 of 5 +next ", lines[0])
    assert re.match(rf"{CRM} +failed, replaced +5 of 5 ", lines[1])


@pytest.mark.parametrize(
    ("state", "told"),
    [("failed", "1 of 2 failed"), ("retrying", "1 of 2 retrying"), ("pending", "1 waiting")],
)
def test_calls_tell_what_a_person_may_want_to_know(
    run: Run, log: StoredCalls, state: str, told: str
) -> None:
    call = ended_call(log)
    log.add_run(call, CRM, state)
    log.add_run(call, "charge_card", "succeeded")
    assert told in run("calls").stdout


@pytest.mark.parametrize("args", [[SESSION], ["--", SESSION], ["--run", "1"]])
def test_a_call_or_a_run_is_replayed_without_asking(
    run: Run, log: StoredCalls, args: list[str]
) -> None:
    log.add_run(ended_call(log), CRM, "failed")
    result = run("replay", *args)
    assert (result.exit_code, result.stdout) == (0, "1 queued.\n")
    assert "millis-hooks runs" in result.stderr
    assert states(log) == ["failed", "pending"]


def test_what_is_not_replayed_is_reported_with_its_reason(run: Run, log: StoredCalls) -> None:
    call = ended_call(log)
    log.add_run(call, CRM, "running")
    log.add_run(call, "charge_card", "succeeded")
    result = run("replay", SESSION)
    assert result.stdout == (
        "1 skipped: already waiting; 1 skipped: 'charge_card' is not repeatable.\n"
    )
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-nowhere"], "There is no call -nowhere in"),
        (["--", "-a\x1bb"], "There is no call -a\\x1bb in"),
        (["--run", "99"], "There is no run 99 in"),
        (["--run", str(2**70)], "There is no run"),
    ],
)
def test_what_is_not_there_cannot_be_replayed(
    run: Run, log: StoredCalls, args: list[str], told: str
) -> None:
    result = run("replay", *args)
    assert (result.exit_code, told in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "Choose what to replay"),
        ([SESSION, "--run", "1"], "Choose what to replay"),
        ([SESSION, "--status", "failed"], "Choose what to replay"),
        (["--run", "1", "--handler", CRM], "Choose what to replay"),
        (["--yes"], "Choose what to replay"),
        (["--until", "2026-11-01"], "Name a handler"),
        (["--status", "never"], "Which handler"),
        (["--since", "yesterday"], "'yesterday' is not a date"),
        (["--since", "0001-01-01T00:00+23:00"], "is not a date"),
        (["--handler", "synccrm"], "Did you mean 'sync_crm'? Known: charge_card, sync_crm."),
        (["--handler", "zzz"], "no end-of-call handler 'zzz'. Known:"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    run: Run, log: StoredCalls, args: list[str], told: str
) -> None:
    result = run("replay", *args)
    assert (result.exit_code, told in result.stderr) == (2, True)


def test_no_handler_is_known_before_the_service_has_started(run: Run, tmp_path: Path) -> None:
    StoredCalls(tmp_path).database.close()
    assert "when it starts" in run("replay", "--handler", CRM).stderr


def test_many_are_replayed_with_a_plan_and_a_summary(run: Run, log: StoredCalls) -> None:
    log.add_run(ended_call(log, "-1"), CRM, "failed")
    log.add_run(ended_call(log, "-2"), CRM, "retrying")
    log.add_run(ended_call(log, "-3"), CRM, "pending")
    ended_call(log, "-4")
    result = run("replay", "--handler", CRM, "--yes")
    plan, summary = result.stdout.splitlines()
    assert plan == (
        "Runs: 3 (1 first runs of sync_crm, 1 replays, 1 next attempts brought forward). "
        "Handlers may have effects again."
    )
    assert summary == "2 queued; 1 brought forward; 1 skipped: already waiting."


def test_a_time_without_a_zone_is_utc(run: Run, log: StoredCalls) -> None:
    ended_call(log, "-early", received_at=datetime(2026, 10, 31, 23, 59, tzinfo=UTC))
    ended_call(log, "-in", received_at=datetime(2026, 11, 1, tzinfo=UTC))
    ended_call(log, "-late", received_at=datetime(2026, 11, 1, 12, tzinfo=UTC))
    times = ["--since", "2026-11-01", "--until", "2026-11-01T14:00+02:00"]
    assert "\n1 queued.\n" in run("replay", "--handler", CRM, *times, "--yes").stdout
    assert [row.call_id for row in rows(log.database, handler_runs)] == [2]


def test_replay_asks_nothing_where_no_run_matches(run: Run, log: StoredCalls) -> None:
    result = run("replay", "--status", "failed")
    assert (result.exit_code, result.stdout) == (0, "nothing to replay.\n")


def test_without_a_terminal_many_runs_are_not_replayed(run: Run, log: StoredCalls) -> None:
    log.add_run(ended_call(log), CRM, "failed")
    result = run("replay", "--status", "failed")
    assert (result.exit_code, "Add --yes" in result.stderr) == (2, True)
    assert states(log) == ["failed"]


@pytest.mark.parametrize(
    ("answer", "told", "become"),
    [("y\n", "1 queued.", ["failed", "pending"]), ("n\n", "Nothing was replayed", ["failed"])],
)
def test_a_person_is_asked_first(
    run: Run, log: StoredCalls, tmp_path: Path, answer: str, told: str, become: list[str]
) -> None:
    log.add_run(ended_call(log), CRM, "failed")
    command = [SCRIPT, "replay", "--status", "failed"]
    shown = on_a_terminal(command, folder=tmp_path, answer=answer)
    assert told in shown
    assert states(log) == become


def test_an_interrupted_replay_says_how_far_it_came(
    run: Run, log: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = count(1)

    def second_is_interrupted(*arguments: Any) -> Any:
        if next(batches) == 2:
            raise KeyboardInterrupt
        return replay_batch(*arguments)

    monkeypatch.setattr("millis_hooks.cli.runs.replay_batch", second_is_interrupted)
    park_many(log, 300)
    stopped = run("replay", "--status", "failed", "--yes")
    assert stopped.exit_code == 130
    assert "Stopped after 200 of 300: 200 queued" in stopped.stderr
    assert states(log).count("pending") == 200


@pytest.mark.parametrize("command", [["runs"], ["replay", SESSION]])
def test_without_a_call_log_there_is_nothing_to_do(
    run: Run, tmp_path: Path, command: list[str]
) -> None:
    result = run(*command)
    assert (result.exit_code, "There is no call log" in result.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["runs"], ["replay", SESSION], ["calls"], ["show", SESSION]])
@pytest.mark.parametrize(("version", "told"), [("0001", "An older"), ("9999", "A newer")])
def test_a_call_log_of_another_version_is_reported(
    run: Run, log: StoredCalls, command: list[str], version: str, told: str
) -> None:
    stamp = text("UPDATE millis_hooks_version SET version_num = :version")
    log.write(lambda connection: connection.execute(stamp, {"version": version}))
    result = run(*command)
    assert (result.exit_code, told in result.stderr) == (1, True)


@pytest.mark.parametrize("command", ["runs", "replay"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    assert f"millis-hooks {command}" in run(command, "--help").stdout.replace(
        "root", "millis-hooks"
    )

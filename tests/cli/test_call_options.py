"""The filters of the Calls page as options of every command that takes calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.search import Field, Item
from millis_hooks.call_log.tables import call_metadata, calls, handler_runs
from millis_hooks.cli.call_filters import takes_call_filters
from millis_hooks.cli.commands import app, load_command
from support.storage import rows
from support.stored_calls import NOW, StoredCalls

COMMANDS = ("calls", "runs", "export", "replay", "forget")
#: The option of each filter that has another name; `plainly` and `zone` are no choices of a user.
OPTIONS = {
    "status": "--call-status",
    "handler": "--handler-state",
    "metadata": "--meta",
    "results": "--result",
    "min_s": "--min",
    "max_s": "--max",
}
FILTERS = [each.name for each in fields(CallFilter) if each.name not in ("plainly", "zone")]
#: Each leaves only the call -this in the log.
NARROW = {
    "q": ("--q", "aisle"),
    "outcome": ("--outcome", "voicemail"),
    "status": ("--call-status", "voicemail-message"),
    "agent": ("--agent", "-agent"),
    "channel": ("--channel", "phone"),
    "direction": ("--direction", "outbound"),
    "number": ("--number", "415 555 0134"),
    "since": ("--since", "2026-11-21"),
    "until": ("--since", "2026-11-21", "--until", "2026-11-21T14:15"),
    "min_s": ("--min", "30", "--max", "60"),
    "max_s": ("--max", "60.5"),
    "cost_min": ("--cost-min", "0.5"),
    "cost_max": ("--cost-max", "2", "--cost-min", "0.2"),
    "metadata": ("--meta", "plan=gold"),
    "results": ("--result", "booked=true"),
    "function": ("--function", "book"),
    "provider": ("--provider", "elevenlabs"),
    "handler": ("--handler-state", "failed"),
    "unparsed": ("--unparsed",),
    "duplicate": ("--duplicate",),
}

#: What the call -this has.
TRAITS: dict[str, Any] = {
    "outcome": "voicemail",
    "call_status": "voicemail-message",
    "agent_id": "-agent",
    "channel": "phone",
    "direction": "outbound",
    "to_phone": "+14155550134",
    "duration_s": 41.5,
    "cost_total": 0.5,
    "repeated": True,
    "items": [
        Item(Field.TRANSCRIPT, "an aisle seat"),
        Item(Field.NUMBER, "+14155550134"),
        Item(Field.FUNCTION, "book"),
        Item(Field.PROVIDER, "elevenlabs"),
    ],
}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredCalls]:
    """A call log of two calls with a run each, of which -this has what every filter asks for."""
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{tmp_path}/log.db")
    stored = StoredCalls(tmp_path)
    stored.add_handler("sync_crm")
    other = ended(stored, "-other", minutes_ago=24 * 60, duration_s=90, cost_total=0.1)
    stored.add_run(other, "sync_crm", "succeeded")
    call = ended(stored, "-this", **TRAITS)
    stored.add_run(call, "sync_crm", "failed")
    stored.add_results(call, booked=True)
    pair = {"call_id": call, "key": "plan", "value": "gold", "received_at": NOW}
    stored.write(lambda connection: connection.execute(insert(call_metadata), pair))
    stored.add_delivery(session_id="-this", outcome="unparsed")
    yield stored
    stored.database.close()


def ended(log: StoredCalls, session_id: str, **columns: Any) -> int:
    delivery_id = log.add_delivery(session_id=session_id)
    return log.add_call(session_id, delivery_id=delivery_id, **columns)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def sessions(*arguments: str) -> list[str]:
    return [each["session_id"] for each in json.loads(run(*arguments, "--json").stdout)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_filter_of_the_calls_page_has_its_option(command: str) -> None:
    options = {name for each in load_command(command).params for name in each.opts}
    assert {OPTIONS.get(name, f"--{name.replace('_', '-')}") for name in FILTERS} <= options


@pytest.mark.parametrize("options", NARROW.values(), ids=NARROW)
def test_a_filter_chooses_the_same_calls_for_every_command(
    log: StoredCalls, options: tuple[str, ...]
) -> None:
    assert sessions("calls", *options) == ["-this"]
    assert sessions("runs", *options) == ["-this"]
    assert "-other" not in run("export", *options).stdout
    assert run("replay", *options, "--dry-run").stdout.startswith("Runs: 1 (1 replays)")
    foreseen = run("forget", *options, "--dry-run").stdout
    assert foreseen.startswith("Stored about it: 1 call, ")
    assert "-this" in foreseen
    assert len(rows(log.database, handler_runs)) == 2


def test_runs_of_made_up_calls_are_listed_unless_real_ones_are_chosen(log: StoredCalls) -> None:
    log.add_run(ended(log, "-tried", source="test"), "sync_crm", "succeeded")
    assert sessions("calls") == ["-this", "-other"]
    assert sessions("runs") == ["-tried", "-this", "-other"]
    assert (
        sessions("runs", "--source", "test") == sessions("calls", "--source", "test") == ["-tried"]
    )


def test_runs_have_a_status_and_a_handler_of_their_own(log: StoredCalls) -> None:
    assert sessions("runs", "--status", "failed") == ["-this"]
    assert sessions("runs", "--handler", "sync_crm", "--outcome", "voicemail") == ["-this"]
    assert sessions("calls", "--status", "voicemail-message") == ["-this"]
    assert sessions("calls", "--handler", "failed") == ["-this"]


def test_replay_takes_the_runs_of_the_chosen_calls(log: StoredCalls) -> None:
    replayed = run("replay", "--agent", "-agent", "--yes")
    assert replayed.stdout.endswith("\n1 queued.\n")
    assert [row.state for row in rows(log.database, handler_runs)] == [
        *("succeeded", "failed", "pending"),
    ]


def test_replay_of_one_call_can_be_tried(log: StoredCalls) -> None:
    tried = run("replay", "-this", "--dry-run")
    assert tried.stdout == "Nothing was replayed. It would be: 1 queued.\n"
    assert len(rows(log.database, handler_runs)) == 2


def test_forget_removes_the_chosen_calls(log: StoredCalls) -> None:
    forgotten = run("forget", "--outcome", "voicemail", "--yes")
    assert "Removed: 1 call, 2 webhook deliveries, 1 handler run." in forgotten.stdout
    assert [row.session_id for row in rows(log.database, calls)] == ["-other"]


@pytest.mark.parametrize("options", [(), ("--source", "all"), ("-this", "--agent", "-agent")])
def test_forget_takes_one_thing_or_filters(log: StoredCalls, options: tuple[str, ...]) -> None:
    refused = run("forget", *options, "--yes")
    assert (refused.exit_code, "Choose what to forget" in refused.stderr) == (2, True)
    assert len(rows(log.database, calls)) == 2


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--outcome", "good"), "'--outcome': 'good' is unknown. Known: completed, chat,"),
        (("--source", "me"), "'--source': 'me' is unknown. Known: real, sandbox, test, all."),
        (("--range", "1y"), "'--range': '1y' is unknown. Known: today, 24h,"),
        (("--range", "7d", "--since", "2026-11-01"), "Choose one: --range, or --since and --until"),
        (("--handler-state", "sync_crm"), "'--handler-state': 'sync_crm' is unknown. Known: retry"),
        (("--until", "monday"), "'--until': 'monday' is not a date."),
        (("--min", "nan"), "'--min': 'nan' is not a finite number."),
        (("--cost-max", "much"), "--cost-max"),
        (("--result", "="), "'--result': '=' is not a condition"),
        (("--meta", "gold"), "'--meta': 'gold' is not KEY=VALUE."),
    ],
    ids=str,
)
def test_an_error_names_the_option(
    log: StoredCalls, command: str, options: tuple[str, ...], told: str
) -> None:
    refused = run(command, *options)
    assert (refused.exit_code, told in refused.stderr) == (2, True)


def test_a_range_ends_now() -> None:
    chosen: list[CallFilter] = []

    def keep(filters: CallFilter) -> None:
        chosen.append(filters)

    command = takes_call_filters()(keep)
    options = {each.name: each.default for each in signature(command).parameters.values()}
    command(**options | {"call_range": "7d"})
    since = chosen[0].since
    assert since is not None
    assert timedelta() <= datetime.now(UTC) - timedelta(days=7) - since < timedelta(minutes=1)

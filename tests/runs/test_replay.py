"""What a person asks to be done again, in a real call log; nothing runs the handlers here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, event, insert, select

from millis_hooks.call_log.call_rows import pending_run
from millis_hooks.call_log.queries.filters import ALL_CALLS
from millis_hooks.call_log.queries.runs import RunFilter, count_runs, list_runs
from millis_hooks.call_log.tables import call_metadata, calls, handler_runs
from millis_hooks.exceptions import ConfigError
from millis_hooks.runs import replay as replay_module
from millis_hooks.runs.replay import (
    Cursor,
    Replayed,
    Selection,
    preview,
    replay_batch,
    replay_call,
    replay_failed,
    replay_run,
    replay_runs,
)
from support.storage import rows
from support.stored_calls import NOW, StoredCalls

LATER = NOW + timedelta(hours=1)
DUE = NOW + timedelta(minutes=30)
CRM = "sync_crm"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    """A call log whose application has one handler that may be repeated, and one that may not."""
    stored = StoredCalls(tmp_path)
    stored.add_handler(CRM)
    stored.add_handler("charge_card", repeatable=False)
    yield stored
    stored.database.close()


def ended_call(log: StoredCalls, session_id: str = "-call", **columns: Any) -> int:
    delivery_id = log.add_delivery(session_id=session_id)
    return log.add_call(session_id, delivery_id=delivery_id, **columns)


def again(log: StoredCalls, run_id: int, now: datetime = LATER) -> Replayed:
    replayed = log.write(lambda connection: replay_run(connection, run_id, now))
    assert replayed is not None
    return replayed


def call_again(log: StoredCalls, session_id: str = "-call") -> Replayed:
    replayed = log.write(lambda connection: replay_call(connection, session_id, LATER))
    assert replayed is not None
    return replayed


def one_batch(
    log: StoredCalls, wanted: Selection, after: Cursor | None = None, size: int = 200
) -> tuple[Replayed, Cursor | None]:
    return log.write(lambda connection: replay_batch(connection, wanted, LATER, after, size))


def in_bulk(log: StoredCalls, wanted: Selection, size: int = 200) -> Replayed:
    """Replay all batches; what they come to must have been foreseen."""
    with log.database.reader.connect() as connection:
        planned = preview(connection, wanted, LATER)
    replayed, cursor = one_batch(log, wanted, None, size)
    while cursor is not None:
        batch, cursor = one_batch(log, wanted, cursor, size)
        assert batch.total <= size
        replayed += batch
    foreseen = Replayed(queued=planned.first_runs) + planned.runs
    assert (foreseen, planned.total) == (replayed, replayed.total)
    return replayed


def runs_of(log: StoredCalls) -> list[Row[Any]]:
    return rows(log.database, handler_runs)


def park_all(log: StoredCalls) -> None:
    log.write(lambda connection: connection.execute(handler_runs.update().values(state="failed")))


def waiting_calls(log: StoredCalls) -> list[str]:
    """The sessions with a pending replay, by name."""
    pending = (
        select(calls.c.session_id)
        .join(handler_runs, handler_runs.c.call_id == calls.c.id)
        .where(handler_runs.c.state == "pending", handler_runs.c.is_replay)
        .order_by(calls.c.session_id)
    )
    with log.database.reader.connect() as connection:
        return list(connection.scalars(pending))


@pytest.mark.both_databases
@pytest.mark.parametrize("state", ["failed", "succeeded"])
def test_a_replay_takes_the_place_of_the_run(log: StoredCalls, state: str) -> None:
    run = log.add_run(ended_call(log), CRM, state, spent=5, reason="5 of 5 attempts failed")
    assert again(log, run) == Replayed(queued=1)
    replaced, new = runs_of(log)
    assert (replaced.is_latest, replaced.state, replaced.spent) == (False, state, 5)
    assert (new.is_latest, new.is_replay, new.state, new.spent) == (True, True, "pending", 0)
    assert (new.call_id, new.handler, new.created_at, new.reason) == (1, CRM, LATER, None)


@pytest.mark.both_databases
def test_a_run_that_waits_for_its_next_attempt_is_brought_forward(log: StoredCalls) -> None:
    run = log.add_run(ended_call(log), CRM, "retrying", spent=2, due_at=DUE)
    assert again(log, run) == Replayed(brought_forward=1)
    (only,) = runs_of(log)
    assert (only.state, only.due_at, only.state_since, only.spent) == ("pending", None, LATER, 2)
    assert not only.is_replay


@pytest.mark.both_databases
@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_run_that_is_yet_to_end_is_left_alone(log: StoredCalls, state: str) -> None:
    run = log.add_run(ended_call(log), CRM, state)
    assert again(log, run) == Replayed(skipped={"already waiting": 1})
    assert len(runs_of(log)) == 1


@pytest.mark.parametrize("state", ["failed", "succeeded"])
def test_what_must_not_be_repeated_is_not(log: StoredCalls, state: str) -> None:
    run = log.add_run(ended_call(log), "charge_card", state)
    assert again(log, run) == Replayed(skipped={"'charge_card' is not repeatable": 1})
    assert len(runs_of(log)) == 1


def test_what_must_not_be_repeated_may_be_brought_forward(log: StoredCalls) -> None:
    run = log.add_run(ended_call(log), "charge_card", "retrying", due_at=DUE)
    assert again(log, run) == Replayed(brought_forward=1)


@pytest.mark.parametrize("state", ["failed", "retrying"])
def test_a_handler_that_is_gone_cannot_be_called(log: StoredCalls, state: str) -> None:
    run = log.add_run(ended_call(log), "old\x1b", state)
    gone = {"no handler is named 'old\\x1b' any more": 1}
    assert again(log, run) == Replayed(skipped=gone)


@pytest.mark.both_databases
def test_a_replaced_run_stands_for_its_handler(log: StoredCalls) -> None:
    run = log.add_run(ended_call(log), CRM, "failed", is_latest=False)
    latest = log.add_run(1, CRM, "succeeded", is_replay=True)
    assert again(log, run) == Replayed(queued=1)
    assert [each.id for each in runs_of(log) if not each.is_latest] == [run, latest]


def chosen_again(log: StoredCalls, *run_ids: int, session_id: str = "-call") -> Replayed | None:
    return log.write(lambda connection: replay_runs(connection, session_id, run_ids, LATER))


@pytest.mark.both_databases
def test_two_clicks_replay_once(log: StoredCalls) -> None:
    run = log.add_run(ended_call(log), CRM, "failed")
    first = chosen_again(log, run)
    park_all(log)
    assert chosen_again(log, run) == Replayed(skipped={"already replayed": 1})
    assert first is not None
    assert first.run_ids == (run + 1,)
    assert len(runs_of(log)) == 2


@pytest.mark.both_databases
def test_only_chosen_runs_of_the_call_are_replayed(log: StoredCalls) -> None:
    call, other = ended_call(log), ended_call(log, "-other")
    run = log.add_run(call, CRM, "failed")
    log.add_run(call, "charge_card", "failed")
    elsewhere = log.add_run(other, CRM, "failed")
    assert chosen_again(log, run, elsewhere) == Replayed(queued=1)
    assert chosen_again(log, elsewhere) is None
    assert chosen_again(log, run, session_id="-none") is None
    assert [each.id for each in runs_of(log) if not each.is_latest] == [run]


@pytest.mark.both_databases
def test_failed_runs_of_many_calls_are_replayed_and_no_others(log: StoredCalls) -> None:
    runs = [
        log.add_run(ended_call(log, f"-{state}"), CRM, state)
        for state in ("failed", "succeeded", "retrying", "pending")
    ]
    replayed = log.write(lambda connection: replay_failed(connection, runs, LATER))
    assert replayed == Replayed(queued=1)
    assert [each.id for each in runs_of(log) if not each.is_latest] == runs[:1]


@pytest.mark.both_databases
def test_an_alert_is_sent_again_and_only_that_one(log: StoredCalls) -> None:
    log.add_handler("page_us", hook="failed")
    call = ended_call(log)
    failed = [log.add_run(call, name, "failed") for name in (CRM, "charge_card")]
    alerts = [
        log.add_run(call, "page_us", "failed", hook="failed", failed_run_id=run) for run in failed
    ]
    assert again(log, alerts[0]) == Replayed(queued=1)
    new = runs_of(log)[-1]
    assert (new.hook, new.failed_run_id, new.is_replay) == ("failed", failed[0], True)
    assert [run.id for run in runs_of(log) if not run.is_latest] == [alerts[0]]


@pytest.mark.parametrize("run_id", [7, 0, -1, 2**64])
def test_an_unknown_run_is_none(log: StoredCalls, run_id: int) -> None:
    assert log.write(lambda connection: replay_run(connection, run_id, LATER)) is None


@pytest.mark.parametrize("session_id", ["-nowhere", "", "\0", "\ud800"])
def test_an_unknown_call_is_none(log: StoredCalls, session_id: str) -> None:
    assert log.write(lambda connection: replay_call(connection, session_id, LATER)) is None


@pytest.mark.both_databases
def test_a_call_is_replayed_with_every_handler_that_ran_for_it(log: StoredCalls) -> None:
    call = ended_call(log)
    log.add_handler("page_us", hook="failed")
    failed = log.add_run(call, CRM, "failed")
    log.add_run(call, "charge_card", "succeeded")
    log.add_run(call, "page_us", "succeeded", hook="failed", failed_run_id=failed)
    log.add_run(ended_call(log, "-other"), CRM, "failed")
    refused = {"'charge_card' is not repeatable": 1}
    assert call_again(log) == Replayed(queued=1, skipped=refused)
    assert waiting_calls(log) == ["-call"]


def test_a_call_without_runs_has_nothing_to_replay(log: StoredCalls) -> None:
    ended_call(log)
    assert str(call_again(log)) == "nothing to replay"


@pytest.mark.both_databases
def test_what_was_asked_for_at_once_is_done_once(log: StoredCalls) -> None:
    run = log.add_run(ended_call(log), CRM, "failed")
    ready = threading.Barrier(8)

    def ask() -> None:
        ready.wait(30)
        again(log, run)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.state for each in runs_of(log)] == ["failed", "pending"]


@pytest.mark.both_databases
def test_a_status_takes_the_runs_in_it(log: StoredCalls) -> None:
    for number, state in enumerate(["failed", "succeeded", "retrying", "failed"]):
        log.add_run(ended_call(log, f"-{number}"), CRM, state)
    log.add_run(1, "charge_card", "failed")
    assert in_bulk(log, Selection(CRM, "failed")) == Replayed(queued=2)
    assert waiting_calls(log) == ["-0", "-3"]


@pytest.mark.both_databases
def test_a_status_alone_takes_the_runs_of_every_handler(log: StoredCalls) -> None:
    log.add_handler("mail")
    call = ended_call(log)
    for handler in (CRM, "mail", "charge_card", "gone"):
        log.add_run(call, handler, "failed")
    replayed = in_bulk(log, Selection(status="failed"))
    assert (replayed.queued, sum(replayed.skipped.values())) == (2, 2)


@pytest.mark.both_databases
def test_alerts_and_replaced_runs_are_not_replayed_in_bulk(log: StoredCalls) -> None:
    log.add_handler(CRM, hook="failed")
    call = ended_call(log)
    log.add_run(call, CRM, "failed", is_latest=False)
    failed = log.add_run(call, CRM, "succeeded")
    log.add_run(call, CRM, "failed", hook="failed", failed_run_id=failed)
    assert in_bulk(log, Selection(CRM, "failed")) == Replayed()


@pytest.mark.both_databases
def test_never_takes_the_calls_that_a_handler_has_not_had(log: StoredCalls) -> None:
    ended_call(log, "-new")
    log.add_run(ended_call(log, "-had"), CRM, "succeeded")
    log.add_run(ended_call(log, "-other"), "charge_card", "succeeded")
    log.add_unended_call("-live", minutes_ago=1)
    assert in_bulk(log, Selection(CRM, "never")) == Replayed(queued=2)
    assert waiting_calls(log) == ["-new", "-other"]


@pytest.mark.both_databases
def test_a_handler_alone_takes_runs_and_calls_it_has_not_had(log: StoredCalls) -> None:
    log.add_run(ended_call(log, "-had"), CRM, "succeeded")
    ended_call(log, "-new")
    assert in_bulk(log, Selection(CRM)) == Replayed(queued=2)
    assert waiting_calls(log) == ["-had", "-new"]


@pytest.mark.both_databases
def test_first_runs_are_for_the_calls_that_the_filters_let_through(log: StoredCalls) -> None:
    filters = {
        "agent_id": ["-a", "-b"],
        "channel": ["phone"],
        "call_status": ["user-ended"],
        "outcome": ["completed", "voicemail"],
    }
    log.add_handler("picky", filters=json.dumps(filters))
    fits = {"agent_id": "-b", "channel": "phone", "call_status": "user-ended"}
    ended_call(log, "-fits", **fits)
    for name in filters:
        ended_call(log, f"-other-{name}", **fits | {name: "other"})
        if name != "outcome":
            ended_call(log, f"-no-{name}", **fits | {name: None})
    assert in_bulk(log, Selection("picky")) == Replayed(queued=1)
    assert waiting_calls(log) == ["-fits"]


def test_a_first_run_is_not_a_repetition(log: StoredCalls) -> None:
    ended_call(log)
    assert in_bulk(log, Selection("charge_card", "never")) == Replayed(queued=1)


def test_a_handler_that_is_gone_wants_no_call(log: StoredCalls) -> None:
    log.add_run(ended_call(log), "gone", "succeeded")
    ended_call(log, "-new")
    assert in_bulk(log, Selection("gone")).queued == 0
    assert in_bulk(log, Selection("go\0ne\ud800")) == Replayed()


@pytest.mark.both_databases
@pytest.mark.parametrize("status", [None, "failed"])
def test_only_calls_received_in_the_time_are_taken(log: StoredCalls, status: str | None) -> None:
    for minutes in (5, 10, 15, 20):
        call = ended_call(log, f"-{minutes:02}", minutes_ago=minutes)
        if status or minutes < 15:
            log.add_run(call, CRM, "failed")
    since, until = NOW - timedelta(minutes=15), NOW - timedelta(minutes=5)
    assert in_bulk(
        log, Selection(CRM, status, replace(ALL_CALLS, since=since, until=until))
    ) == Replayed(queued=2)
    assert waiting_calls(log) == ["-10", "-15"]


@pytest.mark.both_databases
@pytest.mark.parametrize(
    "filters",
    [
        {"q": "refund"},
        {"handler": "failed", "outcome": "voicemail"},
        {"agent": ("-a",), "channel": "phone", "min_s": 2.0},
        {"number": "+14155550134"},
        {"unparsed": True},
        {"metadata": (("plan", "gold"),)},
    ],
    ids=lambda filters: "-".join(filters),
)
def test_filters_of_calls_choose_runs_to_replay_and_to_list(
    log: StoredCalls, filters: dict[str, Any]
) -> None:
    log.add_run(ended_call(log, "-other"), CRM, "succeeded")
    traits = {"outcome": "voicemail", "agent_id": "-a", "channel": "phone", "duration_s": 3.0}
    call = ended_call(log, "-this", text="a refund", to_phone="+14155550134", **traits)
    run = log.add_run(call, CRM, "failed")
    log.add_delivery(session_id="-this", outcome="unparsed")
    pair = {"call_id": call, "key": "plan", "value": "gold", "received_at": NOW}
    log.write(lambda connection: connection.execute(insert(call_metadata), pair))
    chosen = replace(ALL_CALLS, **filters)
    with log.database.reader.connect() as connection:
        listed = list_runs(connection, RunFilter(calls=chosen), NOW, limit=9)
        counted = count_runs(connection, RunFilter(calls=chosen), NOW)
    assert ([each.id for each in listed], counted) == ([run], {"failed": 1})
    assert in_bulk(log, Selection(calls=chosen)) == Replayed(queued=1)
    assert waiting_calls(log) == ["-this"]


def test_a_time_to_begin_at_is_enough(log: StoredCalls) -> None:
    for minutes in (5, 50):
        log.add_run(ended_call(log, f"-{minutes}", minutes_ago=minutes), CRM, "succeeded")
    assert in_bulk(
        log, Selection(calls=replace(ALL_CALLS, since=NOW - timedelta(minutes=10)))
    ) == Replayed(queued=1)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({}, "Name a handler"),
        ({"calls": replace(ALL_CALLS, until=NOW)}, "Name a handler"),
        ({"status": "never"}, "Which"),
    ],
)
def test_replaying_everything_needs_an_explicit_filter(wanted: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Selection(**wanted)


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_batches_of_any_size_take_everything_once(log: StoredCalls, size: int) -> None:
    for number in range(6):
        call = ended_call(log, f"-{number}")
        if number % 2:
            log.add_run(call, CRM, "failed")
            log.add_run(call, "charge_card", "failed")
    assert in_bulk(log, Selection(CRM), size) == Replayed(queued=6)
    assert waiting_calls(log) == [f"-{number}" for number in range(6)]


@pytest.mark.both_databases
def test_few_among_many_are_found_in_short_ranges(
    log: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "_RANGE", 2)
    for number in range(7):
        state = "failed" if number in (0, 6) else "succeeded"
        log.add_run(ended_call(log, f"-{number}"), CRM, state)
    ended_call(log, "-new")
    assert in_bulk(log, Selection(CRM, "failed")) == Replayed(queued=2)
    assert in_bulk(log, Selection(CRM, "never")) == Replayed(queued=1)


@pytest.mark.both_databases
def test_what_comes_while_a_replay_continues_is_not_taken(log: StoredCalls) -> None:
    log.add_run(ended_call(log, "-1"), CRM, "failed")
    log.add_run(ended_call(log, "-2"), CRM, "failed")
    wanted = Selection(CRM)
    first, cursor = one_batch(log, wanted, size=1)
    assert (first, cursor) == (Replayed(queued=1), Cursor(1, 2, 0, 2))
    park_all(log)
    ended_call(log, "-3")
    done = Replayed()
    while cursor is not None:
        batch, cursor = one_batch(log, wanted, cursor, 1)
        done += batch
    assert done == Replayed(queued=1)
    assert waiting_calls(log) == ["-2"]


@pytest.mark.both_databases
def test_a_batch_costs_a_few_statements_however_many_runs_it_has(log: StoredCalls) -> None:
    call_ids = [ended_call(log, f"-{number}") for number in range(30)]
    for call_id in call_ids[:20]:
        log.add_run(call_id, CRM, "failed")
    statements: list[object] = []
    event.listen(log.database.writer, "before_cursor_execute", lambda *args: statements.append(1))
    in_bulk(log, Selection(CRM))
    assert len(statements) < 15


def test_a_replay_can_be_added_up_and_told() -> None:
    some = Replayed(1, 2, {"already waiting": 1})
    more = Replayed(1000, 0, {"already waiting": 1, "'x' is not repeatable": 3})
    assert str(some + more) == (
        "1,001 queued; 2 brought forward; 2 skipped: already waiting; "
        "3 skipped: 'x' is not repeatable"
    )
    assert ((some + more).changed, (some + more).total) == (1003, 1008)


@pytest.mark.both_databases
def test_a_latest_run_is_unique_for_its_handler_and_call(log: StoredCalls) -> None:
    call = ended_call(log)
    row = pending_run(call, CRM, NOW)
    log.write(lambda connection: connection.execute(insert(handler_runs), row))
    assert in_bulk(log, Selection(CRM)) == Replayed(skipped={"already waiting": 1})

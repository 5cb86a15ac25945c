"""What becomes too old goes, whole and in small batches; what is not done stays."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text
from typer.testing import CliRunner, Result

from millis_hooks.call_log.locks import FileHolder
from millis_hooks.call_log.search import call_search
from millis_hooks.call_log.tables import (
    call_metadata,
    calls,
    deliveries,
    drift,
    handler_runs,
    inbox,
    metadata,
    operator_sessions,
)
from millis_hooks.call_log.upkeep import removal, retention
from millis_hooks.call_log.upkeep.removal import Removal
from millis_hooks.call_log.upkeep.retention import Housekeeper
from millis_hooks.checks.database import check_retention
from millis_hooks.cli.commands import app
from millis_hooks.handlers.routing import Router
from millis_hooks.service import Service
from millis_hooks.settings import Settings
from support.databases import url_in
from support.storage import commits_of, rows, writing
from support.stored_calls import NOW, StoredCalls
from support.waiting import eventually

BEFORE = NOW - timedelta(days=30)
OLD, NEW = NOW - timedelta(days=31), NOW - timedelta(days=29)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    stored = StoredCalls(tmp_path)
    yield stored
    stored.database.close()


def add_whole_call(log: StoredCalls, session_id: str, received_at: datetime) -> int:
    """Add a call with everything that can hang on one."""
    prefetch = log.add_delivery("prefetch", session_id=session_id, received_at=received_at)
    end = log.add_delivery(session_id=session_id, received_at=received_at)
    minutes_ago = (NOW - received_at).total_seconds() / 60
    call_id = log.add_call(session_id, minutes_ago=minutes_ago, delivery_id=end)
    log.add_cost(call_id)
    log.add_attempt(log.add_run(call_id, "notify", "succeeded"))
    told = {"call_id": call_id, "key": "tier", "value": "gold", "received_at": received_at}
    seen = {"kind": "unknown_field", "path": "x", "sample": "1", "seen_at": received_at}
    log.write(lambda connection: connection.execute(insert(call_metadata), told))
    log.write(
        lambda connection: connection.execute(insert(drift), seen | {"delivery_id": prefetch})
    )
    return call_id


def prune(log: StoredCalls, before: datetime = BEFORE) -> Removal:
    batches = retention.prune(log.database.reader, log.write, before=before, now=NOW)
    return sum(batches, Removal())


def plan(log: StoredCalls) -> Removal:
    return retention.plan(log.database.reader, before=BEFORE)


def sessions(log: StoredCalls) -> list[str]:
    return sorted(call.session_id for call in rows(log.database, calls))


def counts(log: StoredCalls) -> dict[str, int]:
    """Count the rows of each table that has any, but for the marks of days that changed."""
    tables = [*metadata.sorted_tables, call_search]
    with log.database.reader.connect() as connection:
        counted = {table.name: len(connection.execute(select(table)).all()) for table in tables}
    return {name: n for name, n in counted.items() if n and name != "changed_days"}


@pytest.mark.both_databases
def test_an_old_call_goes_with_everything_that_hangs_on_it(log: StoredCalls) -> None:
    add_whole_call(log, "-new", NEW)
    of_one_call = counts(log)
    add_whole_call(log, "-old", OLD)
    planned = plan(log)
    assert prune(log) == planned == Removal(calls=1, deliveries=2, runs=1, search_rows=1)
    assert counts(log) == of_one_call
    assert sessions(log) == ["-new"]
    tables = ("deliveries", "cost_items", "handler_runs", "attempts", "call_metadata", "drift")
    assert [of_one_call[table] for table in tables] == [2, 1, 1, 1, 1, 1]


def test_age_is_counted_from_the_first_delivery(log: StoredCalls) -> None:
    add_whole_call(log, "-old", OLD)
    log.add_delivery(session_id="-old", received_at=NOW)
    assert prune(log).deliveries == 3
    assert counts(log) == {}


@pytest.mark.both_databases
@pytest.mark.parametrize("state", ["pending", "running", "retrying"])
def test_a_call_whose_handlers_are_not_done_stays_until_they_are(
    log: StoredCalls, state: str
) -> None:
    run_id = log.add_run(add_whole_call(log, "-busy", OLD), "other", state)
    assert prune(log) == plan(log) == Removal(kept=1)
    assert sessions(log) == ["-busy"]
    done = handler_runs.update().where(handler_runs.c.id == run_id).values(state="failed")
    log.write(lambda connection: connection.execute(done))
    assert prune(log).calls == 1


@pytest.mark.both_databases
def test_a_call_with_a_delivery_that_is_not_processed_stays(log: StoredCalls) -> None:
    add_whole_call(log, "-old", OLD)
    waiting = log.add_delivery(session_id="-old", received_at=NOW)
    log.write(lambda connection: connection.execute(insert(inbox), {"delivery_id": waiting}))
    assert prune(log) == plan(log) == Removal(kept=1)


@pytest.mark.both_databases
def test_old_deliveries_of_no_call_go_too(log: StoredCalls) -> None:
    add_whole_call(log, "-new", NEW)
    for received_at in (OLD, NEW):
        log.add_delivery(outcome="rejected", received_at=received_at)
        log.add_delivery(outcome="unparsed", received_at=received_at)
        log.add_delivery(outcome="unparsed", session_id="-lost", received_at=received_at)
    log.add_delivery(outcome="unparsed", session_id="-new", received_at=OLD)
    assert prune(log) == Removal(deliveries=3)
    kept = [delivery for delivery in rows(log.database, deliveries) if delivery.received_at == OLD]
    assert [delivery.session_id for delivery in kept] == ["-new"]


def test_a_delivery_of_no_call_that_is_not_processed_stays(log: StoredCalls) -> None:
    waiting = log.add_delivery("prefetch", received_at=OLD)
    log.write(lambda connection: connection.execute(insert(inbox), {"delivery_id": waiting}))
    assert prune(log) == Removal(kept=1)


@pytest.mark.both_databases
def test_operators_sessions_that_are_over_go(log: StoredCalls) -> None:
    known = {"operator": "admin", "created_at": OLD, "last_seen_at": OLD}
    over, valid = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    session_rows = [known | {"id_hash": str(at), "expires_at": at} for at in (over, valid)]
    log.write(lambda connection: connection.execute(insert(operator_sessions), session_rows))
    prune(log)
    assert [row.expires_at for row in rows(log.database, operator_sessions)] == [valid]


def add_many(log: StoredCalls, number: int) -> None:
    many = range(number)
    known = [{"session_id": f"-{each:05}", "received_at": OLD} for each in many]
    sent = {"kind": "prefetch", "outcome": "fresh", "status_code": 200, "body": b""}

    def write(connection: Connection) -> None:
        connection.execute(insert(calls), known)
        connection.execute(insert(deliveries), [each | sent for each in known])

    log.write(write)


@pytest.mark.both_databases
def test_many_calls_of_the_same_moment_go_in_many_transactions(log: StoredCalls) -> None:
    add_many(log, 600)
    commits = commits_of(log.database)
    assert prune(log).calls == 600
    assert sessions(log) == []
    assert len(commits) > 600 / removal._MOST_IN_BATCH


def test_pruning_can_stop_after_any_batch_and_continue_another_time(log: StoredCalls) -> None:
    add_many(log, 100)
    batches = retention.prune(log.database.reader, log.write, before=BEFORE, now=NOW)
    stopped = sum(islice(batches, 2), Removal())
    assert 0 < stopped.calls < 100
    assert prune(log).calls == 100 - stopped.calls


@pytest.mark.both_databases
def test_two_may_prune_at_once(log: StoredCalls) -> None:
    add_many(log, 100)
    batches = retention.prune(log.database.reader, log.write, before=BEFORE, now=NOW)
    first = next(batches)
    assert (first + prune(log)).calls == 100
    assert sum(batches, Removal()) == Removal()


def test_batches_become_smaller_where_they_take_long_and_larger_where_they_do_not() -> None:
    def sizes(batch_s: float) -> list[int]:
        taken: list[int] = []

        def remove(_connection: Connection, /, batch: Sequence[int]) -> Removal:
            taken.append(len(batch))
            return Removal()

        list(removal.in_batches(_at_once, remove, iter(range(3000)), batch_s=batch_s))
        return taken

    assert sizes(0.0)[:3] == [16, 8, 8]
    assert sizes(1e9)[:7] == [16, 32, 64, 128, 256, 512, 512]


def _at_once(work: Any, /) -> Any:
    return work(None)


def test_no_statement_reads_a_whole_table(log: StoredCalls) -> None:
    add_whole_call(log, "-old", OLD)
    log.add_delivery(outcome="unparsed", received_at=OLD)
    plans: list[str] = []

    def explain(
        connection: Connection, _cursor: object, statement: str, values: Any, *_: object
    ) -> None:
        if statement.startswith(("SELECT", "DELETE")):
            raw = connection.connection.dbapi_connection
            assert raw is not None
            cursor = raw.cursor()
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            plans.extend(str(row[3]) for row in cursor.fetchall())

    for engine in (log.database.reader, log.database.writer):
        event.listen(engine, "before_cursor_execute", explain)
    prune(log)
    scans = {plan for plan in plans if re.match(r"SCAN (?!call_search VIRTUAL|CONSTANT|\()", plan)}
    assert scans == {"SCAN operator_sessions", "SCAN rejections"}


def housekeeper(
    log: StoredCalls, writer: Any, *, days: int = 30, is_ours: bool = True
) -> Housekeeper:
    return Housekeeper(
        log.database.reader,
        writer,
        retention_days=days,
        pack_after_days=7,
        is_ours=lambda: is_ours,
        now=lambda: NOW,
    )


def test_the_service_prunes_by_itself(
    log: StoredCalls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="millis_hooks")
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.FIRST_S", 0.0)
    add_whole_call(log, "-old", OLD)
    add_whole_call(log, "-new", NEW)
    calls_came_until(log, NOW)
    with writing(log.database) as writer:
        keeper = housekeeper(log, writer)
        keeper.start()
        eventually(lambda: sessions(log) == ["-new"])
        keeper.close()
    assert "1 call, 2 webhook deliveries, 1 handler run removed" in caplog.text


@pytest.mark.parametrize("settings", [{"days": 0}, {"is_ours": False}])
def test_nothing_goes_where_all_is_kept_or_another_process_does_it(
    log: StoredCalls, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.FIRST_S", 0.0)
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.EVERY_S", 0.0)
    asked: list[str] = []
    add_whole_call(log, "-old", OLD)
    with writing(log.database) as writer:
        keeper = housekeeper(log, writer, **settings)
        monkeypatch.setattr(keeper, "_is_ours", lambda: asked.append("?"))
        keeper.start()
        if settings.get("days") != 0:
            eventually(lambda: len(asked) > 2)
        keeper.close()
    assert sessions(log) == ["-old"]


def test_a_stop_ends_it_after_the_batch_at_hand(log: StoredCalls) -> None:
    add_many(log, 100)
    calls_came_until(log, NOW)
    with writing(log.database) as writer:
        keeper = housekeeper(log, writer)
        keeper.close()
        assert 0 < keeper.tidy().calls < 100


def calls_came_until(log: StoredCalls, end: datetime, *, every_days: int = 2) -> None:
    """Deliveries of other sessions, as of a service that is in use."""
    for days in range(3 * every_days, -1, -every_days):
        received_at = end - timedelta(days=days)
        log.add_delivery("prefetch", session_id="-other", received_at=received_at)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("last", "later", "is_believed"),
    [
        pytest.param(timedelta(0), None, True, id="in use"),
        pytest.param(timedelta(days=14), None, True, id="a quiet fortnight"),
        pytest.param(timedelta(days=400), None, False, id="a clock that is ahead"),
        pytest.param(timedelta(days=16), None, False, id="half of the retention"),
        pytest.param(timedelta(days=400), timedelta(0), False, id="calls since it is ahead"),
        pytest.param(timedelta(days=-3), None, False, id="a clock that is behind"),
        pytest.param(timedelta(hours=-2), None, True, id="a clock that was set back a little"),
    ],
)
def test_nothing_goes_while_the_clock_is_in_doubt(
    log: StoredCalls,
    caplog: pytest.LogCaptureFixture,
    last: timedelta,
    later: timedelta | None,
    is_believed: bool,
) -> None:
    add_whole_call(log, "-old", NOW - timedelta(days=500))
    calls_came_until(log, NOW - last)
    if later is not None:
        log.add_delivery("prefetch", session_id="-later", received_at=NOW - later)
    with writing(log.database) as writer:
        keeper = housekeeper(log, writer)
        gone = keeper.tidy()
        keeper.close()
    assert bool(gone.total) is is_believed
    assert ("the clock may be wrong" in caplog.text) is not is_believed
    with log.database.reader.connect() as connection:
        states = [each.state for each in check_retention(connection, 30, NOW)]
        assert list(check_retention(connection, 0, NOW)) == []
    assert states == ([] if is_believed else ["bad"])


def test_a_log_without_deliveries_has_no_doubt(log: StoredCalls) -> None:
    with log.database.reader.connect() as connection:
        assert list(check_retention(connection, 30, NOW)) == []


def test_in_a_flood_it_rests_for_long(log: StoredCalls) -> None:
    with writing(log.database) as writer:
        keeper = housekeeper(log, writer)
        assert keeper._rest_s(0.01) == pytest.approx(0.09)
        writer.is_flooded = True
        assert keeper._rest_s(0.01) == 1.0


def test_a_failure_is_logged_and_the_next_hour_tries_again(
    log: StoredCalls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.FIRST_S", 0.0)
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.EVERY_S", 0.0)
    add_whole_call(log, "-old", OLD)
    add_whole_call(log, "-new", NOW - timedelta(days=2))  # by which the clock is believed
    log.write(lambda connection: connection.execute(text("ALTER TABLE inbox RENAME TO gone")))
    with writing(log.database) as writer:
        keeper = housekeeper(log, writer)
        keeper.start()
        eventually(lambda: "old calls are not removed for another hour" in caplog.text)
        log.write(lambda connection: connection.execute(text("ALTER TABLE gone RENAME TO inbox")))
        eventually(lambda: sessions(log) == ["-new"])
        keeper.close()


def test_a_service_keeps_house_while_it_runs(
    log: StoredCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.FIRST_S", 0.0)
    monkeypatch.setattr("millis_hooks.call_log.upkeep.retention.EVERY_S", 0.01)
    now = datetime.now(UTC)
    add_whole_call(log, "-old", now - timedelta(days=91))
    add_whole_call(log, "-new", now - timedelta(days=2))  # by which the clock is believed
    settings = Settings.load(database_url=url_in(tmp_path), insecure=True)

    async def serve() -> None:
        service = await Service.start(settings, Router(), None)
        await asyncio.to_thread(eventually, lambda: sessions(log) == ["-new"])
        await service.stop()

    asyncio.run(serve())
    assert not any("housekeeping" in thread.name for thread in threading.enumerate())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", url_in(tmp_path))
    return lambda *args, **options: CliRunner().invoke(
        app, ["prune", "--clock-is-right", *args], **options
    )


@pytest.mark.both_databases
def test_a_dry_run_says_what_would_go(log: StoredCalls, run: Callable[..., Result]) -> None:
    add_whole_call(log, "-old", datetime.now(UTC) - timedelta(days=91))
    result = run("--dry-run")
    assert ": 1 call, 2 webhook deliveries, 1 handler run.\n" in result.stdout
    assert sessions(log) == ["-old"]


def test_the_command_removes_what_is_older_than_a_number_of_days(
    log: StoredCalls, run: Callable[..., Result]
) -> None:
    busy = add_whole_call(log, "-busy", datetime.now(UTC) - timedelta(days=3))
    log.add_run(busy, "other", "pending")
    for days in (1, 3):
        add_whole_call(log, f"-{days}", datetime.now(UTC) - timedelta(days=days))
    result = run("--days", "2", "--yes")
    assert "Removed: 1 call, 2 webhook deliveries, 1 handler run.\n" in result.stdout
    assert "Kept for now: 1, as handlers are not done" in result.stderr
    assert sessions(log) == ["-1", "-busy"]


def test_nothing_goes_unless_someone_says_yes(log: StoredCalls, run: Callable[..., Result]) -> None:
    add_whole_call(log, "-old", datetime.now(UTC) - timedelta(days=91))
    result = run()
    assert (result.exit_code, sessions(log)) == (2, ["-old"])
    assert "Add --yes" in result.stderr


@pytest.mark.parametrize(("answer", "kept"), [("n\n", ["-old"]), ("y\n", [])])
def test_someone_at_a_terminal_is_asked(
    log: StoredCalls,
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    kept: list[str],
) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("millis_hooks.cli.terminal.sys", terminal)
    add_whole_call(log, "-old", datetime.now(UTC) - timedelta(days=91))
    assert "Remove them? [y/N]" in run(input=answer).stdout
    assert sessions(log) == kept


def test_an_interrupted_command_says_how_far_it_came(
    log: StoredCalls, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[Removal]:
        yield Removal(calls=1, deliveries=2)
        raise KeyboardInterrupt

    add_whole_call(log, "-old", datetime.now(UTC) - timedelta(days=91))
    monkeypatch.setattr(retention, "prune", interrupted)
    result = run("--yes")
    assert result.exit_code == 130
    assert "Removed so far: 1 call, 2 webhook deliveries." in result.stderr


def test_a_log_that_keeps_everything_is_pruned_by_days_only(
    log: StoredCalls, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_RETENTION_DAYS", "0")
    assert "RETENTION_DAYS is 0" in run("--yes").stderr
    assert ": nothing.\n" in run("--yes", "--days", "9").stdout


def test_the_command_leaves_room_for_a_service_at_work(
    log: StoredCalls, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr("millis_hooks.cli.common.time.sleep", rests.append)
    add_whole_call(log, "-old", datetime.now(UTC) - timedelta(days=91))
    holder = FileHolder(log.database.runner_lock)
    assert holder.hold()
    run("--yes")
    holder.let_go()
    assert (sessions(log), len(rests)) == ([], 1)

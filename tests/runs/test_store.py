from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete

from millis_hooks.call_log.tables import call_results, changed_days
from millis_hooks.protocol.results import Plain
from millis_hooks.runs.replay import replay_run
from millis_hooks.runs.store import AttemptEnd, ClaimedRun, record, take_back
from support.storage import rows
from support.stored_calls import NOW, StoredCalls

pytestmark = pytest.mark.both_databases

YESTERDAY = NOW - timedelta(days=1)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    """A call log with a call of yesterday, whose handler is running."""
    stored = StoredCalls(tmp_path)
    stored.add_handler("save")
    call_id = stored.add_call(minutes_ago=60 * 24, delivery_id=stored.add_delivery())
    stored.add_attempt(stored.add_run(call_id, "save", "running", spent=1))
    stored.write(lambda connection: connection.execute(delete(changed_days)))
    yield stored
    stored.database.close()


def end_attempt(connection: Connection) -> None:
    run = ClaimedRun(1, 1, "end_of_call", "save", spent=1, failed_run_id=None, attempt=1)
    end = AttemptEnd(run=run, ended_at=NOW, duration_ms=5.0, outcome="succeeded", state="succeeded")
    record(connection, [end], lambda name: ())


def interrupt(connection: Connection) -> None:
    take_back(connection, None, [], NOW)


def replay(connection: Connection) -> None:
    end_attempt(connection)
    connection.execute(delete(changed_days))
    replay_run(connection, 1, NOW)


@pytest.mark.parametrize("change", [end_attempt, interrupt, replay])
def test_what_changes_runs_marks_the_day_of_their_call(
    log: StoredCalls, change: Callable[[Connection], None]
) -> None:
    log.write(change)
    assert [row.day for row in rows(log.database, changed_days)] == [YESTERDAY.date()]


def end_with(log: StoredCalls, run_id: int, number: int = 2, **results: Plain) -> None:
    log.add_attempt(run_id, number)
    run = ClaimedRun(run_id, 1, "end_of_call", "save", spent=1, failed_run_id=None, attempt=number)
    end = AttemptEnd(
        run=run,
        ended_at=NOW,
        duration_ms=5.0,
        outcome="succeeded",
        state="succeeded",
        results=results,
    )
    log.write(lambda connection: record(connection, [end], lambda name: ()))


def stored_results(log: StoredCalls) -> dict[str, str | None]:
    return {row.name: row.text for row in rows(log.database, call_results)}


def test_the_results_of_a_replay_replace_those_before(log: StoredCalls) -> None:
    end_with(log, 1, booked=True, people=4.0, note="window", table=None)
    assert stored_results(log) == {"booked": "true", "people": "4", "note": "window", "table": None}
    log.write(lambda connection: replay_run(connection, 1, NOW))
    assert len(stored_results(log)) == 4
    end_with(log, 2, booked=False)
    assert stored_results(log) == {"booked": "false"}


def test_a_run_that_was_replaced_meanwhile_writes_no_results(log: StoredCalls) -> None:
    end_with(log, 1, booked=True)
    log.write(lambda connection: replay_run(connection, 1, NOW))
    end_with(log, 2, booked=False)
    end_with(log, 1, 3, booked=True)
    assert stored_results(log) == {"booked": "false"}

"""A call log is copied whole to the other kind of database, however often that is cut short."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from sqlalchemy import Connection, Executable, Table, delete, insert, select, text, update
from typer.testing import CliRunner, Result

from millis_hooks import MillisHooks
from millis_hooks.call_log import CallLog
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.migrations import open_database
from millis_hooks.call_log.raw_body import MARK
from millis_hooks.call_log.tables import (
    audit_log,
    calls,
    deliveries,
    handler_runs,
    inbox,
    keys,
    operators,
)
from millis_hooks.call_log.transfer.copy import COPIED, compare, snapshot
from millis_hooks.call_log.upkeep.removal import Write
from millis_hooks.call_log.upkeep.vacuum import pack_older
from millis_hooks.cli.commands import app
from millis_hooks.cli.common import is_served
from millis_hooks.exceptions import StorageError
from millis_hooks.protocol.samples import end_of_call_body
from support import databases
from support.app import SECRET, serving
from support.storage import NOW, ended, prefetched
from support.waiting import eventually

T = TypeVar("T")

SCRIPT = str(Path(sys.executable).with_name("millis-hooks"))
HOSTILE = "\x01'\"%s{}\\ \u202e\uffff😀\r\n" + "é" * 300
MOST = 2**63 - 1


class Logs(NamedTuple):
    """Where a log is, and where its copy is to be."""

    source: str
    target: str

    def copy(self) -> Result:
        return CliRunner().invoke(app, ["copy", "--from", self.source, "--to", self.target])

    def write(self, *statements: Executable) -> None:
        """Change the source, as the service would."""
        with at(self.source) as database, database.writer.begin() as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.fixture(params=["sqlite", "postgresql"])
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Logs:
    """An empty source of this kind, and a target of the other that is not there yet."""
    with databases.on("postgresql"):
        on_server = databases.url_in(tmp_path)
    in_file = f"sqlite:///{tmp_path / 'log.db'}"
    logs = Logs(in_file, on_server) if request.param == "sqlite" else Logs(on_server, in_file)
    CallLog(logs.source).close()
    return logs


@contextmanager
def at(url: str) -> Iterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        database.close()


def fill(url: str, batch: Sequence[Delivery]) -> None:
    """Have the deliveries come in and be processed."""
    log = CallLog(url, runs_for=lambda call: ["sync_crm", "tell"])
    log.writer.run(lambda connection: insert_deliveries(connection, batch))
    log.processor.wake()
    eventually(lambda: is_processed(log.database))
    log.close()


def is_processed(database: Database) -> bool:
    with database.reader.connect() as connection:
        return connection.execute(select(inbox)).first() is None


def write_with(database: Database) -> Write:
    def write(work: Callable[[Connection], T], /) -> T:
        with database.writer.begin() as connection:
            return work(connection)

    return write


def ordinary(count: int) -> list[Delivery]:
    sessions = [f"-s{number}" for number in range(count)]
    return [*map(prefetched, sessions), *map(ended, sessions)]


def contents(url: str) -> dict[str, list[Any]]:
    """Every row of every table, as it is stored."""
    with at(url) as database, database.reader.connect() as connection:
        return {
            table.name: list(connection.execute(select(table).order_by(*table.primary_key)))
            for table in COPIED
        }


def is_copied(logs: Logs) -> bool:
    return contents(logs.source) == contents(logs.target)


def insert_hostile(url: str) -> None:
    """Add rows with what databases disagree about."""
    rows: list[tuple[Table, dict[str, Any]]] = [
        (calls, {"id": MOST - 1, "session_id": "-x", "received_at": NOW, "snippet": HOSTILE}),
        (calls, {"session_id": "-y", "received_at": NOW, "duration_s": 1e308, "cost_total": -0.1}),
        (calls, {"session_id": HOSTILE, "received_at": datetime(1, 1, 1, tzinfo=UTC)}),
        (calls, {"session_id": "-z", "received_at": datetime.max.replace(tzinfo=UTC)}),
        (calls, {"session_id": "x" * 5000, "received_at": NOW, "chars_used": MOST}),
        (audit_log, {"at": NOW, "action": HOSTILE, "operator": "", "times": 2}),
        (operators, {"name": HOSTILE, "role": "view", "password_hash": "x", "created_at": NOW}),
        (keys, {"name": HOSTILE, "value": MARK}),
    ]
    with at(url) as database, database.writer.begin() as connection:
        connection.execute(insert(calls), rows[1][1])
        for table, row in rows[2:] + rows[:1]:
            connection.execute(insert(table), row)


def test_every_row_of_every_table_is_copied(logs: Logs) -> None:
    odd = [ended("-odd", MARK + b"\0\xff"), ended("-empty", b""), ended("-big", bytes(3_000_000))]
    odd.append(ended("-long", end_of_call_body(session_id="-long", metadata={"a": "é" * 9000})))
    fill(logs.source, [*ordinary(30), *odd])
    with at(logs.source) as database:
        list(pack_older(database.reader, write_with(database), before=NOW))
    insert_hostile(logs.source)
    result = logs.copy()
    assert result.exit_code == 0, result.output
    assert is_copied(logs)
    assert "The copy is finished" in result.output


def test_an_empty_log_is_copied_too(logs: Logs) -> None:
    assert logs.copy().exit_code == 0
    assert is_copied(logs)


def test_the_copy_is_served_like_its_source(logs: Logs) -> None:
    fill(logs.source, ordinary(3))
    logs.copy()
    hooks = MillisHooks(secrets=SECRET, database_url=logs.target)
    with serving(hooks) as client:
        sent = client.post("/millis/end-of-call", content=end_of_call_body(session_id="-new"))
        assert sent.status_code == 200
    assert [row.session_id for row in contents(logs.target)["deliveries"]][-1] == "-new"


def test_no_id_is_given_again_though_its_row_is_gone(logs: Logs) -> None:
    fill(logs.source, ordinary(3))
    last = contents(logs.source)["calls"][-1].id
    logs.write(
        delete(calls).where(calls.c.id == last), delete(deliveries).where(deliveries.c.id == 6)
    )
    logs.copy()
    fill(logs.target, [prefetched("-new")])
    new = contents(logs.target)
    assert new["deliveries"][-1].id == 7
    assert new["calls"][-1].id > last


#: The command, killed before its third batch.
KILLED = """
import os, signal
from itertools import count
from millis_hooks.call_log.transfer import copy as copying
from millis_hooks.cli import main

batches, differences = count(1), copying._differences

def kill_or_go_on(*args, **options):
    if next(batches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return differences(*args, **options)

copying._differences = kill_or_go_on
main()
"""


def test_a_copy_that_was_killed_goes_on(logs: Logs) -> None:
    fill(logs.source, ordinary(20))
    command = [sys.executable, "-c", KILLED, "copy", "--from", logs.source, "--to", logs.target]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not is_copied(logs)
    result = logs.copy()
    assert "Continuing" in result.output
    assert is_copied(logs)


def test_a_second_copy_takes_over_what_has_changed(logs: Logs) -> None:
    fill(logs.source, ordinary(20))
    with at(logs.target) as database:
        pass
    hooks = MillisHooks(secrets=SECRET, database_url=logs.source)
    with serving(hooks), at(logs.source) as database:
        eventually(lambda: is_served(database))
        first = logs.copy()
    assert first.exit_code == 1
    assert "is not finished" in first.output
    logs.write(
        update(calls).where(calls.c.session_id == "-s5").values(snippet="other"),
        update(handler_runs).where(handler_runs.c.id == 7).values(is_latest=False),
        delete(calls).where(calls.c.session_id.in_(["-s0", "-s19"])),
        delete(deliveries).where(deliveries.c.session_id.in_(["-s0", "-s19"])),
    )
    fill(logs.source, [prefetched("-new"), ended("-new"), ended("-s3", b"{}")])
    assert not is_copied(logs)
    assert logs.copy().exit_code == 0
    assert is_copied(logs)


def test_no_service_starts_on_a_copy_that_is_not_finished(logs: Logs) -> None:
    with (
        at(logs.source) as database,
        serving(MillisHooks(secrets=SECRET, database_url=logs.source)),
    ):
        eventually(lambda: is_served(database))
        logs.copy()
    with pytest.raises(StorageError, match="unfinished copy of"):
        CallLog(logs.target)


def test_what_is_served_is_not_copied_into(logs: Logs) -> None:
    CallLog(logs.target).close()
    with (
        at(logs.target) as database,
        serving(MillisHooks(secrets=SECRET, database_url=logs.target)),
    ):
        eventually(lambda: is_served(database))
        result = logs.copy()
    assert result.exit_code == 1
    assert "Stop it first" in result.output


def test_a_log_with_calls_of_its_own_is_left_alone(logs: Logs) -> None:
    fill(logs.target, ordinary(1))
    before = contents(logs.target)
    result = logs.copy()
    assert result.exit_code == 2
    assert "of its own" in result.output
    assert contents(logs.target) == before


def test_a_log_is_not_copied_into_itself(logs: Logs) -> None:
    result = Logs(logs.source, logs.source).copy()
    assert "the same call log" in result.output


def test_an_unfinished_copy_has_one_source_and_is_none_itself(logs: Logs, tmp_path: Path) -> None:
    with (
        at(logs.source) as database,
        serving(MillisHooks(secrets=SECRET, database_url=logs.source)),
    ):
        eventually(lambda: is_served(database))
        logs.copy()
    third = f"sqlite:///{tmp_path / 'third.db'}"
    CallLog(third).close()
    assert "is an unfinished copy of another log" in Logs(third, logs.target).copy().output
    assert "is itself an unfinished copy" in Logs(logs.target, third).copy().output


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    result = Logs(f"sqlite:///{missing}", f"sqlite:///{tmp_path / 'log.db'}").copy()
    assert result.exit_code == 1
    assert "There is no call log" in result.output
    assert not missing.exists()


def test_what_differs_is_found_by_its_table(logs: Logs) -> None:
    fill(logs.source, ordinary(3))
    logs.copy()
    with at(logs.target) as database, database.writer.begin() as connection:
        connection.execute(update(deliveries).where(deliveries.c.id == 3).values(body=b"other"))
    with (
        at(logs.source) as source,
        at(logs.target) as target,
        snapshot(source) as state,
        snapshot(target) as copied,
    ):
        compared = list(compare(state, copied, lambda done: None))
    assert [each.table for each in compared if not each.is_same] == ["deliveries"]


def test_a_row_that_is_refused_is_named(tmp_path: Path) -> None:
    with databases.on("postgresql"):
        logs = Logs(f"sqlite:///{tmp_path / 'log.db'}", databases.url_in(tmp_path))
    fill(logs.source, ordinary(3))
    logs.write(text("UPDATE calls SET snippet = 'a' || char(0) WHERE id = 2"))
    result = logs.copy()
    assert result.exit_code == 2
    assert "refuses the row 2 of calls" in result.output


def test_the_source_is_only_read(tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    logs = Logs(f"sqlite:///{file}", f"sqlite:///{tmp_path / 'copy.db'}")
    fill(logs.source, ordinary(3))
    before = file.read_bytes()
    assert logs.copy().exit_code == 0
    assert file.read_bytes() == before

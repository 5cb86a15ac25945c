"""A call log is copied whole into an empty one, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Executable, Table, delete, insert, select, text
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
    inbox,
    keys,
    operators,
)
from millis_hooks.call_log.transfer.copy import COPIED, copy
from millis_hooks.call_log.upkeep.file import pack_older
from millis_hooks.call_log.upkeep.removal import writing_by
from millis_hooks.cli.commands import app
from millis_hooks.cli.common import is_served
from millis_hooks.protocol.samples import end_of_call_body
from support import databases
from support.app import SECRET, serving
from support.storage import NOW, ended, prefetched, rows
from support.waiting import eventually

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
def between_kinds(request: pytest.FixtureRequest, tmp_path: Path) -> Logs:
    """An empty source of this kind, and a target of the other that is not there yet."""
    with databases.on("postgresql"):
        on_server = databases.url_in(tmp_path)
    in_file = f"sqlite:///{tmp_path / 'log.db'}"
    logs = Logs(in_file, on_server) if request.param == "sqlite" else Logs(on_server, in_file)
    CallLog(logs.source).close()
    return logs


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    """A source with a few calls, and a target that is not there yet, both in files."""
    logs = Logs(f"sqlite:///{tmp_path / 'log.db'}", f"sqlite:///{tmp_path / 'copy.db'}")
    fill(logs.source, ordinary(3))
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
    odd: list[tuple[Table, dict[str, Any]]] = [
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
        connection.execute(insert(calls), odd[1][1])
        for table, row in odd[2:] + odd[:1]:
            connection.execute(insert(table), row)


def test_every_row_of_every_table_is_copied(between_kinds: Logs) -> None:
    logs = between_kinds
    odd = [ended("-odd", MARK + b"\0\xff"), ended("-empty", b""), ended("-big", bytes(3_000_000))]
    odd.append(ended("-long", end_of_call_body(session_id="-long", metadata={"a": "é" * 9000})))
    fill(logs.source, [*ordinary(10), *odd])
    with at(logs.source) as database:
        list(pack_older(database.reader, writing_by(database.writer), before=NOW))
    insert_hostile(logs.source)
    result = logs.copy()
    assert result.exit_code == 0, result.output
    assert is_copied(logs)
    assert "The copy is finished" in result.output


def test_no_id_is_given_again_though_its_row_is_gone(between_kinds: Logs) -> None:
    logs = between_kinds
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


def test_a_row_that_is_refused_is_named_and_nothing_is_copied(tmp_path: Path) -> None:
    with databases.on("postgresql"):
        logs = Logs(f"sqlite:///{tmp_path / 'log.db'}", databases.url_in(tmp_path))
    fill(logs.source, ordinary(3))
    logs.write(text("UPDATE calls SET snippet = 'a' || char(0) WHERE id = 2"))
    result = logs.copy()
    assert "refuses the row 2 of calls" in str(result.exception) + result.output
    assert not any(contents(logs.target).values())
    logs.write(text("UPDATE calls SET snippet = 'a' WHERE id = 2"))
    assert logs.copy().exit_code == 0
    assert is_copied(logs)


def test_an_empty_log_is_copied_too(tmp_path: Path) -> None:
    logs = Logs(f"sqlite:///{tmp_path / 'log.db'}", f"sqlite:///{tmp_path / 'copy.db'}")
    CallLog(logs.source).close()
    assert logs.copy().exit_code == 0
    assert is_copied(logs)


def test_the_copy_is_served_like_its_source(logs: Logs) -> None:
    logs.copy()
    hooks = MillisHooks(secrets=SECRET, database_url=logs.target)
    with serving(hooks) as client:
        sent = client.post("/millis/end-of-call", content=end_of_call_body(session_id="-new"))
        assert sent.status_code == 200
    assert [row.session_id for row in contents(logs.target)["deliveries"]][-1] == "-new"


def test_a_copy_that_is_interrupted_starts_again(logs: Logs) -> None:
    def interrupt(done: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    CallLog(logs.target).close()
    with at(logs.source) as source, at(logs.target) as target:
        with pytest.raises(KeyboardInterrupt):
            copy(source, target, interrupt)
        assert rows(target, deliveries) == []
    assert logs.copy().exit_code == 0
    assert is_copied(logs)


def test_no_service_may_run_on_either(logs: Logs) -> None:
    CallLog(logs.target).close()
    for url, message in ((logs.target, "Stop it first"), (logs.source, "would not be copied")):
        with at(url) as database, serving(MillisHooks(secrets=SECRET, database_url=url)):
            eventually(lambda: is_served(database))
            result = logs.copy()
        assert result.exit_code == 1
        assert message in result.output


def test_a_log_with_calls_of_its_own_is_left_alone(logs: Logs) -> None:
    before = contents(logs.source)
    result = Logs(logs.source, logs.source).copy()
    assert result.exit_code == 2
    assert "calls of its own" in result.output
    assert contents(logs.source) == before


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    result = Logs(f"sqlite:///{missing}", f"sqlite:///{tmp_path / 'log.db'}").copy()
    assert result.exit_code == 1
    assert "There is no call log" in result.output
    assert not missing.exists()


def test_the_source_is_only_read(logs: Logs, tmp_path: Path) -> None:
    file = tmp_path / "log.db"
    before = file.read_bytes()
    assert logs.copy().exit_code == 0
    assert file.read_bytes() == before

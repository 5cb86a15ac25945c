"""Call logs as earlier releases left them: their schema, and rows as they wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from millis_hooks.call_log import migrations
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import content_hash
from millis_hooks.call_log.search import fold
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from support.databases import url_in

SCHEMAS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010")
WHEN = "2026-11-{day:02} 14:20:00.123456"
#: How the runs of each call ended, by what the first release called it, and its attempts.
RUNS = (("succeeded", 1), ("pending", 0), ("failed", 2), ("running", 1))

Rows = dict[str, list[dict[str, Any]]]


def make_old_log(folder: Path, schema: str, *, calls: int = 8) -> None:
    """Write a log of this schema to `log.db` in the folder."""
    database = Database(url_in(folder))
    engine = database.open_for_migration()
    with engine.begin() as connection:
        _upgrade_to(connection, schema)
        _insert(connection, "keys", name="operator_sessions", value=b"k" * 32)
        for number in range(1, calls + 1):
            _add_call(connection, number)
        _add_unparsed(connection)
        _add_unprocessed(connection)
    engine.dispose()
    database.close()


def contents(folder: Path) -> Rows:
    """Every row of every table, as the driver reads them."""
    database = Database(url_in(folder))
    with database.reader.connect() as connection:
        named = text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        tables = [name for name in connection.scalars(named) if not name.startswith("sqlite_")]
        found = {table: _rows(connection, table) for table in tables}
    database.close()
    return found


def _rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]


def _upgrade_to(connection: Connection, schema: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, schema)


def _insert(connection: Connection, table: str, **columns: Any) -> int:
    names, places = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    inserted = text(f"INSERT INTO {table} ({names}) VALUES ({places})")
    return int(connection.execute(inserted, columns).lastrowid)


def _add_call(connection: Connection, number: int) -> None:
    session_id, when = f"-s{number}", WHEN.format(day=number % 28 + 1)
    asked = prefetch_query(session_id=session_id)
    _add_delivery(connection, "prefetch", session_id, when, "fresh", query=asked, latency_ms=1.5)
    body = end_of_call_body(session_id=session_id)
    delivery_id = _add_delivery(connection, "end_of_call", session_id, when, "stored", body=body)
    call_id = _insert(
        connection,
        "calls",
        session_id=session_id,
        received_at=when,
        delivery_id=delivery_id,
        ended_at=when,
        agent_id="-agent",
        outcome="completed",
        duration_s=41.0,
        cost_total=0.0168,
        customer_phone="+14155550134",
    )
    _insert(connection, "cost_items", call_id=call_id, position=0, type="llm", credit=0.01)
    said = f"{session_id} a table for two"
    searched = {"text": said, "folded": fold(said)}
    there = {column["name"] for column in inspect(connection).get_columns("call_search")}
    known = {name: value for name, value in searched.items() if name in there}
    _insert(connection, "call_search", rowid=call_id, **known)
    _add_run(connection, call_id, when, *RUNS[number % len(RUNS)])


def _add_run(connection: Connection, call_id: int, when: str, state: str, attempts: int) -> None:
    run = {"call_id": call_id, "handler": "sync_crm", "state": state, "created_at": when}
    columns = {column["name"] for column in inspect(connection).get_columns("handler_runs")}
    later = {
        "hook": "end_of_call",
        "is_latest": 1,
        "is_replay": 0,
        "spent": attempts,
        "state_since": when,
        "due_at": when if state == "failed" else None,
    }
    run_id = _insert(connection, "handler_runs", **run | (later if "hook" in columns else {}))
    for number in range(1, attempts + 1):
        _insert(connection, "attempts", run_id=run_id, number=number, started_at=when)


def _add_unparsed(connection: Connection) -> None:
    _add_delivery(
        connection, "end_of_call", None, WHEN.format(day=1), "unparsed", body=b"{", reason="no JSON"
    )


def _add_unprocessed(connection: Connection) -> None:
    """Add what was acknowledged just before the earlier release was stopped."""
    body = end_of_call_body(session_id="-waiting")
    when = WHEN.format(day=1)
    delivery_id = _add_delivery(connection, "end_of_call", "-waiting", when, "stored", body=body)
    _insert(connection, "inbox", delivery_id=delivery_id)


def _add_delivery(
    connection: Connection,
    kind: str,
    session_id: str | None,
    when: str,
    outcome: str,
    *,
    body: bytes = b"",
    **columns: Any,
) -> int:
    return _insert(
        connection,
        "deliveries",
        kind=kind,
        session_id=session_id,
        received_at=when,
        outcome=outcome,
        status_code=200,
        body=body,
        content_hash=content_hash(body) if body else None,
        **columns,
    )

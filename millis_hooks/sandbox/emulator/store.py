"""The file of the sandbox: its agents, and the calls of the last day.

It lies beside the call log, which holds only what was received. Removing it loses nothing else.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from ...call_log.database import is_file
from ...environment.private_files import make_private
from ...masking.policy import mask_secrets
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ...settings import Settings
from .schemas import LogQuery

#: How long calls are kept.
KEPT = timedelta(days=1)

_VERSION = 3
#: Calls without a `call_status` are not in Millis' call logs, only on the sandbox's page.
_TABLES = """
DROP TABLE IF EXISTS agents;
DROP TABLE IF EXISTS phones;
DROP TABLE IF EXISTS calls;
DROP TABLE IF EXISTS rehearsals;
CREATE TABLE agents (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, config TEXT NOT NULL, created_at INTEGER NOT NULL
);
CREATE TABLE phones (phone TEXT PRIMARY KEY, agent_id TEXT, created_at REAL NOT NULL);
CREATE TABLE calls (
  session_id TEXT PRIMARY KEY, ts REAL NOT NULL UNIQUE, agent_id TEXT, call_status TEXT,
  from_phone TEXT, to_phone TEXT, entry TEXT NOT NULL, messages TEXT NOT NULL,
  about TEXT NOT NULL, steps TEXT NOT NULL
);
"""
#: The SQL of each filter of `call-logs`.
_CONDITIONS = {
    "start_after_ts": "ts < :start_after_ts",
    "start_time": "ts >= :start_time",
    "end_time": "ts <= :end_time",
    "agent_id": "agent_id = :agent_id",
    "call_status": "call_status = :call_status",
    "phone_number": ":phone_number IN (from_phone, to_phone)",
}


def sandbox_file(settings: Settings) -> Path | str:
    """Return the path of the sandbox's file.

    It is in memory where the call log is not a file, or stores only redacted calls.
    """
    if settings.redact_before_store or not is_file(settings.database_url):
        return ":memory:"
    file = Path(make_url(settings.database_url).database or "")
    return file.with_name(f"{file.stem}-sandbox.db")


@dataclass(frozen=True, slots=True)
class StoredAgent:
    """An agent as Millis' API has it. `created_at` are Unix seconds."""

    id: str
    name: str
    config: dict[str, Json]
    created_at: int


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The steps of a call, as JSON; `about` is what else the sandbox's page has to know of it."""

    about: Mapping[str, Any]
    steps: Sequence[dict[str, Any]]


class Store:
    """The file. Its methods block for as long as SQLite takes, and may be called by any thread."""

    def __init__(self, file: Path | str, *, now: Callable[[], datetime]) -> None:
        """Open the file, and make its tables if they are missing or of another version."""
        self._now = now
        self._lock = threading.RLock()
        if isinstance(file, Path):
            make_private(file)
        self._database = sqlite3.connect(file, check_same_thread=False)
        if self._execute("PRAGMA user_version")[0][0] != _VERSION:
            self._database.executescript(f"{_TABLES} PRAGMA user_version = {_VERSION};")
        # The process that ran them has ended.
        sql = "UPDATE calls SET call_status = NULL WHERE call_status = ?"
        self._execute(sql, CallStatus.IN_PROGRESS)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def agents(self) -> list[StoredAgent]:
        """Return every agent, the oldest first."""
        return [_agent(row) for row in self._execute("SELECT * FROM agents ORDER BY id")]

    def agent(self, agent_id: str) -> StoredAgent | None:
        """Return an agent by its id."""
        rows = self._execute("SELECT * FROM agents WHERE id = ?", agent_id)
        return _agent(rows[0]) if rows else None

    def put_agent(self, agent: StoredAgent) -> None:
        """Store an agent, in place of the one that has its id."""
        row = (agent.id, agent.name, json.dumps(agent.config), agent.created_at)
        self._execute("INSERT OR REPLACE INTO agents VALUES (?, ?, ?, ?)", *row)

    def remove_agent(self, agent_id: str) -> None:
        """Remove an agent."""
        self._execute("DELETE FROM agents WHERE id = ?", agent_id)

    def phones(self) -> list[dict[str, Any]]:
        """Return every number whose agent was set, as the API shows it."""
        rows = self._execute("SELECT phone, agent_id, created_at FROM phones ORDER BY phone")
        names = ("id", "agent_id", "create_at")
        return [{**dict(zip(names, row, strict=True)), "status": "active"} for row in rows]

    def agent_of_phone(self, phone: str) -> str | None:
        """Return the id of a number's agent."""
        rows = self._execute("SELECT agent_id FROM phones WHERE phone = ?", phone)
        return rows[0][0] if rows else None

    def set_agent_of_phone(self, phone: str, agent_id: str | None) -> None:
        """Have a number used by an agent, or by none."""
        sql = "INSERT INTO phones VALUES (?, ?, ?) ON CONFLICT (phone) DO UPDATE SET agent_id = ?"
        self._execute(sql, phone, agent_id, self._now().timestamp(), agent_id)

    def put_call(
        self,
        entry: Mapping[str, Any],
        rehearsal: Rehearsal,
        *,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Store a call, in place of its earlier state: its entry in Millis' call logs, what was
        said, and its steps.

        Secrets of the agent's configuration are masked. No two calls have the same `ts`, because
        it is the cursor of the pages.
        """
        with self._lock:
            self._execute("DELETE FROM calls WHERE ts <= ?", self._oldest())
            config = mask_secrets(dict(entry.get("agent_config") or {})).value
            entry = {**entry, "agent_config": config, "ts": self._free_ts(entry)}
            voip = entry.get("voip") or {}
            self._execute(
                "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(entry.get(name) for name in ("session_id", "ts", "agent_id", "call_status")),
                *(voip.get(name) for name in ("from", "to")),
                *map(json.dumps, (entry, list(messages), rehearsal.about, rehearsal.steps)),
            )

    def calls(self, query: LogQuery) -> list[dict[str, Any]]:
        """Return a page of the call logs, the newest calls first."""
        values = query.model_dump(exclude_none=True)
        conditions = [_CONDITIONS[name] for name in values if name in _CONDITIONS]
        where = " AND ".join(["ts > :oldest", "call_status IS NOT NULL", *conditions])
        # The conditions are constants; the values are bound.
        sql = f"SELECT entry FROM calls WHERE {where} ORDER BY ts DESC LIMIT :limit"  # noqa: S608
        with self._lock:
            rows = self._database.execute(sql, {"oldest": self._oldest(), **values}).fetchall()
        return [json.loads(entry) for (entry,) in rows]

    def call(self, session_id: str) -> dict[str, Any] | None:
        """Return the entry of a call in the call logs."""
        row = self._row("entry", session_id, "call_status IS NOT NULL")
        return row[0] if row else None

    def messages(self, session_id: str) -> list[dict[str, Json]]:
        """Return what was said in a call."""
        row = self._row("messages", session_id)
        return row[0] if row else []

    def rehearsal(self, session_id: str) -> Rehearsal | None:
        """Return a call as the sandbox's page shows it."""
        row = self._row("about, steps", session_id)
        return Rehearsal(*row) if row else None

    def _row(self, columns: str, session_id: str, condition: str = "TRUE") -> list[Any] | None:
        session_id = session_id.encode("utf-8", "replace").decode()
        # Columns and condition are constants.
        sql = f"SELECT {columns} FROM calls WHERE session_id = ? AND ts > ? AND {condition}"  # noqa: S608
        rows = self._execute(sql, session_id, self._oldest())
        return [json.loads(text) for text in rows[0]] if rows else None

    def _free_ts(self, entry: Mapping[str, Any]) -> float:
        ts = round(float(entry["ts"]), 6)
        others = "SELECT 1 FROM calls WHERE ts = ? AND session_id != ?"
        while self._execute(others, ts, entry["session_id"]):
            ts = round(ts + 0.000001, 6)
        return ts

    def _oldest(self) -> float:
        return (self._now() - KEPT).timestamp()

    def _execute(self, sql: str, *values: object) -> list[Any]:
        with self._lock, self._database:
            return self._database.execute(sql, values).fetchall()


def _agent(row: Sequence[Any]) -> StoredAgent:
    agent_id, name, config, created_at = row
    return StoredAgent(agent_id, name, json.loads(config), created_at)

"""What the sandbox keeps: the agents that were made in it, and the calls of the last day.

It is a file of its own beside the call log, which has nothing in it that was not received.
Whoever removes it loses rehearsals and nothing else.

What the sandbox's page remembers of its calls for a day: how they were begun, and every step.
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

from ...environment.private_files import make_private
from ...masking.policy import mask_secrets
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from .schemas import LogQuery

#: How long calls are kept.
KEPT = timedelta(days=1)

_VERSION = 1
_TABLES = """
DROP TABLE IF EXISTS agents;
DROP TABLE IF EXISTS calls;
CREATE TABLE agents (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, config TEXT NOT NULL, created_at INTEGER NOT NULL
);
CREATE TABLE calls (
  session_id TEXT PRIMARY KEY, ts REAL NOT NULL UNIQUE, agent_id TEXT, call_status TEXT,
  from_phone TEXT, to_phone TEXT, entry TEXT NOT NULL, messages TEXT NOT NULL, steps TEXT NOT NULL
);
"""
#: It came later; those who have the others keep what is in them.
_PHONES = """
CREATE TABLE IF NOT EXISTS phones (
  phone TEXT PRIMARY KEY, agent_id TEXT, created_at REAL NOT NULL
)
"""
#: A condition each, for what a query may ask for.
_CONDITIONS = {
    "start_after_ts": "ts < :start_after_ts",
    "start_time": "ts >= :start_time",
    "end_time": "ts <= :end_time",
    "agent_id": "agent_id = :agent_id",
    "call_status": "call_status = :call_status",
    "phone_number": ":phone_number IN (from_phone, to_phone)",
}


@dataclass(frozen=True, slots=True)
class KnownAgent:
    """An agent as Millis has it. `created_at` are Unix seconds."""

    id: str
    name: str
    config: Mapping[str, Json]
    created_at: int

    def as_json(self) -> dict[str, Any]:
        """Return it as the API shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "config": dict(self.config),
            "created_at": self.created_at,
        }


class Shelf:
    """The file. Its methods block for as long as SQLite takes, and may be called by any thread."""

    def __init__(self, file: Path | str, *, now: Callable[[], datetime]) -> None:
        """Open the file, and make its tables if they are not there or of another version."""
        self._now = now
        self._lock = threading.RLock()
        if isinstance(file, Path):
            make_private(file)
        self._database = sqlite3.connect(file, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        if self._ask("PRAGMA user_version")[0][0] != _VERSION:
            self._database.executescript(f"{_TABLES} PRAGMA user_version = {_VERSION};")
        self._ask(_PHONES)
        # The process that they were under way in has ended.
        self._ask("DELETE FROM calls WHERE call_status = ?", (CallStatus.IN_PROGRESS,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def agents(self) -> list[KnownAgent]:
        """Return every agent, those first that were made first."""
        return [_agent(row) for row in self._ask("SELECT * FROM agents ORDER BY id")]

    def agent(self, agent_id: str) -> KnownAgent | None:
        """Return an agent by its id."""
        rows = self._ask("SELECT * FROM agents WHERE id = ?", (agent_id,))
        return _agent(rows[0]) if rows else None

    def put_agent(self, agent: KnownAgent) -> None:
        """Keep an agent, in place of the one that has its id."""
        row = (agent.id, agent.name, json.dumps(agent.config), agent.created_at)
        self._ask("INSERT OR REPLACE INTO agents VALUES (?, ?, ?, ?)", row)

    def remove_agent(self, agent_id: str) -> bool:
        """Remove an agent; tells whether there was one."""
        return bool(self._ask("DELETE FROM agents WHERE id = ? RETURNING id", (agent_id,)))

    def phones(self) -> list[dict[str, Any]]:
        """Return every number whose agent was set, as the API shows it."""
        rows = self._ask("SELECT phone, agent_id, created_at FROM phones ORDER BY phone")
        names = ("id", "agent_id", "create_at")
        return [{**dict(zip(names, row, strict=True)), "status": "active"} for row in rows]

    def agent_of_phone(self, phone: str) -> str | None:
        """Return the id of a number's agent."""
        rows = self._ask("SELECT agent_id FROM phones WHERE phone = ?", (phone,))
        return rows[0][0] if rows else None

    def set_agent_of_phone(self, phone: str, agent_id: str | None) -> None:
        """Have a number answered by, and call for, an agent; or by none."""
        row = (phone, agent_id, self._now().timestamp(), agent_id)
        self._ask(
            "INSERT INTO phones VALUES (?, ?, ?) ON CONFLICT (phone) DO UPDATE SET agent_id = ?",
            row,
        )

    def keep(
        self,
        entry: Mapping[str, Any],
        *,
        messages: Sequence[Mapping[str, Any]] = (),
        steps: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Keep a call: what Millis' call logs have of it, what was said and every step.

        Secrets of the agent's configuration are masked. No two calls have the same `ts`, because
        that is what pages of call logs are told apart by.
        """
        with self._lock:
            self._forget_old()
            masked = mask_secrets(dict(entry.get("agent_config") or {})).value
            entry = {**entry, "agent_config": masked, "ts": self._free_ts(entry)}
            voip = entry.get("voip") or {}
            row = (
                entry["session_id"],
                entry["ts"],
                entry.get("agent_id"),
                entry.get("call_status"),
                voip.get("from"),
                voip.get("to"),
                *map(json.dumps, (entry, list(messages), list(steps))),
            )
            self._ask("INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def calls(self, query: LogQuery) -> list[dict[str, Any]]:
        """Return a page of the call logs, the newest calls first."""
        asked = query.model_dump(exclude_none=True)
        conditions = [_CONDITIONS[name] for name in asked if name in _CONDITIONS]
        where = " AND ".join(["ts > :since", *conditions])
        # The conditions are constants of this module; what is asked for is bound.
        rows = self._ask(
            f"SELECT entry FROM calls WHERE {where} ORDER BY ts DESC LIMIT :limit",  # noqa: S608
            {"since": self._since(), **asked},
        )
        return [json.loads(row["entry"]) for row in rows]

    def call(self, session_id: str) -> dict[str, Any] | None:
        """Return what the call logs have of a call."""
        found = self._column("entry", session_id)
        return found if isinstance(found, dict) else None

    def messages(self, session_id: str) -> list[dict[str, Json]]:
        """Return what was said in a call."""
        return self._column("messages", session_id) or []

    def steps(self, session_id: str) -> list[dict[str, Any]]:
        """Return every step of a call, as JSON."""
        return self._column("steps", session_id) or []

    def _column(self, name: str, session_id: str) -> Any:
        sql = f"SELECT {name} FROM calls WHERE session_id = ? AND ts > ?"  # noqa: S608
        rows = self._ask(sql, (session_id, self._since()))
        return json.loads(rows[0][0]) if rows else None

    def _free_ts(self, entry: Mapping[str, Any]) -> float:
        ts = round(float(entry["ts"]), 6)
        others = "SELECT 1 FROM calls WHERE ts = ? AND session_id != ?"
        while self._ask(others, (ts, entry["session_id"])):
            ts = round(ts + 0.000001, 6)
        return ts

    def _forget_old(self) -> None:
        self._ask("DELETE FROM calls WHERE ts <= ?", (self._since(),))

    def _since(self) -> float:
        return (self._now() - KEPT).timestamp()

    def _ask(self, sql: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[Any]:
        with self._lock, self._database:
            return self._database.execute(sql, values).fetchall()


def _agent(row: sqlite3.Row) -> KnownAgent:
    return KnownAgent(row["id"], row["name"], json.loads(row["config"]), row["created_at"])


#: How long a call is remembered.

_TABLE = """
CREATE TABLE IF NOT EXISTS rehearsals (
  session_id TEXT PRIMARY KEY, kept_at REAL NOT NULL, about TEXT NOT NULL, steps TEXT NOT NULL
)
"""


@dataclass(frozen=True, slots=True)
class Note:
    """A call as it was noted last. `about` is what the page needs to know beside the steps."""

    about: Mapping[str, Any]
    steps: Sequence[dict[str, Any]]


class Notebook:
    """A table in a file of the sandbox. Its methods block, and may be called by any thread."""

    def __init__(self, file: Path | str, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lock = threading.Lock()
        if isinstance(file, Path):
            make_private(file)
        self._database = sqlite3.connect(file, check_same_thread=False)
        self._ask(_TABLE)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def put(
        self, session_id: str, about: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
    ) -> None:
        """Note a call in place of what was noted of it, and forget those that are too old."""
        now = self._now()
        self._ask("DELETE FROM rehearsals WHERE kept_at <= ?", (now - KEPT).timestamp())
        row = (session_id, now.timestamp(), json.dumps(about), json.dumps(steps))
        self._ask("INSERT OR REPLACE INTO rehearsals VALUES (?, ?, ?, ?)", *row)

    def get(self, session_id: str) -> Note | None:
        """Return what was noted of a call."""
        since = (self._now() - KEPT).timestamp()
        sql = "SELECT about, steps FROM rehearsals WHERE session_id = ? AND kept_at > ?"
        rows = self._ask(sql, session_id.encode("utf-8", "replace").decode(), since)
        return Note(*map(json.loads, rows[0])) if rows else None

    def _ask(self, sql: str, *values: object) -> list[Any]:
        with self._lock, self._database:
            return self._database.execute(sql, values).fetchall()

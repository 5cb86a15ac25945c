"""What the sandbox's page remembers of its calls for a day: how they were begun, and every step."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..private_files import make_private

#: How long a call is remembered.
KEPT = timedelta(days=1)

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

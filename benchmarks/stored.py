"""Looks into a SQLite file from outside, to see whether a server did what its answers said."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.2

_INBOX = "SELECT EXISTS (SELECT 1 FROM inbox)"
_BACKLOG = f"""
    {_INBOX}
        OR EXISTS (SELECT 1 FROM handler_runs WHERE state IN ('pending', 'running'))
"""
_ENDED_CALLS = "SELECT count(*) FROM calls WHERE delivery_id IS NOT NULL"
_SUCCEEDED_RUNS = "SELECT count(*) FROM handler_runs WHERE state = 'succeeded'"
_DELIVERIES = "SELECT count(*) FROM deliveries WHERE kind = ?"


@dataclass(frozen=True)
class CallLogFile:
    """The call log of a running or stopped service, never written to."""

    path: Path

    def deliveries(self, kind: str) -> int:
        return ask(self.path, _DELIVERIES, kind)

    def ended_calls(self) -> int:
        """Count the calls whose end-of-call has been parsed."""
        return ask(self.path, _ENDED_CALLS)

    def succeeded_runs(self) -> int:
        return ask(self.path, _SUCCEEDED_RUNS)

    def parse(self, *, timeout_s: float) -> float:
        """Wait for the inbox alone to be done; return as `drain` does."""
        return self._wait_for_none(_INBOX, timeout_s)

    def drain(self, *, timeout_s: float) -> float:
        """Wait for the inbox and the runs to be done; return the seconds it took, or infinity."""
        return self._wait_for_none(_BACKLOG, timeout_s)

    def _wait_for_none(self, query: str, timeout_s: float) -> float:
        began = time.monotonic()
        while ask(self.path, query):
            if time.monotonic() - began > timeout_s:
                return float("inf")
            time.sleep(POLL_S)
        return time.monotonic() - began


def ask(path: Path, query: str, *parameters: str) -> int:
    """Return the one number that `query` selects."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as connection:
        return int(connection.execute(query, parameters).fetchone()[0])

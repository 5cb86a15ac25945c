"""A call log in a temporary file, filled row by row, for tests of what reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, insert, select

from millis_hooks.call_log.call_rows import pending_run
from millis_hooks.call_log.changed_days import mark_days
from millis_hooks.call_log.migrations import open_database
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.results import rows_of
from millis_hooks.call_log.search import Field, Item, call_search, searchable
from millis_hooks.call_log.tables import (
    attempts,
    call_metadata,
    call_results,
    calls,
    cost_items,
    deliveries,
    handler_runs,
    handlers,
)
from millis_hooks.protocol.results import Plain
from support.databases import made_in

T = TypeVar("T")

NOW = datetime(2026, 11, 21, 14, 20, tzinfo=UTC)


class StoredCalls:
    """Rows of a call log; whatever is not given has an ordinary value."""

    def __init__(self, folder: Path) -> None:
        self.database = open_database(made_in(folder))
        self.queries = Queries(self.database.reader)
        self._open: Connection | None = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Add everything within in one transaction, which is quicker."""
        with self.database.writer.begin() as self._open:
            yield
        self._open = None

    def write(self, work: Callable[[Connection], T], /) -> T:
        if self._open is not None:
            return work(self._open)
        with self.database.writer.begin() as connection:
            return work(connection)

    def add_call(
        self,
        session_id: str = "-call",
        *,
        minutes_ago: float = 10,
        text: str = "",
        items: Sequence[Item] = (),
        **columns: Any,
    ) -> int:
        """Add an ended call and what can be searched of it: a transcript, which is in a delivery
        too, or `items`."""
        received_at = NOW - timedelta(minutes=minutes_ago)
        known = {"session_id": session_id, "received_at": received_at, "ended_at": received_at}
        row: dict[str, Any] = known | {"outcome": "completed"} | columns
        folded = searchable(items or [Item(Field.TRANSCRIPT, text or session_id)])
        if text:
            body = {"session_id": session_id, "chat": [{"role": "user", "content": text}]}
            end = self.add_delivery(session_id=session_id, body=json.dumps(body).encode())
            row.setdefault("delivery_id", end)

        new = insert(calls).values(row).returning(calls.c.id)

        def add(connection: Connection) -> int:
            call_id = int(connection.execute(new).scalar_one())
            mark_days(connection, [row["received_at"]])
            connection.execute(insert(call_search), {"rowid": call_id, "folded": folded})
            return call_id

        return self.write(add)

    def add_unended_call(self, session_id: str, *, minutes_ago: float, **columns: Any) -> int:
        """Add a call that only had a prefetch."""
        return self.add_call(
            session_id, minutes_ago=minutes_ago, ended_at=None, outcome=None, **columns
        )

    def add_delivery(self, kind: str = "end_of_call", **columns: Any) -> int:
        known = {"kind": kind, "received_at": NOW, "body": b"", "status_code": 200}
        return self._insert(deliveries, known | {"outcome": "stored"} | columns)

    def add_cost(self, call_id: int, position: int = 0, **columns: Any) -> int:
        return self._insert(cost_items, {"call_id": call_id, "position": position} | columns)

    def add_handler(self, name: str, *, hook: str = "end_of_call", **columns: Any) -> None:
        """Add a handler as an application that started has written it down."""
        known = {"max_attempts": 5, "timeout_s": 60.0, "repeatable": True, "filters": "{}"}
        self._insert(handlers, known | {"hook": hook, "name": name, "seen_at": NOW} | columns)

    def add_run(self, call_id: int, handler: str, state: str, **columns: Any) -> int:
        run = pending_run(call_id, handler, NOW) | {"state": state} | columns
        return self._insert(handler_runs, run)

    def add_attempt(self, run_id: int, number: int = 1, **columns: Any) -> int:
        known = {"run_id": run_id, "number": number, "started_at": NOW}
        return self._insert(attempts, known | columns)

    def add_results(
        self, call_id: int, handler: str = "book", *, run_id: int | None = None, **values: Plain
    ) -> None:
        """Add the results of a run, of a call of the last minutes."""
        shared = {"handler": handler, "run_id": run_id, **self._of(call_id)}
        rows = rows_of(values, **shared)
        self.write(lambda connection: connection.execute(insert(call_results), rows))

    def add_metadata(self, call_id: int, values: Mapping[str, str]) -> None:
        rows = [{"key": key, "value": each, **self._of(call_id)} for key, each in values.items()]
        self.write(lambda connection: connection.execute(insert(call_metadata), rows))

    def _of(self, call_id: int) -> dict[str, Any]:
        received_at = select(calls.c.received_at).where(calls.c.id == call_id)
        moment = self.write(lambda connection: connection.scalar(received_at))
        return {"call_id": call_id, "received_at": moment}

    def _insert(self, table: Any, row: dict[str, Any]) -> int:
        """Insert a row and return its id, if it has one."""
        if isinstance(table, Table) and "id" in table.c:
            new = insert(table).values(row).returning(table.c.id)
            return int(self.write(lambda connection: connection.execute(new).scalar_one()))
        self.write(lambda connection: connection.execute(insert(table), row))
        return 0

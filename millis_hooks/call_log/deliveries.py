"""A delivery as it is stored, and the statements that insert it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from hashlib import blake2b
from itertools import chain
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection

from .dialects import is_postgresql
from .raw_body import MARK, storable
from .sanitize import MAX_KEY_CHARS, short_key
from .tables import utc_text

Kind = Literal["prefetch", "function", "end_of_call"]


class Delivery(NamedTuple):
    """A request and our answer. Text must be clean: see `values.clean_text`."""

    kind: Kind
    received_at: datetime
    outcome: str
    status_code: int
    session_id: str | None = None
    reason: str | None = None
    latency_ms: float | None = None
    content_type: str | None = None
    query: str | None = None
    answer: bytes | None = None
    body: bytes = b""
    redacted: bool = False
    imported: bool = False
    source: str | None = None
    dry_run: bool = False
    trace: str | None = None
    secret_agent: str | None = None
    function: str | None = None
    kept: str | None = None


_COLUMNS = (*Delivery._fields, "content_hash")
_PUT_NEWER_IN_INBOX = (
    "INSERT INTO inbox (delivery_id) SELECT id FROM deliveries WHERE id > ? "
    "AND outcome NOT IN ('rejected', 'unparsed')"
)
#: Rows per statement. A driver gives up the interpreter's lock once for each statement, and in a
#: flood gets it back only after the serving loop's turn.
_ROWS = 32


def content_hash(body: bytes) -> bytes:
    """Return what tells a redelivered body from a changed one: BLAKE2b, 16 bytes."""
    return blake2b(body, digest_size=16).digest()


def insert_deliveries(connection: Connection, batch: Sequence[Delivery]) -> None:
    """Store `batch`, and put into the inbox what can be read of it."""
    if not batch:
        return
    if is_postgresql(connection):
        _insert_on_postgresql(connection, batch)
        return
    newest_id = 0
    for start in range(0, len(batch), _ROWS):
        rows = [_row(delivery) for delivery in batch[start : start + _ROWS]]
        stored = connection.exec_driver_sql(_insert(len(rows)), tuple(chain.from_iterable(rows)))
        newest_id = stored.lastrowid
    # One writer at a time: no other ids come in between.
    connection.exec_driver_sql(_PUT_NEWER_IN_INBOX, (newest_id - len(batch),))


@cache
def _insert(rows: int) -> str:
    # Straight to the driver, without what SQLAlchemy does for each value: senders wait.
    row = f"({', '.join('?' for _ in _COLUMNS)})"
    names, values = ", ".join(_COLUMNS), ", ".join([row] * rows)
    return f"INSERT INTO deliveries ({names}) VALUES {values}"  # noqa: S608


def _insert_on_postgresql(connection: Connection, batch: Sequence[Delivery]) -> None:
    # Ids come from a sequence that others draw from too, so none is guessed.
    # Column by column, so that it is always the same statement however many there are.
    columns = zip(*(_cells(delivery) for delivery in batch), strict=True)
    connection.exec_driver_sql(_STORE, tuple(map(list, columns)))


def _row(delivery: Delivery) -> tuple[Any, ...]:
    kind, received_at, *rest = _cells(delivery)
    return (kind, utc_text(received_at), *rest)


def _cells(delivery: Delivery) -> tuple[Any, ...]:
    body, session_id = delivery.body, delivery.session_id
    if body.startswith(MARK):
        delivery = delivery._replace(body=storable(body))
    if session_id is not None and len(session_id) > MAX_KEY_CHARS:
        delivery = delivery._replace(session_id=short_key(session_id))
    return (*delivery, content_hash(body) if body else None)


_POSTGRES_TYPES = {
    "received_at": "timestamptz",
    "status_code": "int",
    "latency_ms": "float8",
    "answer": "bytea",
    "body": "bytea",
    "redacted": "bool",
    "imported": "bool",
    "dry_run": "bool",
    "content_hash": "bytea",
}
_STORE = (
    f"WITH stored AS (INSERT INTO deliveries ({', '.join(_COLUMNS)}) SELECT * FROM unnest("  # noqa: S608
    + ", ".join(f"%b::{_POSTGRES_TYPES.get(name, 'text')}[]" for name in _COLUMNS)
    + ") RETURNING id, outcome) INSERT INTO inbox (delivery_id) SELECT id FROM stored "
    "WHERE outcome NOT IN ('rejected', 'unparsed')"
)

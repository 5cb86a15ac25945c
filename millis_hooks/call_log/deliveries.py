"""One request as it goes into the log, and the statements that put it there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from itertools import chain
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, func, insert, select

from .raw_bytes import MARK, storable
from .tables import deliveries, inbox

Kind = Literal["prefetch", "end_of_call"]


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


_COLUMNS = (*Delivery._fields, "content_hash")
_NEWEST = select(func.coalesce(func.max(deliveries.c.id), 0))
#: Rows per statement. A driver gives up the interpreter's lock once for each statement, and in a
#: flood gets it back only after the serving loop's turn.
_ROWS = 32


def content_hash(body: bytes) -> bytes:
    """Return what tells a redelivered body from a changed one: BLAKE2b, 16 bytes."""
    return blake2b(body, digest_size=16).digest()


def insert_deliveries(connection: Connection, batch: Sequence[Delivery]) -> None:
    """Store `batch` and put all of it but the rejected into the inbox."""
    newest = connection.execute(_NEWEST).scalar_one()
    for start in range(0, len(batch), _ROWS):
        rows = [_row(delivery) for delivery in batch[start : start + _ROWS]]
        connection.exec_driver_sql(_insert(len(rows)), tuple(chain.from_iterable(rows)))
    to_do = select(deliveries.c.id).where(
        deliveries.c.id > newest, deliveries.c.outcome != "rejected"
    )
    connection.execute(insert(inbox).from_select(["delivery_id"], to_do))


@cache
def _insert(rows: int) -> str:
    # Straight to the driver, without what SQLAlchemy does for each value: somebody waits.
    row = f"({', '.join('?' for _ in _COLUMNS)})"
    names, values = ", ".join(_COLUMNS), ", ".join([row] * rows)
    return f"INSERT INTO deliveries ({names}) VALUES {values}"  # noqa: S608


def _row(delivery: Delivery) -> tuple[Any, ...]:
    body = delivery.body
    if body.startswith(MARK):
        delivery = delivery._replace(body=storable(body))
    kind, received_at, *rest = delivery
    moment = received_at.astimezone(UTC).isoformat(" ", "microseconds")[
        : len("2000-01-01 00:00:00.000000")
    ]
    return (kind, moment, *rest, content_hash(body) if body else None)

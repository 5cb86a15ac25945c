"""One request as it goes into the log, and the statements that put it there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, func, insert, select

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


_COLUMNS = (*Delivery._fields, "content_hash")
_NEWEST = select(func.coalesce(func.max(deliveries.c.id), 0))
# Straight to the driver, without what SQLAlchemy does for each value: somebody waits for every row.
_INSERT = "INSERT INTO deliveries ({}) VALUES ({})".format(  # noqa: S608
    ", ".join(_COLUMNS), ", ".join("?" for _ in _COLUMNS)
)


def content_hash(body: bytes) -> bytes:
    """Return what tells a redelivered body from a changed one: BLAKE2b, 16 bytes."""
    return blake2b(body, digest_size=16).digest()


def insert_deliveries(connection: Connection, batch: Sequence[Delivery]) -> None:
    """Store `batch` and put all of it but the rejected into the inbox."""
    newest = connection.execute(_NEWEST).scalar_one()
    connection.exec_driver_sql(_INSERT, [_row(delivery) for delivery in batch])
    to_do = select(deliveries.c.id).where(
        deliveries.c.id > newest, deliveries.c.outcome != "rejected"
    )
    connection.execute(insert(inbox).from_select(["delivery_id"], to_do))


def _row(delivery: Delivery) -> tuple[Any, ...]:
    kind, received_at, *rest = delivery
    moment = received_at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    body = delivery.body
    return (kind, moment, *rest, content_hash(body) if body else None)

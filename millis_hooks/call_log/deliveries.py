"""One request as it goes into the log, and the statement that puts it there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Literal

from sqlalchemy import Connection, func, insert, select

from .tables import deliveries, inbox

Kind = Literal["prefetch", "end_of_call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A request and our answer. Text must be clean: see `values.clean_text`."""

    kind: Kind
    received_at: datetime
    outcome: str
    status_code: int
    body: bytes = b""
    session_id: str | None = None
    reason: str | None = None
    latency_ms: float | None = None
    content_type: str | None = None
    query: str | None = None
    answer: bytes | None = None


def content_hash(body: bytes) -> bytes:
    """Return what tells a redelivered body from a changed one: BLAKE2b, 16 bytes."""
    return blake2b(body, digest_size=16).digest()


def insert_deliveries(connection: Connection, batch: Sequence[Delivery]) -> None:
    """Store `batch` and put all of it but the rejected into the inbox."""
    newest = connection.execute(select(func.coalesce(func.max(deliveries.c.id), 0))).scalar_one()
    connection.execute(insert(deliveries), [_columns(delivery) for delivery in batch])
    to_do = select(deliveries.c.id).where(
        deliveries.c.id > newest, deliveries.c.outcome != "rejected"
    )
    connection.execute(insert(inbox).from_select(["delivery_id"], to_do))


def _columns(delivery: Delivery) -> dict[str, object]:
    return {
        "kind": delivery.kind,
        "session_id": delivery.session_id,
        "received_at": delivery.received_at,
        "outcome": delivery.outcome,
        "reason": delivery.reason,
        "status_code": delivery.status_code,
        "latency_ms": delivery.latency_ms,
        "content_type": delivery.content_type,
        "content_hash": content_hash(delivery.body),
        "query": delivery.query,
        "answer": delivery.answer,
        "body": delivery.body,
    }

"""Deliveries as they came and as they were answered, as far as they may be seen."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from ..call_log.records import Delivery
from ..events import PrefetchRequest
from ..exceptions import PayloadError
from ..masking import MaskPolicy
from ..payload_places import END_OF_CALL, PREFETCH_ANSWER, PREFETCH_QUERY, Place
from ..wire import read_json
from .shortened import Room


@dataclass(frozen=True, slots=True)
class Payload:
    """One delivery. `content` is JSON, or text where the bytes are not; None if it repeats."""

    delivery_id: int
    kind: str
    session_id: str | None
    received_at: datetime
    outcome: str
    reason: str | None
    content_type: str | None
    content: JsonValue
    repeats: bool
    body_bytes: int
    status_code: int
    answer: JsonValue
    latency_ms: float | None
    secrets_masked: int
    redacted: bool
    source: str | None


def payload_of(delivery: Delivery, mask: MaskPolicy, room: Room | None = None) -> Payload:
    """Return what a page may show of a delivery that was read with its body, as far as there is
    room for it."""
    room = room or Room()
    is_prefetch = delivery.kind == "prefetch"
    received = room.beginning(_content(delivery))
    content = mask.masked(received, PREFETCH_QUERY if is_prefetch else END_OF_CALL)
    answered = room.beginning(read_bytes(delivery.answer)) if delivery.answer else None
    answer = mask.masked(answered, PREFETCH_ANSWER if is_prefetch else Place.OPEN)
    return Payload(
        delivery_id=delivery.id,
        kind=delivery.kind,
        session_id=delivery.session_id,
        received_at=delivery.received_at,
        outcome=delivery.outcome,
        reason=reason_of(delivery, mask),
        content_type=delivery.content_type,
        content=content.value,
        repeats=delivery.kind == "end_of_call" and delivery.body is None,
        body_bytes=delivery.body_bytes or len(delivery.query or ""),
        status_code=delivery.status_code,
        answer=answer.value,
        latency_ms=delivery.latency_ms,
        secrets_masked=content.count + answer.count,
        redacted=delivery.redacted,
        source=delivery.source,
    )


def reason_of(delivery: Delivery, mask: MaskPolicy) -> str | None:
    """Return why a delivery has not the best outcome; a prefetch's handler may quote the call."""
    if delivery.reason is None:
        return None
    hide = mask.text if delivery.kind == "prefetch" else mask.line
    return hide(delivery.reason)


def read_bytes(body: bytes) -> JsonValue:
    """Read bytes as JSON if they are, else as text in which nothing is lost."""
    try:
        return read_json(body)
    except PayloadError:
        return body.decode("utf-8", "backslashreplace")


def query_of(query: str) -> JsonValue:
    """Name the fields of a query string; a name that repeats has the list of its values."""
    values: dict[str, list[JsonValue]] = {}
    for name, value in PrefetchRequest.parse(query.encode("utf-8", "replace")).raw:
        values.setdefault(name, []).append(value)
    return {name: each[0] if len(each) == 1 else each for name, each in values.items()}


def _content(delivery: Delivery) -> JsonValue:
    if delivery.kind == "prefetch":
        return query_of(delivery.query or "")
    return read_bytes(delivery.body) if delivery.body is not None else None

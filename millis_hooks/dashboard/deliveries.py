"""Deliveries that could not be read: kept as they came, and shown with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .forms import read_number
from .pages import Asked
from .payloads import Payload, payload_of, reason_of


@dataclass(frozen=True, slots=True)
class Unread:
    """A delivery that could not be read, and why."""

    id: int
    kind: str
    received_at: datetime
    reason: str | None
    body_bytes: int


@dataclass(frozen=True, slots=True)
class DeliveriesView:
    """The newest deliveries that could not be read; `count` is how many there are, capped."""

    deliveries: tuple[Unread, ...]
    count: int
    live_count: int


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One delivery, whatever became of it."""

    payload: Payload
    live_count: int


def list_unparsed(asked: Asked) -> DeliveriesView:
    """Build the page of deliveries that could not be read."""
    unread = (
        Unread(
            delivery.id,
            delivery.kind,
            delivery.received_at,
            reason_of(delivery, asked.settings.mask),
            delivery.body_bytes,
        )
        for delivery in asked.log.unparsed()
    )
    return DeliveriesView(
        tuple(unread), asked.log.unparsed_count(), asked.log.live_count(now=asked.now)
    )


def show_delivery(asked: Asked) -> DeliveryView | None:
    """Build the page of one delivery, or None if there is no such one."""
    number = read_number(asked.path["delivery_id"])
    delivery = None if number is None else asked.log.delivery(number)
    if delivery is None:
        return None
    payload = payload_of(delivery, asked.settings.mask)
    return DeliveryView(payload, asked.log.live_count(now=asked.now))

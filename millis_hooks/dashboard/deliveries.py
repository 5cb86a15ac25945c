"""Deliveries that could not be read: kept as they came, and shown with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from ..call_log.records import Delivery
from .forms import read_number
from .pages import Asked
from .payloads import Payload, payload_of


@dataclass(frozen=True, slots=True)
class DeliveriesView:
    """The newest deliveries that could not be read; `count` is how many there are, capped."""

    deliveries: tuple[Delivery, ...]
    count: int
    live_count: int


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One delivery, whatever became of it."""

    payload: Payload
    live_count: int


def list_unparsed(asked: Asked) -> DeliveriesView:
    """Build the page of deliveries that could not be read."""
    return DeliveriesView(
        asked.log.unparsed(), asked.log.unparsed_count(), asked.log.live_count(now=asked.now)
    )


def show_delivery(asked: Asked) -> DeliveryView | None:
    """Build the page of one delivery, or None if there is no such one."""
    number = read_number(asked.path["delivery_id"])
    delivery = None if number is None else asked.log.delivery(number)
    if delivery is None:
        return None
    return DeliveryView(payload_of(delivery), asked.log.live_count(now=asked.now))

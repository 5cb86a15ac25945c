"""Confirms a booking that the agent made in a call, or asks a colleague to call back.

The agent's function `book_slot` calls your calendar. Its result is in the end-of-call. Run it with

    OFFICE_URL=https://office.example.com millis-hooks dev examples/booking_results.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import httpx2
from pydantic import BaseModel, ValidationError

from millis_hooks import EndOfCall, GiveUp, MillisHooks


class Booking(BaseModel):
    """The answer of `book_slot`."""

    status: Literal["booked", "taken"]
    slot: str


@asynccontextmanager
async def office() -> AsyncIterator[httpx2.AsyncClient]:
    """Keep one client for the office's system."""
    base_url = os.environ.get("OFFICE_URL", "http://127.0.0.1:9000")
    async with httpx2.AsyncClient(base_url=base_url, timeout=10) as client:
        yield client


hooks = MillisHooks(lifespan=office)


def has_booked(call: EndOfCall) -> bool:
    """Tell whether the agent tried to book."""
    return any(each.name == "book_slot" for each in call.function_calls)


@hooks.on_end_of_call(when=has_booked)
async def settle(call: EndOfCall) -> None:
    """Confirm the booking, or arrange a call back if the slot was taken."""
    booking = read_booking(call)
    path = "/confirmations" if booking.status == "booked" else "/callbacks"
    if call.dry_run:
        return
    client: httpx2.AsyncClient = call.state
    response = await client.post(
        path,
        json={"phone": call.customer_phone, "slot": booking.slot},
        # The same in every attempt, so that the customer gets one confirmation.
        headers={"Idempotency-Key": call.idempotency_key},
    )
    response.raise_for_status()


def read_booking(call: EndOfCall) -> Booking:
    """Return the last answer of `book_slot`, which is JSON or JSON in a text.

    Raises `GiveUp` for any other answer: another attempt would read the same.
    """
    result = call.function_result("book_slot")
    try:
        if isinstance(result, str):
            return Booking.model_validate_json(result)
        return Booking.model_validate(result)
    except ValidationError:
        raise GiveUp("book_slot was called, but its answer is not about a booking") from None

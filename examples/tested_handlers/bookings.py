"""Handlers of a restaurant, with a test suite beside them that you can copy.

Run the suite here with `pytest`, or one scenario with

    millis-hooks simulate bookings.py scenarios/booking.toml
"""

from __future__ import annotations

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse

#: Stands for your CRM, and for what it knows of its customers.
CUSTOMERS = {"+14155550134": {"name": "Ada", "usual_table": "by the window"}}

#: Stands for the calendar that bookings go to.
BOOKED: list[str] = []

hooks = MillisHooks()


@hooks.on_prefetch
async def recognize(call: PrefetchRequest) -> PrefetchResponse | None:
    """Tell the agent who is calling; say nothing about callers we do not know."""
    customer = CUSTOMERS.get(call.customer_phone or "")
    if customer is None:
        return None
    return PrefetchResponse(
        metadata={"customer_name": customer["name"]},
        extra_prompt=f"{customer['name']} likes to sit {customer['usual_table']}.",
    )


@hooks.on_end_of_call(outcome="completed")
def book(call: EndOfCall) -> None:
    """Put the booking into the calendar; in a dry run, do all but that."""
    result = call.function_result("book_slot")
    if not isinstance(result, str):
        return
    if "Failed" in result:
        raise RuntimeError(f"{call.session_id}: {result}")
    if not call.dry_run:
        BOOKED.append(result)

"""Several agents on one receiver, each with a router, which could be a module of its own.

Run it with `millis-hooks dev examples/several_agents.py`.
"""

from __future__ import annotations

import logging

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, Router

BOOKINGS = "-Ox1bookingsAgent001"
SUPPORT = "-Ox1supportAgent0001"

logger = logging.getLogger("several_agents")

bookings = Router()
support = Router()


@bookings.on_prefetch(agent_id=BOOKINGS)
async def offer_tables(call: PrefetchRequest) -> str:
    """Return a text, which becomes the extra prompt."""
    return "Tables are free on Tuesday from six."


@support.on_prefetch(agent_id=SUPPORT)
async def mention_outage(call: PrefetchRequest) -> str:
    """Tell only the support agent about the outage."""
    return "The web shop is down since noon; apologise for it."


@support.on_end_of_call(agent_id=SUPPORT, outcome={"failed", "timeout"})
def open_ticket(call: EndOfCall) -> None:
    """Open a ticket for calls of one agent that ended badly."""
    logger.info("ticket for %s: %s", call.customer_phone, call.error_message or call.call_status)


hooks = MillisHooks(bookings)
hooks.include(support)


@hooks.on_end_of_call
def count(call: EndOfCall) -> None:
    """Log every call of every agent, because there is no filter."""
    logger.info("call of agent %s ended: %s", call.agent_id, call.outcome)

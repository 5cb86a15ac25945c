"""Logs each phone call in HubSpot, on the timeline of the contact who has the number.

Run it with the token of a private app that may read contacts and write calls:

    HUBSPOT_TOKEN=pat-... millis-hooks dev examples/hubspot_calls.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from millis_hooks import EndOfCall, GiveUp, MillisHooks, Retry

HUBSPOT = "https://api.hubapi.com/crm/v3/objects"
HUBSPOT_TOKEN = os.environ.get("HUBSPOT_TOKEN", "")
#: HubSpot's own number for "call to contact".
CALL_TO_CONTACT = 194


@asynccontextmanager
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """Keep one client for all requests."""
    headers = {"authorization": f"Bearer {HUBSPOT_TOKEN}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as made:
        yield made


hooks = MillisHooks(lifespan=client)


@hooks.on_end_of_call(channel="phone")
async def log_in_hubspot(call: EndOfCall) -> dict[str, str | None] | None:
    """Log the call, and keep the ids in HubSpot as results."""
    if call.dry_run:
        return None
    contact = await contact_with(call)
    created = await ask(call, "calls", described(call, contact))
    return {"hubspot_call": created["id"], "hubspot_contact": contact}


async def contact_with(call: EndOfCall) -> str | None:
    """Return the id of the contact who has the customer's number."""
    if call.customer_phone is None:
        return None
    same = {"propertyName": "phone", "operator": "EQ", "value": call.customer_phone}
    found = await ask(call, "contacts/search", {"filterGroups": [{"filters": [same]}], "limit": 1})
    return found["results"][0]["id"] if found["results"] else None


def described(call: EndOfCall, contact: str | None) -> dict[str, Any]:
    """Return the call as HubSpot takes it; without the transcript."""
    properties = {
        "hs_timestamp": call.started_at.isoformat() if call.started_at else None,
        "hs_call_title": f"Call with the agent: {call.outcome}",
        "hs_call_direction": call.direction.upper() if call.direction else None,
        "hs_call_duration": round(1000 * call.duration_s) if call.duration_s else None,
        "hs_call_from_number": call.from_phone,
        "hs_call_to_number": call.to_phone,
    }
    to_contact = {
        "to": {"id": contact},
        "types": [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": CALL_TO_CONTACT}],
    }
    return {
        "properties": {name: value for name, value in properties.items() if value is not None},
        "associations": [to_contact] if contact else [],
    }


async def ask(call: EndOfCall, path: str, body: dict[str, Any]) -> Any:
    """Post to HubSpot; what it refuses for good is not tried again."""
    hubspot: httpx2.AsyncClient = call.state
    response = await hubspot.post(f"{HUBSPOT}/{path}", json=body)
    if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
        raise Retry(float(response.headers.get("retry-after", "10")))
    if response.is_client_error:
        raise GiveUp(f"HubSpot refused {path} with {response.status_code}")
    response.raise_for_status()
    return response.json()

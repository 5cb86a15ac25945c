"""Looks the caller up in a CRM before the call begins, by phone number.

The HTTP client is made once, on the handlers' own event loop, and reaches handlers as `call.state`.
Run it with:

    CRM_URL=https://crm.example.com millis-hooks dev examples/crm_lookup.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from millis_hooks import MillisHooks, PrefetchRequest, PrefetchResponse

#: Shorter than the prefetch budget, so that a slow CRM raises an error here.
TIMEOUT_S = 1.5


@asynccontextmanager
async def crm() -> AsyncIterator[httpx2.AsyncClient]:
    """Keep one client, and its connections, for as long as the service runs."""
    base_url = os.environ.get("CRM_URL", "http://127.0.0.1:9000")
    async with httpx2.AsyncClient(base_url=base_url, timeout=TIMEOUT_S) as client:
        yield client


hooks = MillisHooks(lifespan=crm)


@hooks.on_prefetch(channel="phone")
async def look_up(call: PrefetchRequest) -> PrefetchResponse | None:
    """Tell the agent who is calling, if the CRM knows the number."""
    client: httpx2.AsyncClient = call.state
    response = await client.get("/customers", params={"phone": call.customer_phone})
    if response.status_code == httpx2.codes.NOT_FOUND:
        return None
    # Any other error is raised: it is logged, and the fallback is sent.
    customer = response.raise_for_status().json()
    return PrefetchResponse(
        metadata={"customer_name": customer["name"], "customer_tier": customer["tier"]},
        extra_prompt=f"The caller is {customer['name']}, a {customer['tier']} customer.",
    )

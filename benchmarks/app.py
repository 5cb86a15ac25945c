"""The application under test; settings come from the environment.

It answers a prefetch as the rivals do and has something to do after each call. Nothing else is made
or imported here: it would count as memory and starting time of ours.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse, Router

after_calls = Router()
totals: Counter[str] = Counter()


@after_calls.on_end_of_call
async def count(call: EndOfCall) -> None:
    """Stand in for the team's own code, which would tell a CRM."""
    await asyncio.sleep(0)
    totals[call.outcome] += 1


hooks = MillisHooks(after_calls)


@hooks.on_prefetch
async def greet(call: PrefetchRequest) -> PrefetchResponse:
    """Do what `rivals.greet` does."""
    tier = call.metadata.get("plan", "basic")
    return PrefetchResponse(
        metadata={
            "customer_tier": tier,
            "customer_phone": call.customer_phone or "",
            "session": call.session_id,
        },
        extra_prompt=f"A {tier} customer. Be brief.",
    )


@hooks.function
async def find_table(people: int = 2) -> dict[str, object]:
    """Do what `rivals.find_table` does."""
    return {"table": "round" if people > 2 else "window", "people": people}

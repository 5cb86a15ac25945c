"""The applications under test; settings come from the environment.

`hooks` answers a prefetch as the rivals do and has something to do after each call. The others have
the same end-of-call handler and a prefetch handler that is no good. Nothing here imports a rival:
it would count as memory and starting time of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Never

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse, Router

BLOCKED_S = 30

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


blocks = MillisHooks(after_calls)


@blocks.on_prefetch
async def block_the_loop(call: PrefetchRequest) -> str:
    time.sleep(BLOCKED_S)  # noqa: ASYNC251 - the mistake whose cost is measured
    return "too late"


waits = MillisHooks(after_calls)


@waits.on_prefetch
async def wait_for_ever(call: PrefetchRequest) -> str:
    await asyncio.Event().wait()
    return "never"


def compute_for_ever(call: PrefetchRequest) -> Never:
    while True:
        pass


computes = MillisHooks(after_calls)
computes.on_prefetch(compute_for_ever)

#: As `computes`, with one thread to do it on: what one such call costs.
computes_once = MillisHooks(after_calls, handler_threads=1)
computes_once.on_prefetch(compute_for_ever)

"""Applications with the end-of-call handler of `app`, and a prefetch handler that is no good."""

from __future__ import annotations

import asyncio
import time
from typing import Never

from millis_hooks import MillisHooks, PrefetchRequest

from .app import after_calls

BLOCKED_S = 30

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

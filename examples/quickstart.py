"""The smallest receiver: a greeting before each call, a line when it has ended.

Run it with `millis-hooks dev examples/quickstart.py`, then send it a sample in another terminal:
the command for that is printed when it starts.
"""

from __future__ import annotations

import logging

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse

logger = logging.getLogger("quickstart")

hooks = MillisHooks()


@hooks.on_prefetch
async def greet(call: PrefetchRequest) -> PrefetchResponse:
    """Runs while the phone is ringing: whatever happens here, the call goes on."""
    caller = call.customer_phone or "a visitor of the website"
    return PrefetchResponse(metadata={"caller": caller}, extra_prompt="Greet the caller warmly.")


@hooks.on_end_of_call
def note_ending(call: EndOfCall) -> None:
    """Runs after the call is safely stored; may take its time, and may fail."""
    logger.info("%s: %s after %s s", call.session_id, call.outcome, call.duration_s)

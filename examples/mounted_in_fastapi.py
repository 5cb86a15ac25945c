"""The receiver mounted in a FastAPI application that you already have.

The webhooks are then at /hooks/millis/prefetch and /hooks/millis/end-of-call, and the dashboard at
/hooks/calls. Run it with `millis-hooks dev examples/mounted_in_fastapi.py:app`.
"""

from __future__ import annotations

from fastapi import FastAPI

from millis_hooks import MillisHooks, PrefetchRequest, PrefetchResponse

hooks = MillisHooks()


@hooks.on_prefetch
async def greet(call: PrefetchRequest) -> PrefetchResponse:
    """Answer as in an application of its own."""
    return PrefetchResponse(metadata={"channel": call.channel})


#: `running` starts and stops the receiver with your application. If you have a lifespan already,
#: write `async with hooks.running(): yield` in it.
app = FastAPI(lifespan=hooks.running)
app.mount("/hooks", hooks)


@app.get("/")
async def home() -> dict[str, str]:
    """Your own routes stay as they are."""
    return {"shop": "open"}

"""Live updates of open pages: `GET /live`, a stream of server-sent events.

    event       meaning
    refresh     anything may have changed; the first event of each connection
    started     a call's prefetch was processed
    ended       a call's end-of-call was processed
    unparsed    an end-of-call could not be read
    runs        handlers of a call began or ended
    rejected    a request was rejected
    signed-out  the session is over, and the stream ends

The data is JSON, `{"session_id": "..."}`, where null means any session. The page then asks for
what has changed, which comes masked and filtered: of a call, only its id travels here. Events have
no ids, because a page that reconnects refreshes.

sse-starlette ends the stream when the peer disconnects or uvicorn stops, also the uvicorn of an
application that the dashboard is mounted in; Starlette alone would notice neither in time.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from ..call_log.change_feed import REFRESH, Change, ChangeFeed, Subscription
from ..exceptions import StorageError
from ..operators import Operator

#: Open streams, and those of one operator, so that others have room. A page without a stream does
#: not update itself, and loses nothing else.
MOST_STREAMS = 64
MOST_OF_ONE = 48
#: After this, a page without a stream may try again.
RETRY_AFTER_S = 60
#: A browser reconnects after this.
RECONNECT_MS = 3000
#: Keeps proxies from closing a silent stream. The session is checked as often.
HEARTBEAT_S = 15.0
#: Changes within this time are sent together; after many, changes of five times as long.
GATHER_S = 1.0
BUSY_FACTOR = 5
#: The stream's end may take so long when the service stops.
STOP_S = 2.0
#: A peer that reads nothing for so long is disconnected.
SEND_TIMEOUT_S = 30.0


class LiveUpdates:
    """The ASGI application of the stream."""

    def __init__(
        self,
        changes: ChangeFeed,
        operator_of: Callable[[Request], Operator | None],
        *,
        heartbeat_s: float = HEARTBEAT_S,
        gather_s: float = GATHER_S,
    ) -> None:
        """Ask `operator_of`, which may block, who is signed in."""
        self._changes = changes
        self._operator_of = operator_of
        self._heartbeat_s = heartbeat_s
        self._gather_s = gather_s
        self._streams = Counter[str]()  # by operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the peer disconnects, its session ends, or the service stops."""
        request = Request(scope, receive)
        operator = await run_in_threadpool(self._operator_of, request)
        if operator is None:  # a browser reconnects by itself only after a 200
            await PlainTextResponse("Sign in first.", 401)(scope, receive, send)
        elif not self._has_room(operator.name):
            again = {"Retry-After": str(RETRY_AFTER_S)}
            full = PlainTextResponse("Too many pages are open.", 503, headers=again)
            await full(scope, receive, send)
        else:
            await self._stream(request, operator.name, send)

    def _has_room(self, name: str) -> bool:
        return self._changes.subscribers < MOST_STREAMS and self._streams[name] < MOST_OF_ONE

    async def _stream(self, request: Request, name: str, send: Send) -> None:
        awake = asyncio.Event()
        wake = partial(_set, asyncio.get_running_loop(), awake)
        with self._changes.subscribe(wake) as subscription, suppress(SendTimeoutError):
            self._streams[name] += 1
            stopping = anyio.Event()
            stream = EventSourceResponse(
                self._events(request, subscription, awake),
                ping=0,  # `_events` sends heartbeats, and checks the session with each
                send_timeout=SEND_TIMEOUT_S,
                shutdown_event=stopping,
                shutdown_grace_period=STOP_S,
                data_sender_callable=partial(_close_at, stopping, subscription),
            )
            try:
                await stream(request.scope, request.receive, send)
            finally:
                self._streams[name] -= 1

    async def _events(
        self, request: Request, subscription: Subscription, awake: asyncio.Event
    ) -> AsyncIterator[bytes]:
        yield _event(REFRESH, retry=RECONNECT_MS)
        with suppress(StorageError):  # the browser reconnects
            while not subscription.is_closed:
                if not await _is_set(awake, self._heartbeat_s):
                    yield ServerSentEvent(comment="").encode()
                awake.clear()
                if await run_in_threadpool(self._operator_of, request) is None:
                    yield ServerSentEvent(event="signed-out", data="{}").encode()
                    return
                if changes := subscription.take():
                    yield b"".join(map(_event, changes))
                    factor = BUSY_FACTOR if REFRESH in changes else 1
                    await asyncio.sleep(self._gather_s * factor)


def _event(change: Change, retry: int | None = None) -> bytes:
    data = json.dumps({"session_id": change.session_id})
    return ServerSentEvent(event=change.kind, data=data, retry=retry).encode()


async def _close_at(stopping: anyio.Event, subscription: Subscription) -> None:
    await stopping.wait()
    subscription.close()


def _set(loop: asyncio.AbstractEventLoop, awake: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended, and its streams with it
        loop.call_soon_threadsafe(awake.set)


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for the event, and tell whether it was set in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False

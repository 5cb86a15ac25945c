"""The stream of events that open pages follow: `GET /live`, as server-sent events.

    event       a page learns that
    refresh     anything may have changed; the first event of each connection
    started     a call's prefetch was processed
    ended       a call's end was processed
    unparsed    an end of a call came that could not be read
    runs        handlers of a call began or ended
    rejected    a request was refused
    signed-out  the session is over, and with it the stream

The data is JSON, `{"session_id": "..."}`, where null may be any session. What has changed, masked
and filtered, a page asks for by itself: nothing of a call travels here but its id. Events have no
ids, because who comes back after a break just refreshes.

sse-starlette carries the stream: it ends it when uvicorn is told to stop, ours or the one of an
application we are mounted in, and when the peer goes; Starlette alone would do neither in time.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from ..call_log.change_feed import REFRESH, Announcer, Change, Listener
from ..exceptions import StorageError
from ..operators import Operator, Operators
from .security import Cookies

#: Pages that are followed at once. More do not change by themselves, and lose nothing else.
MOST_CLIENTS = 64
#: When one of those may try again.
RETRY_AFTER_S = 60
#: How long a browser waits before it comes back after a break.
RECONNECT_MS = 3000
#: Between proxies that close what is silent. The session is looked at as often.
HEARTBEAT_S = 15.0
#: What happens so shortly after something was told is told together; where much happens, in so many
#: times as long.
GATHER_S = 1.0
MUCH_PAUSES = 5
#: What ending in good order may take when the service stops.
STOP_S = 2.0
#: A peer that takes nothing for so long is gone.
SEND_TIMEOUT_S = 30.0


class Live:
    """An ASGI application for one route."""

    def __init__(
        self,
        news: Announcer,
        operators: Operators,
        *,
        cookies: Cookies | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        gather_s: float = GATHER_S,
    ) -> None:
        self._news = news
        self._operators = operators
        self._cookies = cookies or Cookies()
        self._heartbeat_s = heartbeat_s
        self._gather_s = gather_s
        self._operator_of: dict[Listener, str] = {}  # by stream, the oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the peer goes, its session is over, or the service stops."""
        request = Request(scope, receive)
        operator = await self._operator(request)
        if operator is None:  # any status but 200 keeps a browser from coming back by itself
            await PlainTextResponse("Sign in first.", 401)(scope, receive, send)
        elif not self._make_room(operator.name):
            again = {"Retry-After": str(RETRY_AFTER_S)}
            full = PlainTextResponse("Too many pages are open.", 503, headers=again)
            await full(scope, receive, send)
        else:
            await self._stream(request, operator.name, send)

    def _make_room(self, name: str) -> bool:
        """Return whether one more stream of this operator may begin.

        When all places are taken, the oldest stream of the operator who has most of them ends for
        it, so that one operator's pages never keep out another's.
        """
        if self._news.listeners < MOST_CLIENTS:
            return True
        streams = Counter(self._operator_of.values())
        busiest = max(streams, key=lambda other: streams[other], default=name)
        if streams[busiest] <= streams[name] + 1:
            return False
        oldest = next(each for each, owner in self._operator_of.items() if owner == busiest)
        del self._operator_of[oldest]
        oldest.close()
        return True

    async def _stream(self, request: Request, name: str, send: Send) -> None:
        awake = asyncio.Event()
        wake = partial(_set, asyncio.get_running_loop(), awake)
        with self._news.listen(wake) as listener, suppress(SendTimeoutError):
            self._operator_of[listener] = name
            stopping = anyio.Event()
            stream = EventSourceResponse(
                self._events(request, listener, awake),
                ping=0,  # heartbeats are ours: they look after the session, too
                send_timeout=SEND_TIMEOUT_S,
                shutdown_event=stopping,
                shutdown_grace_period=STOP_S,
                data_sender_callable=partial(_close_at, stopping, listener),
            )
            try:
                await stream(request.scope, request.receive, send)
            finally:
                self._operator_of.pop(listener, None)

    async def _events(
        self, request: Request, listener: Listener, awake: asyncio.Event
    ) -> AsyncIterator[bytes]:
        yield _event(REFRESH, retry=RECONNECT_MS)
        with suppress(StorageError):  # who cannot be looked up may come back
            while not listener.is_closed:
                if not await _is_set(awake, self._heartbeat_s):
                    yield ServerSentEvent(comment="").encode()
                awake.clear()
                if await self._operator(request) is None:
                    yield ServerSentEvent(event="signed-out", data="{}").encode()
                    return
                if changes := listener.take():
                    yield b"".join(map(_event, changes))
                    pauses = MUCH_PAUSES if REFRESH in changes else 1
                    await _rest(listener, awake, self._gather_s * pauses)

    async def _operator(self, request: Request) -> Operator | None:
        resume = partial(self._operators.resume, self._cookies.session(request), is_use=False)
        return await run_in_threadpool(resume)


def _event(change: Change, retry: int | None = None) -> bytes:
    data = json.dumps({"session_id": change.session_id})
    return ServerSentEvent(event=change.kind, data=data, retry=retry).encode()


async def _close_at(stopping: anyio.Event, listener: Listener) -> None:
    await stopping.wait()
    listener.close()


def _set(loop: asyncio.AbstractEventLoop, awake: asyncio.Event) -> None:
    with suppress(RuntimeError):  # a loop that has ended has nobody left to tell
        loop.call_soon_threadsafe(awake.set)


async def _rest(listener: Listener, awake: asyncio.Event, pause_s: float) -> None:
    """Let changes gather for so long, unless nothing more will come."""
    time = asyncio.get_running_loop().time
    end, was_woken = time() + pause_s, False
    while not listener.is_closed and (left_s := end - time()) > 0:
        awake.clear()
        was_woken |= await _is_set(awake, left_s)
    if was_woken:
        awake.set()


async def _is_set(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for the event, for so long."""
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False

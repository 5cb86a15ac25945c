"""uvicorn, with a deadline on everything a peer owes us and a stop that always ends.

Nothing here knows about Millis. It serves any ASGI application on httptools, refuses slow,
oversized and ambiguous requests before the application sees them, and logs each answer without its
query string, because that is where phone numbers and metadata travel.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, cast
from urllib.parse import quote

import httptools
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from .stopping import STOPPING

#: How long a refused peer may go on sending, so that closing does not wipe our answer off its wire.
LINGER_S = 1.0

#: How long tasks get to end once their connection is cut, and again once they are cancelled.
ABANDON_S = 1.0

#: After so many new objects the collector looks for what refers to itself; Python has 700.
GC_THRESHOLD = 10_000

#: The longest path an access line shows.
MAX_LOGGED_PATH = 200

BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})

access_log = logging.getLogger("millis_hooks.access")


@dataclass(frozen=True)
class Limits:
    """What one peer, and all of them together, may take."""

    header_timeout_s: float = 10  # from connecting, or from the first byte of a later request
    body_timeout_s: float = 30  # from the end of the headers
    write_timeout_s: float = 30  # for a peer that stopped reading our answer
    keep_alive_s: int = 75
    max_header_bytes: int = 32 * 1024  # request line and headers; chunk framing and trailers too
    max_connections: int = 1000
    backlog: int = 128
    graceful_shutdown_s: float = 10
    drain_s: float = 0  # before that, in which everybody is answered and told


class Phase(enum.Enum):
    """Which part of a request the next byte belongs to."""

    IDLE = enum.auto()
    HEADER = enum.auto()
    BODY = enum.auto()


class Deadline:
    """A call that happens unless it is cleared in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, delay_s: float, then: Callable[[], None]) -> None:
        self.clear()
        self._timer = self._loop.call_later(delay_s, then)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Config(uvicorn.Config):
    """uvicorn's configuration, carrying our limits to each connection."""

    def __init__(self, app: ASGIApp | str, *, limits: Limits, **options: Any) -> None:
        self.limits = limits
        super().__init__(
            app,
            interface="asgi3",  # it takes a bound method for an older one
            http=Protocol,
            ws=_websocket,  # type: ignore[arg-type]  # called, like the class it stands for
            workers=1,
            access_log=False,
            log_level="warning",
            server_header=False,
            backlog=limits.backlog,
            timeout_keep_alive=limits.keep_alive_s,
            timeout_graceful_shutdown=1,  # `Server.shutdown` has waited before
            **options,
        )

    def load(self) -> None:
        super().load()
        self.loaded_app = AccessLog(self.loaded_app)


def _websocket(**connection: Any) -> asyncio.Protocol:
    """Take over an upgraded connection; imported for the first one, because webhooks need none."""
    from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

    return cast("Callable[..., asyncio.Protocol]", AutoWebSocketsProtocol)(**connection)


class AccessLog:
    """Log `METHOD path status ms` for each answer: no query string, nothing a terminal obeys."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not access_log.isEnabledFor(logging.INFO):
            await self.app(scope, receive, send)
            return
        started = answered = time.perf_counter()
        status = 500  # what uvicorn answers for an application that did not

        async def observed(message: Message) -> None:
            nonlocal status, answered
            status = message.get("status", status)
            await send(message)
            answered = time.perf_counter()

        try:
            await self.app(scope, receive, observed)
        finally:
            if "logged" not in scope:  # else the application has written a line of its own
                latency_ms = (answered - started) * 1000
                path = quote(scope["path"][:MAX_LOGGED_PATH])
                access_log.info("%s %s %d %.1f ms", scope["method"], path, status, latency_ms)


class Corked:
    """A transport that writes at once what is written in one turn of the loop.

    uvicorn writes an answer's headers and its body apart; each would be a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self.is_closing = transport.is_closing  # asked for often: not by way of `__getattr__`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            self._transport.write(b"".join(held))

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """One connection. Whenever a request is incomplete, a deadline is running."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = config.limits
        self._phase = Phase.IDLE
        self._deaf = False  # refused, upgraded or gone: what still arrives is dropped
        self._framing_bytes = 0  # received since the last body byte or end of a request
        self._deadline = Deadline(self.loop)
        self._write_deadline = Deadline(self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Corked(transport, self.loop)  # type: ignore[assignment]
        if len(self.connections) > self.limits.max_connections:
            self._deaf = True
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, (b"retry-after", b"1"))
            self.transport.close()
        else:
            self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._deadline.clear()
        self._write_deadline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._framing_bytes += len(data)
        super().data_received(data)
        if self._framing_bytes > self.limits.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif not self._deadline.is_set:
            self._set_deadline()

    def on_message_begin(self) -> None:
        self._phase = Phase.HEADER
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        refusal = self._objection()
        if refusal is not None:
            self._refuse(refusal)
            raise httptools.HttpParserError(refusal.phrase)  # stops the parser
        super().on_headers_complete()
        self._deadline.clear()
        self._phase = Phase.BODY
        if not self.parser.should_upgrade():
            self.headers = []  # the parser reports trailers as headers: keep them from the scope

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._deadline.clear()
        self._phase = Phase.IDLE
        self._framing_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        cast("Corked", self.transport).flush()
        super().on_response_complete()
        if self.transport.is_closing():
            self._deadline.set(self.limits.write_timeout_s, self.transport.abort)

    def handle_websocket_upgrade(self) -> None:
        self._deaf = True
        self._deadline.clear()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # `close` would wait for a peer that reads nothing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline.set(self.limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._write_deadline.clear()
        super().resume_writing()

    def _objection(self) -> HTTPStatus | None:
        """Why these headers are not passed on, though the parser took them."""
        if self._framing_bytes > self.limits.max_header_bytes:  # perhaps: body bytes came along
            lengths = (len(name) + len(value) + 4 for name, value in self.headers)
            if len(self.url) + sum(lengths) > self.limits.max_header_bytes:
                return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if self.parser.should_upgrade() and not self._should_upgrade():
            # httptools skips the body of an upgrade. Going on would store an empty delivery and
            # read the body as the next request.
            return None if BODY_HEADERS.isdisjoint(dict(self.headers)) else HTTPStatus.BAD_REQUEST
        return None

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The newest request whose answer is not complete."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer `status` where no other answer would be mistaken for it, and close."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        self._deadline.clear()
        cycle = self._unanswered
        if self._phase is Phase.BODY:
            answerable = cycle is not None and not cycle.response_started and not self.pipeline
        elif cycle is not None:
            cycle.keep_alive = False  # an earlier request is being answered: close after that
            return
        else:
            answerable = True
        if answerable:
            self._answer(status)
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self._hang_up()

    def _answer(self, status: HTTPStatus, *headers: tuple[bytes, bytes]) -> None:
        body = status.phrase.lower().encode()
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in (*self.server_state.default_headers, *headers)]
        lines += [
            b"content-type: text/plain; charset=utf-8",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        access_log.info("- - %d -", status)

    def _hang_up(self) -> None:
        """Close our side now, and the other when the peer has closed or lingered too long."""
        self.flow.resume_reading()
        self.transport.write_eof()
        self._deadline.set(LINGER_S, self.transport.abort)

    def _set_deadline(self) -> None:
        """Start the clock if the peer is the one who has to act."""
        if self._deaf or self.transport.is_closing():
            return
        if self._phase is Phase.BODY:
            self._deadline.set(self.limits.body_timeout_s, self._give_up)
        elif self._phase is Phase.HEADER or (
            self._unanswered is None and self.timeout_keep_alive_task is None
        ):
            self._deadline.set(self.limits.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self._phase is Phase.IDLE:
            self.transport.abort()  # nothing was asked, so nothing is answered
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)


class Server(uvicorn.Server):
    """Ends in bounded time on SIGTERM, with the application's lifespan as the last thing to go."""

    config: Config

    def __init__(self, config: Config, *, announce: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._announce = announce

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # A handler that computes holds the interpreter for one interval before the serving loop
        # gets its turn. Python's 5 ms would be felt in every acknowledgement meanwhile.
        sys.setswitchinterval(0.0005)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What start-up made lives as long as the process; the collector need not walk it again, and
        # not now either: of a hundred thousand objects a few hundred could go. What a request makes
        # goes without it; a twentieth of its time went into looking for what does not.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        gc.enable()
        if self._announce is not None:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way, cut off what does not finish, then end the lifespan."""
        await self._drain()
        state = self.server_state
        for listener in self.servers:
            listener.close()
        for connection in list(state.connections):
            connection.shutdown()
        await self._settled(self.config.limits.graceful_shutdown_s)
        for connection in list(state.connections):
            connection.transport.abort()
        await self._settled(ABANDON_S)
        for task in state.tasks:
            task.cancel()
        await self._settled(ABANDON_S)
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        """Serve on for a while, and let nobody keep a connection.

        A closed listener resets what the kernel has accepted and we have not: by then nobody may
        connect any more.
        """
        self.lifespan.state[STOPPING] = True
        self.server_state.default_headers.append((b"connection", b"close"))
        end = time.monotonic() + self.config.limits.drain_s
        while time.monotonic() < end and not self.force_exit:  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.02)

    async def _settled(self, timeout_s: float) -> None:
        """Wait until no connection and no task is left, at most `timeout_s`."""
        end = time.monotonic() + timeout_s
        while self._is_busy() and time.monotonic() < end:  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.02)

    def _is_busy(self) -> bool:
        state = self.server_state
        return bool(state.connections or state.tasks) and not self.force_exit

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and let `run` return; uvicorn would die of the same signal afterwards."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def serve(
    app: ASGIApp | str,
    *,
    host: str,
    port: int,
    limits: Limits | None = None,
    factory: bool = False,
    reload: bool = False,
    reload_dirs: Sequence[str | Path] = (),
    log_config: dict[str, Any] | None = None,
    announce: Callable[[], None] | None = None,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, then return.

    `reload` needs `app` as `module:attribute` and serves it from a child process, restarted when a
    Python file under `reload_dirs` (default: the working directory) changes; the child sets up its
    logging from `log_config`. `announce` is called once connections are accepted, or queued in the
    case of `reload`. Exits with status 3 if the application does not start or the port is taken.
    """
    config = Config(
        app,
        limits=limits or Limits(),
        host=host,
        port=port,
        factory=factory,
        reload=reload,
        reload_dirs=[str(path) for path in reload_dirs] or None,
        log_config=log_config,
    )
    if not config.should_reload:
        Server(config, announce=announce).run()
        return
    from uvicorn.supervisors import ChangeReload

    listener = config.bind_socket()
    listener.listen(config.limits.backlog)
    if announce is not None:
        announce()
    ChangeReload(config, target=Server(config).run, sockets=[listener]).run()

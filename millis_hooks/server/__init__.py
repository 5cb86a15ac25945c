"""uvicorn, with a deadline on everything a peer owes us and a stop that always ends.

Nothing here knows about Millis. It serves any ASGI application on httptools, refuses slow,
oversized and ambiguous requests before the application sees them, and logs each answer without its
query string, because that is where phone numbers and metadata travel.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.lifespan.on import LifespanOn

from ..exceptions import ConfigError, MillisHooksError
from ..masking.error_report import HIDDEN, hidden, shown_path, start_error
from ..settings import STOPPING
from .connection import ConnectionConfig, Limits, Protocol, affordable, no_webhook

__all__ = ["Limits", "serve"]

#: How long tasks get to end once their connection is cut, and again once they are cancelled.
ABANDON_S = 1.0

#: The longest path an access line shows.
MAX_LOGGED_PATH = 200

#: They come every few seconds; only that one failed is worth a line.
PROBES = ("/healthz", "/readyz", "/metrics")

access_log = logging.getLogger("millis_hooks.access")


class Config(ConnectionConfig):
    """uvicorn's configuration, with our connections and our access lines."""

    def __init__(
        self,
        app: ASGIApp | str,
        *,
        limits: Limits,
        is_webhook: Callable[[str], bool] = no_webhook,
        **options: Any,
    ) -> None:
        super().__init__(
            app,
            limits=limits,
            is_webhook=is_webhook,
            interface="asgi3",  # it takes a bound method for an older one
            http=Protocol,
            ws=_websocket,
            workers=1,
            access_log=False,
            log_level="warning",
            server_header=False,
            backlog=affordable(limits.max_connections),  # new ones come in bursts
            timeout_keep_alive=limits.keep_alive_s,
            timeout_graceful_shutdown=1,  # `Server.shutdown` has waited before
            **options,
        )

    def load(self) -> None:
        super().load()
        self.lifespan_class = Lifespan
        self.loaded_app = AccessLog(self.loaded_app)


def _websocket(**connection: Any) -> asyncio.Protocol:
    """Take over an upgraded connection; imported for the first one, because webhooks need none."""
    from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

    return cast("Callable[..., asyncio.Protocol]", AutoWebSocketsProtocol)(**connection)


class AccessLog:
    """Log `METHOD path status ms` for each answer: no query string, nothing a terminal obeys.

    An application whose peer has gone ends quietly.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_logged = scope["type"] == "http" and access_log.isEnabledFor(logging.INFO)
        with suppress(ClientDisconnect):
            await (self._log if is_logged else self.app)(scope, receive, send)

    async def _log(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                path = shown_path(scope["path"], was_found=status < 400)[:MAX_LOGGED_PATH]
                is_probe = status < 400 and path.endswith(PROBES)
                path = quote(path).replace(quote(HIDDEN), HIDDEN)
                level = logging.DEBUG if is_probe else logging.INFO
                access_log.log(level, "%s %s %d %.1f ms", scope["method"], path, status, latency_ms)


class Lifespan(LifespanOn):
    """uvicorn's, which keeps the error that the application did not start for.

    It is raised once the server has ended, as any command raises it; uvicorn would log its words.
    """

    refusal: MillisHooksError | None = None

    async def send(self, message: Any) -> None:
        if message["type"] == "lifespan.startup.failed":
            error = sys.exception() or ConfigError(message.get("message") or "It gave no reason.")
            self.refusal = start_error(error)
            self.logger = logging.Logger("silent", logging.CRITICAL)
        await super().send(message)


class Server(uvicorn.Server):
    """Ends in bounded time on SIGTERM, with the application's lifespan as the last thing to go."""

    config: Config
    lifespan: Lifespan

    def __init__(self, config: Config, *, announce: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._announce = announce

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        # A handler that computes holds the interpreter for one interval before the serving loop
        # gets its turn. Python's 5 ms would be felt in every acknowledgement meanwhile.
        sys.setswitchinterval(0.0005)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            if self.lifespan.refusal is not None:
                raise self.lifespan.refusal  # noqa: B904 - its own cause stays
            raise
        # What start-up made lives as long as the process: the collector need not walk it again.
        gc.freeze()
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
        """Serve on for a while, and close each connection after its answer.

        Closing the listener resets connections that the kernel has accepted and the server has
        not: by then a load balancer has to have stopped sending new ones.
        """
        self.lifespan.state[STOPPING] = True
        self.server_state.default_headers.append((b"connection", b"close"))
        end = time.monotonic() + self.config.limits.drain_s
        while time.monotonic() < end and not self.force_exit:  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.02)

    async def _settled(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        state = self.server_state
        while (state.connections or state.tasks) and time.monotonic() < end:
            if self.force_exit:
                return
            await asyncio.sleep(0.02)  # uvicorn has no event for it

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, and let `run` return; uvicorn would die of the same signal afterwards."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def run_child(
    server: Server,
    load: Callable[[str], ASGIApp] | None,
    tell: Callable[[MillisHooksError], None],
    sockets: list[socket.socket],
) -> None:
    """Serve from a child process, which is replaced when a file changes.

    Where the application does not start, requests are answered with the reason until then.
    """
    config = server.config
    try:
        if load is not None:
            config.app = load(str(config.app))
        server.run(sockets)
        return
    except Exception as error:  # of any kind, as the team's code is imported
        refusal = start_error(error)
        tell(refusal)
        reason = hidden(str(refusal).rpartition("\n")[2])
    except SystemExit:  # uvicorn has logged why
        reason = "its start failed"
    text = (
        f"The application did not start after the last change: {reason}\n"
        "The terminal of `millis-hooks dev` has the details.\n"
    )
    config.app = Starlette(routes=[Mount("/", PlainTextResponse(text, 503))])
    config.loaded = False
    Server(config).run(sockets)


def serve(
    app: ASGIApp | str,
    *,
    host: str,
    port: int,
    limits: Limits | None = None,
    reload: bool = False,
    reload_dirs: Sequence[str | Path] = (),
    log_config: dict[str, Any] | None = None,
    announce: Callable[[], None] | None = None,
    is_webhook: Callable[[str], bool] = no_webhook,
    load: Callable[[str], ASGIApp] | None = None,
    tell: Callable[[MillisHooksError], None] = print,
) -> None:
    """Serve `app` until SIGTERM or SIGINT, then return.

    `reload` needs `app` as `module:attribute` and serves it from a child process, restarted when a
    Python file under `reload_dirs` (default: the working directory) changes; the child sets up its
    logging from `log_config`. `announce` is called once connections are accepted, or queued in the
    case of `reload`. The last places among the connections are kept for requests to paths that
    `is_webhook`. That child imports `app` by `load`, if given, and calls `tell` with the reason why
    the application did not start; for `reload` all three have to be picklable.

    Raises the `MillisHooksError` that the application did not start for, or a `ConfigError` that
    explains another error; exits with status 3 if the port is taken.
    """
    config = Config(
        app,
        limits=limits or Limits(),
        is_webhook=is_webhook,
        host=host,
        port=port,
        reload=reload,
        reload_dirs=([str(path) for path in reload_dirs] or None) if reload else None,
        log_config=log_config,
    )
    if not config.should_reload:
        Server(config, announce=announce).run()
        return
    from uvicorn.supervisors import ChangeReload

    listener = config.bind_socket()
    listener.listen(config.backlog)
    if announce is not None:
        announce()
    child = partial(run_child, Server(config), load, tell)
    ChangeReload(config, target=child, sockets=[listener]).run()

"""The emulator as one ASGI application below `/sandbox/api`: its routes, and access to them.

Without a key it is for this machine only. A page of another site in the developer's browser is on
this machine as well, and a tunnel brings the whole world here: so the host, the origin, what
browsers say of the page that asks and what proxies add are checked, too. A tunnel of bytes adds
nothing: only a key shuts it out.

Source of the widget: docs.millis.ai, integration/embeddable-call-widget. `id` is the agent, `k` the
public key and `c` the look and feel, which is ignored here; the rest of the query is metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from ...environment.addresses import is_loopback
from ...exceptions import PayloadError
from ...protocol.reading import Json
from ...settings import Settings
from ..policy import read_policy
from ..scenario import SHIPPED, load_scenario
from ..transport import API_PATH
from .http_api import HttpApi, refuse
from .schemas import UnprocessableError
from .sessions import Address, BusyError, SessionManager
from .store import Store, sandbox_file
from .websocket import serve_websocket

_WIDGET_FILES = Path(__file__).with_name("widget_files")
_WIDGET_HEADERS = {
    # Teams put it into a frame of their own pages.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Emulator:
    """Millis, as far as its clients can tell: an ASGI application for HTTP and websockets."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        tools: Callable[[str | None], list[dict[str, Json]]],
    ) -> None:
        """Open the sandbox's file; blocks. `app` receives the webhooks of the calls, and has the
        functions that `tools` returns for an agent."""
        self._store = Store(sandbox_file(settings), now=now)
        self.sessions = SessionManager(app, settings, store=self._store, now=now, tools=tools)
        api = Router(
            [
                # Before agents of any id.
                Route("/agents/embedded", _file("widget.html")),
                Route("/agents/embedded/widget.js", _file("widget.js")),
                Route("/agents/embedded/widget.css", _file("widget.css")),
                *HttpApi(self.sessions, now=now).routes(),
                WebSocketRoute("/millis", partial(serve_websocket, self.sessions)),
            ],
            redirect_slashes=False,
        )
        by_scenario = [Mount("/as/{scenario}", _changed(api, _with_scenario)), Mount("", api)]
        with_policy = _changed(Router(by_scenario, redirect_slashes=False), _with_policy)
        by_policy = Mount("/with/{policy}", with_policy)
        self._app = Starlette(
            routes=[Mount(API_PATH, routes=[by_policy, *by_scenario])],
            middleware=[] if settings.sandbox_key else [Middleware(_only_this_machine)],
            exception_handlers=dict.fromkeys(
                (UnprocessableError, BusyError, HTTPException), refuse
            ),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one call."""
        address = Address(_base(scope))
        state = {**scope.get("state", {}), "address": address}
        await self._app({**scope, "state": state}, receive, send)

    async def close(self) -> None:
        """Cut the calls off and close the file."""
        await self.sessions.close()
        await asyncio.to_thread(self._store.close)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return FileResponse(_WIDGET_FILES / name, headers=_WIDGET_HEADERS)

    return serve


def _changed(api: ASGIApp, change: Callable[[Address, dict[str, str]], Address]) -> ASGIApp:
    """Return the API for calls that go otherwise, by a part of the address."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        address = change(scope["state"]["address"], scope["path_params"])
        await api({**scope, "state": {**scope["state"], "address": address}}, receive, send)

    return serve


def _with_scenario(address: Address, path: dict[str, str]) -> Address:
    if path["scenario"] not in SHIPPED:
        raise HTTPException(404, "There is no scenario of this name")
    return replace(address, scenario=load_scenario(path["scenario"]))


def _with_policy(address: Address, path: dict[str, str]) -> Address:
    pairs = (each.partition("=") for each in path["policy"].split(","))
    texts = {name: value for name, _, value in pairs}
    try:
        policy = read_policy(texts)
    except PayloadError as error:
        raise HTTPException(404, f"{error}.") from error
    return replace(address, policy={name: getattr(policy, name) for name in texts})


def _base(scope: Scope) -> str:
    """Return the address of the application as the client has it."""
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    host = Headers(scope=scope).get("host", "localhost")
    return f"{scheme}://{host}{scope.get('root_path', '')}"


#: How headers begin that proxies, load balancers and tunnels add, and clients do not send.
_PROXY_HEADERS = (
    "cdn-loop",
    "cf-",
    "client-ip",
    "cloudfront-",
    "fastly-",
    "fly-",
    "forwarded",
    "ngrok-",
    "tailscale-",
    "true-client-ip",
    "via",
    "x-amz",
    "x-appengine-",
    "x-arr-",
    "x-azure-",
    "x-client-ip",
    "x-cloud-trace-",
    "x-cluster-client-ip",
    "x-envoy-",
    "x-forwarded",
    "x-nf-",
    "x-original-",
    "x-real-ip",
    "x-vercel-",
)
_REFUSAL = (
    "The sandbox is for this machine only. To open it to others, set MILLIS_HOOKS_SANDBOX_KEY: "
    "they need that key."
)


def _only_this_machine(app: ASGIApp) -> ASGIApp:
    """Middleware that refuses requests from elsewhere."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_local(scope):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before it is accepted, which the client sees as status 403.
            await WebSocket(scope, receive, send).close()
        else:
            await JSONResponse({"detail": _REFUSAL}, 403)(scope, receive, send)

    return serve


def _is_local(scope: Scope) -> bool:
    """Return whether a request comes from this machine, to this machine, on a page of it."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    if client is None or not is_loopback(client[0]):
        return False
    if any(name.startswith(_PROXY_HEADERS) for name in headers):
        return False
    return all(map(_names_this_machine, (f"//{headers.get('host', '')}", *_pages(headers))))


def _pages(headers: Headers) -> list[str]:
    """Return the address of the page that asks, or an empty one where it is another site's."""
    if "origin" in headers:
        return [headers["origin"]]
    # Where a browser names no origin, as for a picture or a frame, the page may still be known.
    is_foreign = headers.get("sec-fetch-site") == "cross-site"
    return [headers.get("referer", "")] if is_foreign else []


def _names_this_machine(address: str) -> bool:
    try:
        return is_loopback(urlsplit(address).hostname)
    except ValueError:
        return False

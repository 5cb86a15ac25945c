"""Puts the doors together: one application below `/sandbox/api`.

The widget: a page by whose address a call is made. What is in its query becomes metadata.

Source: docs.millis.ai, integration/embeddable-call-widget. `id` is the agent, `k` the public key
and `c` the look and feel, which is ignored here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import make_url
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from ...call_log.database import is_file
from ...exceptions import PayloadError
from ...settings import Settings
from ..policy import read_policy
from ..scenario import SHIPPED, load_scenario
from .access import Gate, Keys
from .http_api import HttpApi, refused, unprocessable
from .rehearsals import Rehearsals
from .schemas import UnprocessableError
from .sessions import BusyError, Switchboard
from .store import Notebook, Shelf
from .websocket import Calls

_FILES = Path(__file__).with_name("widget_files")

_HEADERS = {
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


def widget_routes() -> list[Route]:
    """Return the page and its two files; they come before agents of any id."""
    return [
        Route("/agents/embedded", _file("widget.html"), methods=["GET"]),
        Route("/agents/embedded/widget.js", _file("widget.js"), methods=["GET"]),
        Route("/agents/embedded/widget.css", _file("widget.css"), methods=["GET"]),
    ]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return FileResponse(_FILES / name, headers=_HEADERS)

    return serve


#: Where all of it is, below the address of the application.
PATH = "/sandbox/api"


class StandIn:
    """Millis, as far as its clients can tell: an ASGI application for HTTP and websockets."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        """Open the sandbox's file; blocks. `app` receives the webhooks of what is called here."""
        key = settings.sandbox_key
        keys = Keys(None if key is None else key.get_secret_value())
        self.shelf = Shelf(sandbox_file(settings), now=now)
        #: Starts calls, and knows those that are under way.
        self.switchboard = Switchboard(app, settings, shelf=self.shelf, now=now, rng=rng)
        #: Holds the calls of the sandbox's page.
        self.rehearsals = Rehearsals(self.switchboard, Notebook(sandbox_file(settings), now=now))
        doors = Router(
            [
                *widget_routes(),
                *HttpApi(self.switchboard, keys, now=now).routes(),
                WebSocketRoute("/millis", Calls(self.switchboard, keys).take),
            ],
            redirect_slashes=False,
        )
        by_scenario = [Mount("/as/{scenario}", _Scenarios(doors)), Mount("", doors)]
        by_policy = Mount("/with/{policy}", _Policies(Router(by_scenario, redirect_slashes=False)))
        self._app = Starlette(
            routes=[Mount(PATH, routes=[by_policy, *by_scenario])],
            middleware=[Middleware(Gate, has_key=keys.is_set)],
            exception_handlers={
                UnprocessableError: unprocessable,
                BusyError: refused,
                HTTPException: refused,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one call."""
        state = {**scope.get("state", {}), "base": _base(scope)}
        await self._app({**scope, "state": state}, receive, send)

    async def close(self) -> None:
        """Cut the calls off and close the file."""
        await self.switchboard.close()
        await self.rehearsals.close()
        await asyncio.to_thread(self.shelf.close)


class _Scenarios:
    """The same doors, to calls that go as a shipped scenario does."""

    def __init__(self, doors: ASGIApp) -> None:
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["scenario"]
        if not (SHIPPED / f"{name}.toml").is_file():
            raise HTTPException(404, "There is no scenario of this name")
        state = {**scope["state"], "scenario": load_scenario(name)}
        await self._doors({**scope, "state": state}, receive, send)


class _Policies:
    """The same doors, to calls where Millis does what these settings of the policy say."""

    def __init__(self, doors: ASGIApp) -> None:
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pairs = (each.partition("=") for each in scope["path_params"]["policy"].split(","))
        given = {name: value for name, _, value in pairs}
        try:
            policy = read_policy(given)
        except PayloadError as error:
            raise HTTPException(404, f"{error}.") from error
        chosen = {name: getattr(policy, name) for name in given}
        await self._doors({**scope, "state": {**scope["state"], "policy": chosen}}, receive, send)


def sandbox_file(settings: Settings) -> Path | str:
    """Return the file of the sandbox, beside the call log's; in memory if that is redacted, or no
    file."""
    if settings.redact_before_store or not is_file(settings.database_url):
        return ":memory:"
    file = Path(make_url(settings.database_url).database or "")
    return file.with_name(f"{file.stem}-sandbox.db")


def _base(scope: Scope) -> str:
    """Return the address of the application as the client has it."""
    scheme = {"ws": "http", "wss": "https"}.get(scope["scheme"], scope["scheme"])
    host = Headers(scope=scope).get("host", "localhost")
    return f"{scheme}://{host}{scope.get('root_path', '')}"

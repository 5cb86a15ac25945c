"""The dashboard's application: its pages put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..call_log.change_feed import ChangeFeed
from ..call_log.queries import Queries
from ..call_log.queries.requests import is_empty
from ..exceptions import StorageError
from ..operators import Operators
from ..version import templates_dir
from . import call, calls, openapi, requests
from . import operators as operators_page
from .analytics import AnalyticsPage
from .call_actions import CallActions
from .endpoints import Endpoints, OperatorRequest
from .forget import Forgetting
from .live_updates import LiveUpdates
from .pages import ZONE_COOKIE, DashboardSettings, Pages, zone_named
from .security import Cookies, Guards, ProxySignIn, local_path
from .setup import Setup
from .sign_in import SignIn

if TYPE_CHECKING:
    from .sandbox import Sandbox

_YEAR_S = 365 * 24 * 3600


def dashboard(
    log: Queries,
    operators: Operators,
    *,
    actions: CallActions,
    forgetting: Forgetting,
    setup: Setup,
    settings: DashboardSettings,
    now: Callable[[], datetime],
    sandbox: Sandbox | None = None,
    changes: ChangeFeed | None = None,
    proxy: ProxySignIn | None = None,
) -> Starlette:
    """Return the dashboard, to be served alone or mounted at any path.

    Open pages follow `changes`; without them they stay as they are. A `proxy` may name operators.
    """
    pages, cookies = Pages(log, settings, now), Cookies(settings.public_url)
    sign_in = SignIn(operators, pages, cookies, proxy)
    endpoints = Endpoints(pages, sign_in, operators, now)
    live = LiveUpdates(changes or ChangeFeed(), partial(sign_in.operator, is_use=False))
    static = _Static(directory=templates_dir() / "static")
    routes = [
        endpoints.get("/", "home", _home),
        *sign_in.routes(),
        endpoints.form("/time-zone", "time_zone", _choose_zone(cookies), role="view"),
        Mount("/static", static, name="static"),
        Route("/live", live, methods=["GET"], name="live"),
        *calls.routes(endpoints),
        *call.routes(endpoints),
        *actions.routes(endpoints),
        *forgetting.routes(endpoints),
        *requests.routes(endpoints, forgetting.write),
        *AnalyticsPage().routes(endpoints),
        *setup.routes(endpoints),
        *operators_page.routes(endpoints, operators),
        *(sandbox.routes(endpoints) if sandbox else ()),
    ]
    return Starlette(
        routes=[*routes, openapi.route(endpoints, settings.version)],
        middleware=[
            Middleware(Guards, public_url=settings.public_url),
            Middleware(GZipMiddleware, compresslevel=5),
        ],
        exception_handlers=pages.error_handlers()
        | {HTTPException: _refusal_in_frame(pages, sign_in)},
    )


def _refusal_in_frame(pages: Pages, sign_in: SignIn) -> Callable[[Request, Exception], Response]:
    """Return what answers where no page is: the operator keeps the navigation."""
    refuse = pages.error_handlers()[HTTPException]

    def answer(request: Request, error: Exception) -> Response:
        if not hasattr(request.state, "operator"):
            with suppress(StorageError):
                sign_in.operator(request, is_use=False)
        return refuse(request, error)

    return answer


def _home(request: OperatorRequest) -> Response:
    """Lead to the calls, or to the setup page while nothing was ever received."""
    return request.redirect("setup" if request.page_request().log.ask(is_empty) else "calls")


def _choose_zone(cookies: Cookies) -> Callable[[OperatorRequest], Response]:
    def choose(request: OperatorRequest) -> Response:
        """Keep the time zone in a cookie, and lead back to the page of the form."""
        zone = zone_named(request.fields.get("zone", "").strip())
        if zone is None:
            raise HTTPException(400)
        home = request.http.scope.get("root_path", "") + "/"
        response = RedirectResponse(local_path(request.fields.get("next")) or home, 303)
        secure = cookies.is_secure(request.http)
        response.set_cookie(ZONE_COOKIE, str(zone), max_age=_YEAR_S, samesite="lax", secure=secure)
        return response

    return choose


class _Static(StaticFiles):
    """Static files; browsers cache those with a version in the address for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        caching = "max-age=31536000, immutable" if scope["query_string"] else "max-age=86400"
        response.headers["Cache-Control"] = f"public, {caching}"
        return response

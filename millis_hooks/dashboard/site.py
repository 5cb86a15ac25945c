"""Puts the dashboard together: which path shows which view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypedDict, Unpack

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..call_log.change_feed import Announcer
from ..call_log.queries import Queries
from ..call_log.queries.requests import is_empty
from ..operators import Operator, Operators, Role
from . import call_actions
from .actions import Actions, Confirmation
from .analytics import AnalyticsPage
from .call import show_call
from .call_actions import Forgetting, Replay, ReplayForm, RereadDelivery, RereadForm
from .calls import Format, export_calls, follow_call, follow_calls, list_calls
from .charts import as_csv
from .formats import MAX_FORM_BYTES
from .live_updates import Live
from .operators import OperatorsPage
from .pages import DashboardSettings, Errors, Pages, View, as_json, choose_zone, link, templates_dir
from .requests import list_deliveries, show_delivery, show_drift, show_rejection
from .security import CONTENT_POLICY, RECORDING_POLICY, Cookies, Guards
from .setup import Setup, SetupForms, revealed
from .sign_in import SignIn

if TYPE_CHECKING:
    from .sandbox import Sandbox


class Parts(TypedDict, total=False):
    """What a dashboard may go without: there are no such pages then, and no such form."""

    setup: Setup | None
    forgetting: Forgetting | None
    reread: RereadDelivery | None
    sandbox: Sandbox | None
    #: Tells the pages of changes; without it they stand still.
    news: Announcer


def dashboard(
    queries: Queries,
    operators: Operators,
    *,
    replay: Replay,
    settings: DashboardSettings,
    now: Callable[[], datetime],
    **parts: Unpack[Parts],
) -> Starlette:
    """Return the dashboard, to be served alone or mounted under any path."""
    return _Site(queries, operators, replay, settings, now, parts).app()


class _Site:
    def __init__(
        self,
        queries: Queries,
        operators: Operators,
        replay: Replay,
        settings: DashboardSettings,
        now: Callable[[], datetime],
        parts: Parts,
    ) -> None:
        self._queries = queries
        self._pages = Pages(queries, settings, now)
        self._public_url = settings.public_url
        self._cookies = Cookies(settings.public_url)
        self._sign_in = SignIn(operators, self._pages, self._cookies)
        self._live = Live(parts.get("news") or Announcer(), operators, cookies=self._cookies)
        self._actions = Actions(self._sign_in, Confirmation(operators, self._pages, now))
        self._analytics = AnalyticsPage()
        self._replays = ReplayForm(replay, now)
        self._setup = parts.get("setup")
        self._forgetting = parts.get("forgetting")
        self._reread = parts.get("reread")
        self._sandbox = parts.get("sandbox")
        self._operators = OperatorsPage(operators)

    def app(self) -> Starlette:
        sign_in = self._sign_in
        routes = [
            Route("/", sign_in.required(self._home), name="home"),
            Route("/login", sign_in.show, name="login"),
            Route("/login", sign_in.submit, methods=["POST"], max_body_size=MAX_FORM_BYTES),
            Route("/logout", sign_in.leave, methods=["POST"], name="logout"),
            self._actions.route("/replay", "replay", self._replays.submit, audit="replay"),
            self._actions.route(
                "/time-zone", "time_zone", partial(choose_zone, self._cookies), role="view"
            ),
            Mount("/static", _Static(directory=templates_dir() / "static"), name="static"),
            Route("/live", self._live, methods=["GET"], name="live"),
            self._fragment("/live/calls", "live_calls", follow_calls),
            self._fragment("/live/calls/{session_id:anytext}", "live_call", follow_call),
            *self._page("/calls", "calls", list_calls),
            self._export("csv"),
            self._export("jsonl"),
            *self._page("/calls/{session_id:anytext}", "call", show_call, RECORDING_POLICY),
            *self._page("/deliveries", "deliveries", list_deliveries),
            *self._page("/deliveries/{delivery_id}", "delivery", show_delivery),
            *self._page("/rejections/{rejection_id}", "rejection", show_rejection),
            *self._page("/drift", "drift", show_drift),
            *self._setup_routes(),
            *self._operators_routes(),
            *self._forgetting_routes(),
            *self._reread_routes(),
            *self._sandbox_routes(),
            *self._page("/analytics", "analytics", self._analytics.show),
            Route(
                "/analytics/{chart}.csv", sign_in.required(self._chart_csv), name="analytics_csv"
            ),
        ]
        return Starlette(
            routes=routes,
            middleware=[
                Middleware(Guards, public_url=self._public_url),
                Middleware(GZipMiddleware, compresslevel=5),
            ],
            exception_handlers=Errors(self._pages).handlers(),
        )

    def _page(
        self,
        path: str,
        name: str,
        view: View,
        policy: str = CONTENT_POLICY,
        *,
        role: Role = "view",
    ) -> Iterator[Route]:
        """Yield a page and its twin; the twin first, as `.json` also fits into any text."""

        def page(request: Request, operator: Operator) -> Response:
            shown = self._pages.ask(view, request)
            if shown is None:
                raise HTTPException(404)
            context = {"view": shown, "operator": operator, "live_count": shown.live_count}
            response = self._pages.render(request, f"{name}.html", **context)
            response.headers["Content-Security-Policy"] = policy
            return response

        def twin(request: Request, operator: Operator) -> Response:
            shown = self._pages.ask(view, request)
            if shown is not None:
                return as_json(shown)
            for parameter in request.path_params:  # an id may itself end in ".json"
                request.path_params[parameter] += ".json"
            return page(request, operator)

        required = partial(self._sign_in.required, role=role)
        yield Route(f"{path}.json", required(twin), name=f"{name}_json")
        yield Route(path, required(page), name=name)

    def _chart_csv(self, request: Request, _: Operator) -> Response:
        chart = self._pages.ask(self._analytics.chart, request)
        if chart is None:
            raise HTTPException(404)
        named = {"Content-Disposition": f'attachment; filename="{chart.name}.csv"'}
        return Response(as_csv(chart), media_type="text/csv", headers=named)

    def _reread_routes(self) -> Iterator[Route]:
        if self._reread is not None:
            form = RereadForm(self._reread)
            yield self._actions.route(
                "/reread", "reread", form.submit, audit="replay", subject=call_actions.subject_of
            )

    def _fragment(self, path: str, name: str, view: View, role: Role = "view") -> Route:
        """Return the route of what a page asks for to follow what has changed."""

        def fragment(request: Request, operator: Operator) -> Response:
            shown = self._pages.ask(view, request)
            if shown is None:
                raise HTTPException(404)
            context = {"view": shown, "operator": operator, "live_count": shown.live_count}
            return self._pages.render(request, f"{name}.html", **context)

        # Pages ask by themselves: that somebody is there it does not say.
        return Route(path, self._sign_in.required(fragment, role=role, is_use=False), name=name)

    def _export(self, format_: Format) -> Route:
        def file(request: Request, _: Operator) -> Response:
            return self._pages.ask(partial(export_calls, format_), request)  # type: ignore[no-any-return]

        endpoint = self._sign_in.required(file, role="operate", audit="export")
        return Route(f"/calls/export.{format_}", endpoint, name=f"export_{format_}")

    def _setup_routes(self) -> Iterator[Route]:
        if self._setup is None:
            return
        forms = SetupForms(self._setup, self._pages, self._sign_in.record)
        yield self._fragment("/setup/received", "setup_received", self._setup.show)
        yield from self._page("/setup", "setup", self._setup.show)
        yield self._actions.route(
            "/setup/reveal",
            "setup_reveal",
            forms.reveal,
            audit="reveal",
            subject=revealed,
            recent=lambda fields: True,
        )
        yield self._actions.route(
            "/setup/test", "setup_test", forms.send, recent=forms.leads_elsewhere
        )

    def _operators_routes(self) -> Iterator[Route]:
        page, route = self._operators, partial(self._actions.route, role="view")
        yield from self._page("/operators", "operators", page.show)
        yield route("/operators/end-session", "end_session", page.end_session)
        yield route("/operators/sign-out", "sign_out_everywhere", page.sign_out_everywhere)

    def _forgetting_routes(self) -> Iterator[Route]:
        if self._forgetting is None:
            return
        form = self._forgetting
        yield from self._page("/forget", "forget", form.show, role="operate")
        yield self._actions.route("/forget", "forget_now", form.submit, audit="forget")

    def _sandbox_routes(self) -> Iterator[Route]:
        if self._sandbox is None:
            return
        from .sandbox.actions import SandboxForms

        page, forms = self._sandbox, SandboxForms(self._sandbox, self._pages)
        yield self._fragment("/sandbox/call", "sandbox_call", page.show, role="operate")
        yield from self._page("/sandbox", "sandbox", page.show, role="operate")
        for path, act in (
            ("start", forms.start),
            ("say", forms.say),
            ("function", forms.call_function),
            ("end", forms.end),
        ):
            yield self._actions.route(f"/sandbox/{path}", f"sandbox_{path}", act, max_fields=120)

    def _home(self, request: Request, _: Operator) -> Response:
        """Lead to the calls, or to the setup page as long as there never was one."""
        is_first = self._setup is not None and self._queries.ask(is_empty)
        return RedirectResponse(link(request, "setup" if is_first else "calls"), 303)


class _Static(StaticFiles):
    """Files that a version in the address lets browsers keep for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        kept = "max-age=31536000, immutable" if scope["query_string"] else "max-age=86400"
        response.headers["Cache-Control"] = f"public, {kept}"
        return response

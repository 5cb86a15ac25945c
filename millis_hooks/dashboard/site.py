"""Puts the dashboard together: which path shows which view, and what goes wrong how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ..call_log.queries import Queries
from ..exceptions import StorageError
from ..operators import Operator, Operators
from .actions import Actions
from .call import show_call
from .calls import list_calls
from .deliveries import list_unparsed, show_delivery
from .drift import show_drift
from .forms import MAX_FORM_BYTES
from .guards import CONTENT_POLICY, HEADERS, RECORDING_POLICY, Guards
from .pages import DashboardSettings, Pages, View, as_json, link, templates_dir
from .replays import Replay, ReplayForm
from .sign_in import SignIn

logger = logging.getLogger("millis_hooks.dashboard")

_EXPLANATIONS = {
    404: ("Not found", "There is no such page, or the call was removed from the call log."),
    413: ("Too large", "This form is larger than any form here."),
}
_NOT_POSSIBLE = ("Not possible", "The dashboard cannot do what was asked.")
_NO_STORAGE = ("The call log cannot be used", "The reason is in the server's log. Try again soon.")
_BUG = ("Something went wrong", "The page could not be made. The reason is in the server's log.")


def dashboard(
    queries: Queries,
    operators: Operators,
    *,
    replay: Replay,
    settings: DashboardSettings,
    now: Callable[[], datetime],
) -> Starlette:
    """Return the dashboard, to be served alone or mounted under any path."""
    return _Site(queries, operators, replay, settings, now).app()


class _Site:
    def __init__(
        self,
        queries: Queries,
        operators: Operators,
        replay: Replay,
        settings: DashboardSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._pages = Pages(queries, settings, now)
        self._sign_in = SignIn(operators, self._pages)
        self._actions = Actions(self._sign_in)
        self._replays = ReplayForm(replay, now)

    def app(self) -> Starlette:
        sign_in = self._sign_in
        routes = [
            Route("/", sign_in.required(self._home), name="home"),
            Route("/login", sign_in.show, name="login"),
            Route("/login", sign_in.submit, methods=["POST"], max_body_size=MAX_FORM_BYTES),
            Route("/logout", sign_in.leave, methods=["POST"], name="logout"),
            self._actions.route("/replay", "replay", self._replays.submit),
            Mount("/static", _Static(directory=templates_dir() / "static"), name="static"),
            *self._page("/calls", "calls", list_calls),
            *self._page("/calls/{session_id:anytext}", "call", show_call, RECORDING_POLICY),
            *self._page("/deliveries", "deliveries", list_unparsed),
            *self._page("/deliveries/{delivery_id}", "delivery", show_delivery),
            *self._page("/drift", "drift", show_drift),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guards)],
            exception_handlers={
                HTTPException: self._http_error,
                StorageError: self._storage_error,
                Exception: self._error,
            },
        )

    def _page(
        self, path: str, name: str, view: View, policy: str = CONTENT_POLICY
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

        required = self._sign_in.required
        yield Route(f"{path}.json", required(twin), name=f"{name}_json")
        yield Route(path, required(page), name=name)

    def _home(self, request: Request, _: Operator) -> Response:
        return RedirectResponse(link(request, "calls"), 303)

    def _http_error(self, request: Request, error: Exception) -> Response:
        status_code = error.status_code if isinstance(error, HTTPException) else 500
        return self._explain(request, status_code, _EXPLANATIONS.get(status_code, _NOT_POSSIBLE))

    def _storage_error(self, request: Request, error: Exception) -> Response:
        logger.error("the dashboard could not use the call log", exc_info=error)
        return self._explain(request, 503, _NO_STORAGE)

    def _error(self, request: Request, _: Exception) -> Response:
        # This handler stands outside the guards, whose headers every answer needs.
        response = self._explain(request, 500, _BUG)
        response.headers.update(HEADERS)
        return response

    def _explain(
        self, request: Request, status_code: int, explanation: tuple[str, str]
    ) -> Response:
        title, text = explanation
        if request.url.path.endswith(".json"):
            return as_json({"error": f"{title}. {text}"}, status_code)
        return self._pages.render(
            request, "error.html", status_code=status_code, title=title, text=text
        )


class _Static(StaticFiles):
    """Files that a version in the address lets browsers keep for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        kept = "max-age=31536000, immutable" if scope["query_string"] else "max-age=86400"
        response.headers["Cache-Control"] = f"public, {kept}"
        return response

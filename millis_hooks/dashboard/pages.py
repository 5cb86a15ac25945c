"""Pages: a view builds one frozen dataclass, shown as HTML and, under `.json`, as it is.

A view is a function of a `PageRequest`; it knows neither templates nor HTTP.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import cache, lru_cache, partial
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from ..call_log.queries import Queries
from ..call_log.queries.records import Waiting
from ..exceptions import StorageError
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from ..operators import Operator
from ..protocol.agent_names import AgentNames
from ..version import templates_dir
from . import formats, runs
from .call_filters import HANDLER_LABELS, PAGE_SIZES, SOURCE_LABELS, time_field
from .call_rows import call_rows
from .security import HEADERS, UntrustedError

logger = logging.getLogger("millis_hooks.dashboard")

ZONE_COOKIE = "mh_tz"
THEME_COOKIE = "mh_theme"
#: What an action did, for the next page alone.
_NOTICE_COOKIE = "mh_notice"
_NOTICE_LASTS_S = 60


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """Settings of the pages."""

    version: str
    mask: MaskPolicy = SECRETS_ALONE
    #: Returns what is wrong with the call log's file, None while it is sound.
    damage: Callable[[], str | None] = lambda: None
    #: Where browsers reach the pages, if it is set; it overrides what a proxy says.
    public_url: str | None = None
    agents: AgentNames = field(default_factory=AgentNames)


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request for a page, without HTTP."""

    log: Queries
    settings: DashboardSettings
    now: datetime
    query: Mapping[str, str]
    path: Mapping[str, str]
    #: The operator's time zone: it decides what a day is, and what filters without a zone mean.
    zone: tzinfo = UTC
    #: How the browser reached the service: scheme, host and the path the dashboard is mounted at.
    address: str = ""
    #: None where sign-in is not required.
    operator: Operator | None = None
    #: What the action before this page did; written by browsers, so it may be anything.
    notice: str | None = None


#: Builds what a page shows; None if there is no such page.
View: TypeAlias = Callable[[PageRequest], Any]


class AnyText(Convertor[str]):
    """A path segment of any text, with slashes and line breaks."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return quote(value, safe="", errors="replace")


register_url_convertor("anytext", AnyText())


class Pages:
    """Renders views and errors."""

    def __init__(
        self, log: Queries, settings: DashboardSettings, now: Callable[[], datetime]
    ) -> None:
        self._log = log
        self._settings = settings
        self._now = now

    def request(self, request: Request, query: Mapping[str, str] | None = None) -> PageRequest:
        """Return what a view is given of a request; a form's fields may replace its `query`."""
        # Of the headers only Host counts: the server decides whether to trust a proxy's.
        host = request.headers.get("host", "")
        return PageRequest(
            self._log,
            self._settings,
            self._now(),
            request.query_params if query is None else query,
            {name: str(value) for name, value in request.path_params.items()},
            zone_of(request),
            f"{request.scope['scheme']}://{host}{_root(request)}",
            getattr(request.state, "operator", None),
            request.cookies.get(_NOTICE_COOKIE),
        )

    def show(
        self,
        request: Request,
        template: str,
        view: Any,
        *,
        status_code: int = 200,
        has_twin: bool = False,
    ) -> Response:
        """Render a view for the operator who is signed in; a page that `has_twin` links to it."""
        twin = _here(request, ".json") if has_twin else None
        frame = self._frame(request)
        return self.render(
            request, template, status_code=status_code, view=view, twin=twin, **frame
        )

    def _frame(self, request: Request) -> dict[str, Any]:
        """Return what the frame of a page shows to the operator, if one is signed in."""
        operator = getattr(request.state, "operator", None)
        if operator is None:
            return {}
        return {"operator": operator, "waiting": self._log.waiting(now=self._now())}

    def render(
        self, request: Request, template: str, *, status_code: int = 200, **context: Any
    ) -> Response:
        """Render a template with what every page needs."""
        zone, static = zone_of(request), partial(_static, request)
        context = {"operator": None, "waiting": Waiting(), "twin": None} | context
        text = (
            _templates()
            .get_template(template)
            .render(
                link=_linker(request),
                static=static,
                icon=partial(formats.icon, static("icons.svg")),
                moment=partial(formats.moment, zone),
                outcome=partial(formats.outcome, static("icons.svg")),
                has_page=_routes(request.app).__contains__,
                is_at=partial(_is_at, request),
                places=_places(request, context["operator"]),
                here=_here(request),
                theme=_theme(request),
                zone=zone,
                now=self._now(),
                version=self._settings.version,
                agent_names=self._settings.agents,
                damage=self._settings.damage(),
                **context,
            )
        )
        # Payloads may hold lone surrogates and NUL, which HTML may not.
        text = formats.without_bidi(text.replace("\0", "\ufffd"))
        body = text.encode("utf-8", "replace")
        return HTMLResponse(body, status_code)

    def error_handlers(self) -> dict[Any, Callable[[Request, Exception], Response]]:
        """Return the handlers that answer in place of a page or twin that failed."""
        return {
            HTTPException: self._refuse,
            UntrustedError: self._distrust,
            StorageError: self._no_storage,
            Exception: self._bug,
        }

    def _distrust(self, request: Request, error: Exception) -> Response:
        logger.warning("refused a request that names an operator: %s", error)
        return self._explain(request, 403, "Not allowed", str(error))

    def _refuse(self, request: Request, error: Exception) -> Response:
        status_code = error.status_code if isinstance(error, HTTPException) else 500
        title, text = _REFUSALS.get(status_code, _NOT_POSSIBLE)
        frame: dict[str, Any] = {}
        with suppress(StorageError):
            frame = self._frame(request)
        return self._explain(request, status_code, title, text, **frame)

    def _no_storage(self, request: Request, error: Exception) -> Response:
        logger.error("the dashboard could not use the call log: %s", error)
        title, text = _NO_STORAGE
        response = self._explain(request, 503, title, text.format(error))
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response

    def _bug(self, request: Request, _: Exception) -> Response:
        response = self._explain(request, 500, *_BUG)
        # Starlette answers this one outside the middleware that sets the headers.
        response.headers.update(HEADERS)
        return response

    def _explain(
        self, request: Request, status_code: int, title: str, text: str, **frame: Any
    ) -> Response:
        if request.url.path.endswith(".json"):
            return as_json({"error": f"{title}. {text}"}, status_code)
        return self.render(
            request,
            "error.html",
            status_code=status_code,
            title=title,
            text=text,
            sought=request.path_params.get("session_id") if status_code == 404 else None,
            **{"operator": getattr(request.state, "operator", None)} | frame,
        )


_REFUSALS = {
    403: ("Not allowed", "Your role is view. An operator whose role is operate can do this."),
    404: ("Not found", "There is no such page, or the call was removed from the call log."),
    409: ("Not now", "Handlers of this call are not done, or a delivery is not processed yet."),
    413: ("Too large", "This form is larger than any form of the dashboard."),
}
_NOT_POSSIBLE = ("Not possible", "The dashboard cannot do this.")
_NO_STORAGE = (
    "The call log cannot be used",
    "{} Try again soon. On the server, millis-hooks doctor tells more.",
)
_RETRY_AFTER_S = 5
_BUG = ("Something went wrong", "The page could not be made. The server's log has the reason.")


def as_json(view: Any, status_code: int = 200, agents: AgentNames | None = None) -> Response:
    """Return a view as JSON; beside the id of an agent stands its name."""
    body = json.dumps(formats.as_plain(view, agents or AgentNames()), allow_nan=False)
    return Response(body, status_code, media_type="application/json")


def link(
    request: Request, name: str, query: Mapping[str, object] | None = None, **params: object
) -> str:
    """Return the path of a page, below the path the dashboard is mounted at."""
    return _linker(request)(name, query, **params)


def _linker(request: Request) -> Callable[..., str]:
    """Return `link` for one request: a list of calls has hundreds of links."""
    root, routes = _root(request), _routes(request.app)

    def link_to(name: str, query: Mapping[str, object] | None = None, **params: object) -> str:
        path = root + routes[name].url_path_for(name, **params)
        return f"{path}?{urlencode(query, doseq=True, errors='replace')}" if query else path

    return link_to


@lru_cache(maxsize=4)
def _routes(app: Starlette) -> Mapping[str, BaseRoute]:
    """Return the routes by name; `url_path_for` of an application tries them one by one."""
    named = [(getattr(route, "name", None), route) for route in app.routes]
    return {name: route for name, route in reversed(named) if name}


def _root(request: Request) -> str:
    """Return the path the dashboard is mounted at."""
    return quote(request.scope.get("root_path", "").rstrip("/"))


def _is_at(request: Request, name: str) -> bool:
    """Tell whether the requested page is this one, or one below it."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    route = _routes(request.app).get(name)
    top = str(route.url_path_for(name)) if route else f"/{name}"
    return path == top or path.startswith(f"{top}/")


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation; `key` is pressed after `g` to go there."""

    name: str
    key: str
    icon: str
    label: str
    is_current: bool


def _places(request: Request, operator: Operator | None) -> tuple[Place, ...]:
    """Return the places that the operator may go to."""
    if operator is None:
        return ()
    routes = _routes(request.app)
    return tuple(
        Place(name, key, icon, label, any(_is_at(request, each) for each in (name, *others)))
        for name, key, icon, label, *others in _PLACES
        if name in routes and (name != "sandbox" or operator.may_operate)
    )


#: Name, key, icon and label of each; then the paths of other pages that belong to it.
_PLACES = (
    ("calls", "c", "layout-list", "Calls"),
    ("analytics", "a", "chart-column", "Analytics"),
    ("deliveries", "d", "webhook", "Deliveries", "rejections"),
    ("sandbox", "s", "flask-conical", "Sandbox"),
    ("setup", "u", "plug", "Setup"),
)


def _here(request: Request, suffix: str = "") -> str:
    """Return the address of the requested page; the `suffix` of a twin ends its path."""
    path = quote(request.scope["path"], safe="/") + suffix
    return f"{path}?{request.url.query}" if request.url.query else path


def set_notice(request: Request, response: Response, notice: str) -> None:
    """Keep a notice for the next page, in letters that a cookie may have."""
    response.set_cookie(
        _NOTICE_COOKIE,
        notice,
        max_age=_NOTICE_LASTS_S,
        path=_root(request) or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def forget_notice(request: Request, response: Response) -> None:
    """Delete the notice that a page was given."""
    if _NOTICE_COOKIE in request.cookies:
        response.delete_cookie(_NOTICE_COOKIE, path=_root(request) or "/")


def _theme(request: Request) -> str:
    theme = request.cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else "auto"


@lru_cache(maxsize=64)
def zone_named(name: str) -> tzinfo | None:
    """Return the time zone of this name, or None."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # the name becomes a path, and may be any text
        return None


def zone_of(request: Request) -> tzinfo:
    """Return the operator's time zone: that of the cookie, else UTC."""
    return zone_named(request.cookies.get(ZONE_COOKIE, "UTC")) or UTC


@cache
def _templates() -> Environment:
    """Return the templates, which are the same for every application of the process."""
    templates = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(formats.FILTERS | runs.FILTERS)
    templates.filters.update(call_rows=call_rows, time_field=time_field)
    templates.globals.update(
        badge=formats.badge,
        handler_labels=HANDLER_LABELS,
        source_labels=SOURCE_LABELS,
        page_sizes=PAGE_SIZES,
        range_labels=formats.RANGE_LABELS,
        statuses=formats.STATUSES,
        without=_without,
    )
    return templates


def _without(params: Mapping[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in params.items() if key != name}


def _static(request: Request, name: str) -> str:
    return link(request, "static", path=f"/{name}") + _stamps().get(name, "")


@cache
def _stamps() -> dict[str, str]:
    """Return a query string for each version of a static file, so that browsers may cache it.

    The font has none: the style sheet, which is not a template, names it without.
    """
    return {
        file.name: "?v=" + hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in (templates_dir() / "static").iterdir()
        if file.suffix != ".woff2"
    }

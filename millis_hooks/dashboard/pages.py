"""Renders views: one frozen dataclass, shown as a page and, under `.json`, as it is.

A view is built by a function of what was asked; it knows neither templates nor requests.

The time zone an operator reads times in: a cookie, which the form in the footer sets.

Where there is none, or its name means nothing here, times are UTC.

What is shown when a page cannot be: what went wrong, and what to do where there is something.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, tzinfo
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode
from zoneinfo import ZoneInfo

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute

from ..call_log.queries import Queries
from ..exceptions import StorageError
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from ..operators import Operator
from . import formats, runs
from .call_filters import HANDLER_LABELS, PAGE_SIZES, time_field
from .formats import RANGE_LABELS, STATUSES
from .security import HEADERS, Cookies, local_path

ZONE_COOKIE = "mh_tz"

_YEAR_S = 365 * 24 * 3600


@lru_cache(maxsize=64)
def zone_named(name: str) -> tzinfo | None:
    """Return the time zone of this name, or None."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # it is looked up as a path, and may be any text
        return None


def zone_of(request: Request) -> tzinfo:
    """Return the zone of whoever asks."""
    return zone_named(request.cookies.get(ZONE_COOKIE, "UTC")) or UTC


def choose_zone(
    cookies: Cookies, request: Request, _: Operator, fields: Mapping[str, str]
) -> Response:
    """Keep the zone that a form names, and lead back to the page it was on."""
    zone = zone_named(fields.get("zone", "").strip())
    if zone is None:
        raise HTTPException(400)
    home = request.scope.get("root_path", "") + "/"
    response = RedirectResponse(local_path(fields.get("next")) or home, 303)
    secure = cookies.is_secure(request)
    response.set_cookie(ZONE_COOKIE, str(zone), max_age=_YEAR_S, samesite="lax", secure=secure)
    return response


THEME_COOKIE = "mh_theme"


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """What the pages need to know besides the call log."""

    version: str
    #: From here on a prefetch is marked as slow.
    slow_prefetch_ms: float = 400
    mask: MaskPolicy = SECRETS_ALONE
    #: Says what was found when the call log is damaged.
    damage: Callable[[], str | None] = lambda: None
    #: Where browsers reach the pages, if it is known whatever a proxy says.
    public_url: str | None = None


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A question put to a page."""

    log: Queries
    settings: DashboardSettings
    now: datetime
    query: Mapping[str, str]
    path: Mapping[str, str]
    #: Where times are read: what a day is, and what filters without a zone mean.
    zone: tzinfo = UTC
    #: How the browser reached us: scheme, host and the path we are mounted at.
    address: str = ""
    #: Who asks; None where nobody has to be signed in.
    operator: Operator | None = None


#: Builds what a page shows; None where there is no such page.
View: TypeAlias = Callable[[PageRequest], Any]


class AnyText(Convertor[str]):
    """A path segment that is whatever somebody else chose, slashes and line breaks too."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return quote(value, safe="", errors="replace")


register_url_convertor("anytext", AnyText())


def templates_dir() -> Path:
    """Return the folder of templates: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "templates"
    return shipped if shipped.is_dir() else package.parent / "templates"


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
    templates.filters.update(formats.FILTERS | runs.FILTERS | {"time_field": time_field})
    templates.globals.update(
        handler_labels=HANDLER_LABELS,
        page_sizes=PAGE_SIZES,
        range_labels=RANGE_LABELS,
        statuses=STATUSES,
        without=_without,
    )
    return templates


class Pages:
    """Turns views into responses."""

    def __init__(
        self, log: Queries, settings: DashboardSettings, now: Callable[[], datetime]
    ) -> None:
        self._log = log
        self._settings = settings
        self._now = now
        self._stamps = _stamps(templates_dir() / "static")

    def ask(self, view: View, request: Request) -> Any:
        """Build a view for a request."""
        path = {name: str(value) for name, value in request.path_params.items()}
        query, zone = request.query_params, zone_of(request)
        # Of the headers only Host: those of proxies count where the server says so, in the scheme.
        address = f"{request.scope['scheme']}://{request.headers.get('host', '')}{_root(request)}"
        operator = getattr(request.state, "operator", None)
        now = self._now()
        return view(
            PageRequest(self._log, self._settings, now, query, path, zone, address, operator)
        )

    def render(
        self, request: Request, template: str, *, status_code: int = 200, **context: Any
    ) -> Response:
        """Render a template around what every page has."""
        page = _templates().get_template(template)
        text = page.render(
            link=partial(link, request),
            static=partial(self._static, request),
            has_page=partial(_has_page, request),
            is_at=partial(_is_at, request),
            here=_here(request),
            theme=_theme(request),
            zone=zone_of(request),
            now=self._now(),
            slow_prefetch_ms=self._settings.slow_prefetch_ms,
            version=self._settings.version,
            damage=self._settings.damage(),
            **{"operator": None, "live_count": 0} | context,
        )
        # Lone surrogates and NUL come in with payloads and go out on no page.
        body = text.replace("\0", "\ufffd").encode("utf-8", "replace")
        return HTMLResponse(body, status_code)

    def _static(self, request: Request, name: str) -> str:
        return link(request, "static", path=f"/{name}") + self._stamps.get(name, "")


def as_json(view: Any, status_code: int = 200) -> Response:
    """Return a view as JSON."""
    body = json.dumps(_jsonable(view), allow_nan=False)
    return Response(body, status_code, media_type="application/json")


def _jsonable(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tzinfo):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def link(
    request: Request, name: str, query: Mapping[str, object] | None = None, **params: object
) -> str:
    """Return the path of a page of ours, below wherever the dashboard is mounted."""
    path = _root(request) + str(_routes(request.app)[name].url_path_for(name, **params))
    return f"{path}?{urlencode(query, doseq=True, errors='replace')}" if query else path


@lru_cache(maxsize=4)
def _routes(app: Starlette) -> Mapping[str, BaseRoute]:
    """Return the routes by name: a list has hundreds of links, and Starlette tries every route."""
    named = [(getattr(route, "name", None), route) for route in app.routes]
    return {name: route for name, route in reversed(named) if name}


def _root(request: Request) -> str:
    """Return the path that the dashboard is mounted at."""
    return quote(request.scope.get("root_path", "").rstrip("/"))


def _without(params: Mapping[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in params.items() if key != name}


def _has_page(request: Request, name: str) -> bool:
    """Whether this dashboard has such a page: some are only there where they are of use."""
    return name in _routes(request.app)


def _is_at(request: Request, name: str) -> bool:
    """Whether the page asked for is this one, or one below it."""
    path: str = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    top = str(_routes(request.app)[name].url_path_for(name))
    return path == top or path.startswith(f"{top}/")


def _here(request: Request) -> str:
    """Return the address of the page that is asked for, to come back to."""
    path = quote(request.scope["path"], safe="/")
    return f"{path}?{request.url.query}" if request.url.query else path


def _theme(request: Request) -> str:
    theme = request.cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else "auto"


@cache
def _stamps(static: Path) -> dict[str, str]:
    """Name each version of a file, so that browsers may keep it for good.

    Not the font: the style sheet, which no template fills in, asks for it by its bare name.
    """
    return {
        file.name: "?v=" + hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in static.iterdir()
        if file.suffix != ".woff2"
    }


logger = logging.getLogger("millis_hooks.dashboard")

_EXPLANATIONS = {
    403: ("Not allowed", "Your role is view. Somebody whose role is operate can do this."),
    404: ("Not found", "There is no such page, or the call was removed from the call log."),
    409: ("Not now", "Handlers of this call are not done, or a delivery is not processed yet."),
    413: ("Too large", "This form is larger than any form here."),
}
_NOT_POSSIBLE = ("Not possible", "The dashboard cannot do what was asked.")
_NO_STORAGE = (
    "The call log cannot be used",
    "{} Try again soon; on the server, millis-hooks doctor says more.",
)
_RETRY_AFTER_S = 5
_BUG = ("Something went wrong", "The page could not be made. The reason is in the server's log.")


class Errors:
    """Answers in the place of a page or a twin that failed."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def handlers(self) -> dict[Any, Callable[[Request, Exception], Response]]:
        """Return what answers each kind of exception."""
        return {HTTPException: self._http, StorageError: self._storage, Exception: self._bug}

    def _http(self, request: Request, error: Exception) -> Response:
        status_code = error.status_code if isinstance(error, HTTPException) else 500
        return self._explain(request, status_code, _EXPLANATIONS.get(status_code, _NOT_POSSIBLE))

    def _storage(self, request: Request, error: Exception) -> Response:
        logger.error("the dashboard could not use the call log: %s", error)
        title, text = _NO_STORAGE
        response = self._explain(request, 503, (title, text.format(error)))
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response

    def _bug(self, request: Request, _: Exception) -> Response:
        # This one stands outside the guards, whose headers every answer needs.
        response = self._explain(request, 500, _BUG)
        response.headers.update(HEADERS)
        return response

    def _explain(
        self, request: Request, status_code: int, explanation: tuple[str, str]
    ) -> Response:
        title, text = explanation
        if request.url.path.endswith(".json"):
            return as_json({"error": f"{title}. {text}"}, status_code)
        operator = getattr(request.state, "operator", None)
        return self._pages.render(
            request,
            "error.html",
            status_code=status_code,
            operator=operator,
            title=title,
            text=text,
            sought=request.path_params.get("session_id") if status_code == 404 else None,
        )

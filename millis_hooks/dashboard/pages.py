"""Renders views: one frozen dataclass, shown as a page and, under `.json`, as it is.

A view is built by a function of what was asked; it knows neither templates nor requests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, tzinfo
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from ..call_log.queries import Queries
from ..masking import SECRETS_ALONE, MaskPolicy
from ..operators import Operator
from . import formats, runs
from .call_filters import PAGE_SIZES, time_field
from .chips import HANDLER_LABELS
from .formats import RANGE_LABELS, STATUSES
from .webhook_api import USUAL_WEBHOOKS, Webhooks
from .zones import zone_of

THEME_COOKIE = "mh_theme"


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """What the pages need to know besides the call log."""

    version: str
    #: From here on a prefetch is marked as slow.
    slow_prefetch_ms: float = 400
    mask: MaskPolicy = SECRETS_ALONE
    #: What `/openapi.json` says of the two webhooks.
    webhooks: Webhooks = USUAL_WEBHOOKS
    #: Says what was found when the call log is damaged.
    damage: Callable[[], str | None] = lambda: None
    #: Where browsers reach the pages, if it is known whatever a proxy says.
    public_url: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
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
View: TypeAlias = Callable[[Asked], Any]


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
        return view(Asked(self._log, self._settings, now, query, path, zone, address, operator))

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

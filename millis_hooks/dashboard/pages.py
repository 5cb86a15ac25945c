"""Renders views: one frozen dataclass, shown as a page and, under `.json`, as it is.

A view is built by a function of what was asked; it knows neither templates nor requests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..call_log.queries import Queries
from ..masking import SECRETS_ALONE, MaskPolicy
from . import formats, runs
from .formats import RANGE_LABELS, STATUSES

THEME_COOKIE = "mh_theme"


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    """What the pages need to know besides the call log."""

    version: str
    #: From here on a prefetch is marked as slow.
    slow_prefetch_ms: float = 400
    mask: MaskPolicy = SECRETS_ALONE


@dataclass(frozen=True, slots=True)
class Asked:
    """A question put to a page."""

    log: Queries
    settings: DashboardSettings
    now: datetime
    query: Mapping[str, str]
    path: Mapping[str, str]


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


class Pages:
    """Turns views into responses."""

    def __init__(
        self, log: Queries, settings: DashboardSettings, now: Callable[[], datetime]
    ) -> None:
        self._log = log
        self._settings = settings
        self._now = now
        self._templates = Environment(
            loader=FileSystemLoader(templates_dir()),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(formats.FILTERS | runs.FILTERS)
        self._templates.globals.update(
            range_labels=RANGE_LABELS,
            slow_prefetch_ms=settings.slow_prefetch_ms,
            statuses=STATUSES,
            version=settings.version,
            without=_without,
        )
        self._stamps = _stamps(templates_dir() / "static")

    def ask(self, view: View, request: Request) -> Any:
        """Build a view for a request."""
        path = {name: str(value) for name, value in request.path_params.items()}
        return view(Asked(self._log, self._settings, self._now(), request.query_params, path))

    def render(
        self, request: Request, template: str, *, status_code: int = 200, **context: Any
    ) -> Response:
        """Render a template around what every page has."""
        text = self._templates.get_template(template).render(
            link=partial(link, request),
            static=partial(self._static, request),
            theme=_theme(request),
            now=self._now(),
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
    return None if isinstance(value, float) and not math.isfinite(value) else value


def link(
    request: Request, name: str, query: Mapping[str, object] | None = None, **params: object
) -> str:
    """Return the path of a page of ours, below wherever the dashboard is mounted."""
    root = quote(request.scope.get("root_path", "").rstrip("/"))
    path = root + str(request.app.url_path_for(name, **params))
    return f"{path}?{urlencode(query, doseq=True, errors='replace')}" if query else path


def _without(params: Mapping[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in params.items() if key != name}


def _theme(request: Request) -> str:
    theme = request.cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else "auto"


def _stamps(static: Path) -> dict[str, str]:
    """Name each version of a file, so that browsers may keep it for good.

    Not the font: the style sheet, which no template fills in, asks for it by its bare name.
    """
    return {
        file.name: "?v=" + hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in static.iterdir()
        if file.suffix != ".woff2"
    }

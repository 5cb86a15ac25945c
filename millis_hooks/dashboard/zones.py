"""The time zone an operator reads times in: a cookie, which the form in the footer sets.

Where there is none, or its name means nothing here, times are UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import Operator
from .cookies import Cookies
from .guards import local_path

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

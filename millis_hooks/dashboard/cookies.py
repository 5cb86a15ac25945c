"""The cookie of an operator's session."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..operators import SignedIn

_NAME = "mh_session"


def read_cookie(request: Request) -> str | None:
    """Return what the browser holds."""
    return request.cookies.get(cookie_name(request))


def set_cookie(request: Request, response: Response, signed_in: SignedIn) -> None:
    """Hand out a session."""
    response.set_cookie(
        cookie_name(request),
        signed_in.cookie,
        max_age=signed_in.max_age_s,
        path=_path(request),
        secure=_is_secure(request),
        httponly=True,
        samesite="lax",
    )


def delete_cookie(request: Request, response: Response) -> None:
    """Have the browser forget the session."""
    response.delete_cookie(
        cookie_name(request),
        path=_path(request),
        secure=_is_secure(request),
        httponly=True,
        samesite="lax",
    )


def cookie_name(request: Request) -> str:
    """Return the strictest name there is: sites beside this one cannot set such a cookie.

    https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Set-Cookie#cookie_prefixes
    """
    if not _is_secure(request):
        return _NAME
    return ("__Host-" if _path(request) == "/" else "__Secure-") + _NAME


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"

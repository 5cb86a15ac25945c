"""The cookies of operators: their session, and by what a browser is known that signed in before."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..operators import KNOWN_FOR_S, SignedIn

_SESSION = "mh_session"
_KNOWN_BROWSER = "mh_known"


class Cookies:
    """Reads and sets them: for HTTPS alone where the request came so or `public_url` says so.

    A proxy may do TLS and not say so, but nobody gives Millis an https address that is none.
    """

    def __init__(self, public_url: str | None = None) -> None:
        self._is_https = (public_url or "").lower().startswith("https:")

    def session(self, request: Request) -> str | None:
        """Return what the browser holds of a session."""
        return request.cookies.get(self.session_name(request))

    def known_browser(self, request: Request) -> str | None:
        """Return by what the browser is known, if it signed in before."""
        return request.cookies.get(self._name(request, _KNOWN_BROWSER))

    def hand_out(self, request: Request, response: Response, signed_in: SignedIn) -> None:
        """Have the browser keep a session, and by what it will be known."""
        self._set(request, response, _SESSION, signed_in.cookie, signed_in.max_age_s)
        self._set(request, response, _KNOWN_BROWSER, signed_in.known_browser, KNOWN_FOR_S)

    def delete_session(self, request: Request, response: Response) -> None:
        """Have the browser forget the session."""
        response.delete_cookie(
            self.session_name(request),
            path=_path(request),
            secure=self.is_secure(request),
            httponly=True,
            samesite="lax",
        )

    def session_name(self, request: Request) -> str:
        """Return the name of the session's cookie."""
        return self._name(request, _SESSION)

    def is_secure(self, request: Request) -> bool:
        """Tell whether browsers are to send cookies over HTTPS alone."""
        return self._is_https or request.url.scheme == "https"

    def _name(self, request: Request, name: str) -> str:
        """Return the strictest name there is: sites beside this one cannot set such a cookie.

        https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Set-Cookie#cookie_prefixes
        """
        if not self.is_secure(request):
            return name
        return ("__Host-" if _path(request) == "/" else "__Secure-") + name

    def _set(
        self, request: Request, response: Response, name: str, value: str, max_age_s: int | None
    ) -> None:
        response.set_cookie(
            self._name(request, name),
            value,
            max_age=max_age_s,
            path=_path(request),
            secure=self.is_secure(request),
            httponly=True,
            samesite="lax",
        )


def _path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"

"""What stands before every page: response headers, the same-origin check, safe redirects.

Whether a form comes from a page of ours, and what to say where it does not.

The cookies of operators: their session, and by what a browser is known that signed in before.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..operators import KNOWN_FOR_S, SignedIn

_PORTS = {"http": 80, "https": 443}
_SHOWN_CHARS = 200


def refusal_of(headers: Headers, scheme: str, public_url: str | None) -> str | None:
    """Return why a form is not taken, None if it comes from one of our pages or from no page.

    Browsers say `Sec-Fetch-Site` over HTTPS and on this machine, and `Origin` with every form.
    Both are compared by what they mean: default ports and the case of letters are no difference.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site in ("same-origin", "none") else _CROSS_SITE.format(_shown(site))
    sources = headers.getlist("origin") or [_origin_in(headers.get("referer", ""))]
    ours = {_normal(url) for url in _own(headers, scheme, public_url)} - {None}
    foreign = next((each for each in sources if each and _normal(each) not in ours), None)
    if foreign is None:
        return None
    return _FOREIGN.format(
        foreign=_shown(foreign), ours=" and ".join(_own(headers, scheme, public_url))
    )


_CROSS_SITE = (
    "This form was sent from another site: the browser says Sec-Fetch-Site: {}. "
    "Open the page itself, and send the form from there."
)
_FOREIGN = (
    "This form was sent from {foreign}, and this site is {ours}. If {foreign} is where you open "
    "this site, set MILLIS_HOOKS_PUBLIC_URL to it, or have the proxy pass on Host and "
    "X-Forwarded-Proto as they came."
)


def _own(headers: Headers, scheme: str, public_url: str | None) -> Iterator[str]:
    yield _shown(f"{scheme}://{headers.get('host', '')}")
    if public_url:
        yield public_url


def _origin_in(referer: str) -> str:
    """Return the origin that an address begins with; an address that has none as it is."""
    with suppress(ValueError):
        parts = urlsplit(referer)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else referer
    return referer


def _normal(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port; None where there is no host."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, _normal_host(parts.hostname), port


def _normal_host(host: str) -> str:
    with suppress(ValueError):
        return ipaddress.ip_address(host).compressed
    with suppress(UnicodeError):
        return host.encode("idna").decode().lower().rstrip(".")
    return host.lower()


def _shown(text: str) -> str:
    printable = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return printable[:_SHOWN_CHARS]


_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; {media}"
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
CONTENT_POLICY = _POLICY.format(media="media-src 'self'; ")
#: Recordings are played from where Millis keeps them; this server never fetches them.
RECORDING_POLICY = _POLICY.format(media="media-src 'self' https: http:; ")

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Other sites learn nothing, as with `no-referrer`; but under that browsers also send
    # `Origin: null` with our own forms, and over plain HTTP there is nothing else to check.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_PATH = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")
_SCHEME_AND_HOST = re.compile(r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?(?://[^/?#\\]*)?[/\\]*")


class Guards:
    """Middleware: sets the headers a page did not set, refuses writes from other sites, and leads
    nobody to another one.
    """

    def __init__(self, app: ASGIApp, *, public_url: str | None = None) -> None:
        """Take forms also from `public_url`, whatever a proxy makes of Host."""
        self._app = app
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if "location" in headers:
                    headers["location"] = on_this_site(headers["location"])
            await send(message)

        refusal = self._refusal(scope)
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> str | None:
        if scope["method"] in _SAFE_METHODS:
            return None
        return refusal_of(Headers(scope=scope), scope["scheme"], self._public_url)


def on_this_site(location: str) -> str:
    """Return where to go without scheme and host: those a request brings are not to be believed."""
    return _SCHEME_AND_HOST.sub("/", location, count=1)


def local_path(target: str | None) -> str | None:
    """Return where to go after signing in if it is a path on this site, else None."""
    return target if target and _LOCAL_PATH.fullmatch(target) else None


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

"""Security of pages: response headers, the same-origin check of forms, safe redirects, cookies, and
operators whom a proxy has signed in."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..operators import KNOWN_FOR_S, Operator, Role, SignedIn
from ..operators.accounts import clean_name
from ..settings import PEER, Settings

_PORTS = {"http": 80, "https": 443}
_MOST_QUOTED_CHARS = 200


def refusal_of(headers: Headers, scheme: str, public_url: str | None) -> str | None:
    """Return why a form is refused, None if a page of this site or no page at all sent it.

    Browsers send `Sec-Fetch-Site` over HTTPS and to loopback, and `Origin` with every form.
    Origins are compared after normalization of ports, case and host names.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site in ("same-origin", "none") else _CROSS_SITE.format(_quoted(site))
    origins = headers.getlist("origin") or [_origin_of(headers.get("referer", ""))]
    own = [_quoted(f"{scheme}://{headers.get('host', '')}"), *([public_url] if public_url else [])]
    allowed = {_normal(url) for url in own} - {None}
    foreign = next((each for each in origins if each and _normal(each) not in allowed), None)
    if foreign is None:
        return None
    return _FOREIGN.format(foreign=_quoted(foreign), own=" and ".join(own))


_CROSS_SITE = (
    "This form was sent from another site (Sec-Fetch-Site: {}). "
    "Open the page itself, and send the form from there."
)
_FOREIGN = (
    "This form was sent from {foreign}, and this site is {own}. If {foreign} is where you open "
    "this site, set MILLIS_HOOKS_PUBLIC_URL to it, or let the proxy pass Host and "
    "X-Forwarded-Proto on unchanged."
)


def _origin_of(referer: str) -> str:
    """Return the origin of a Referer, or the Referer if it has none."""
    with suppress(ValueError):
        parts = urlsplit(referer)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else referer
    return referer


def _normal(url: str) -> tuple[str, str, int] | None:
    """Return the scheme, host and port of a URL; None if it has no host."""
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


def _quoted(text: str) -> str:
    printable = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return printable[:_MOST_QUOTED_CHARS]


_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; {media}"
    "font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
CONTENT_POLICY = _POLICY.format(media="media-src 'self'; ")
#: Browsers play recordings from Millis' storage; this server never fetches them.
RECORDING_POLICY = _POLICY.format(media="media-src 'self' https: http:; ")

HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not `no-referrer`: with that, browsers send `Origin: null` with our own forms, and over plain
    # HTTP there is nothing else to check. Other sites get no referrer either way.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL_PATH = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")
_SCHEME_AND_HOST = re.compile(r"^(?:[a-zA-Z][a-zA-Z0-9+.-]*:)?(?://[^/?#\\]*)?[/\\]*")


class Guards:
    """Middleware that sets missing security headers, refuses forms of other sites, and keeps
    redirects on this site.
    """

    def __init__(self, app: ASGIApp, *, public_url: str | None = None) -> None:
        """Accept forms from `public_url` too, whatever Host a proxy sends."""
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

        refusal = None
        if scope["method"] not in _SAFE_METHODS:
            refusal = refusal_of(Headers(scope=scope), scope["scheme"], self._public_url)
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app(scope, receive, send_guarded)


def on_this_site(location: str) -> str:
    """Return a redirect's target without scheme and host, which come from the request."""
    return _SCHEME_AND_HOST.sub("/", location, count=1)


def local_path(target: str | None) -> str | None:
    """Return the target if it is a path on this site, else None."""
    return target if target and _LOCAL_PATH.fullmatch(target) else None


def page_before(request: Request, *, with_query: bool = False) -> str | None:
    """Return the address of the page that a form or a link was on."""
    page = urlsplit(request.headers.get("referer", ""))
    is_whole = with_query and page.query
    return local_path(f"{page.path}?{page.query}" if is_whole else page.path)


_SESSION = "mh_session"
_KNOWN_BROWSER = "mh_known"
_UNDONE = "mh_undone"
_UNDONE_S = 60


class Cookies:
    """Cookies of operators: their session, and a mark of browsers that have signed in before.

    They are `Secure` if the request or `public_url` uses HTTPS: a proxy may end TLS silently.
    """

    def __init__(self, public_url: str | None = None) -> None:
        self._is_https = (public_url or "").lower().startswith("https:")

    def session(self, request: Request) -> str | None:
        """Return the value of the session cookie."""
        return request.cookies.get(self._name(request, _SESSION))

    def known_browser(self, request: Request) -> str | None:
        """Return the mark of a browser that has signed in before."""
        return request.cookies.get(self._name(request, _KNOWN_BROWSER))

    def hand_out(self, request: Request, response: Response, signed_in: SignedIn) -> None:
        """Set the cookies of a session and of a known browser."""
        self._set(request, response, _SESSION, signed_in.cookie, signed_in.max_age_s)
        self._set(request, response, _KNOWN_BROWSER, signed_in.known_browser, KNOWN_FOR_S)

    def delete_session(self, request: Request, response: Response) -> None:
        """Delete the session cookie."""
        self._set(request, response, _SESSION, "", 0)

    def undone(self, request: Request) -> str | None:
        """Return what was not done when the session had ended, as `note_undone` has kept it."""
        word = request.cookies.get(self._name(request, _UNDONE), "")
        return word if re.fullmatch(r"[a-z ]{1,20}", word) else None

    def note_undone(self, request: Request, response: Response, word: str | None) -> None:
        """Keep what was not done until the sign-in page is shown; None forgets it."""
        self._set(request, response, _UNDONE, word or "", _UNDONE_S if word else 0)

    def is_secure(self, request: Request) -> bool:
        """Tell whether cookies are restricted to HTTPS."""
        return self._is_https or request.url.scheme == "https"

    def _name(self, request: Request, name: str) -> str:
        """Return the name with its strictest prefix, which keeps other sites from setting it.

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
    return quote(request.scope.get("root_path", "")) or "/"


class UntrustedError(Exception):
    """A request names an operator, and may not."""


class ProxySignIn:
    """Reads the operator of a request from the headers of a trusted proxy."""

    def __init__(self, settings: Settings) -> None:
        self._header = settings.sign_in_header
        self._role_header = settings.sign_in_role_header
        self._role: Role = settings.sign_in_role
        self._proxies = settings.sign_in_proxies

    def operator(self, request: Request) -> Operator | None:
        """Return the operator, None where the request names none.

        Raises `UntrustedError` if the request did not come from a trusted proxy, and for a name or
        role that cannot be one.
        """
        if self._header is None:
            return None
        name, role = self._value(request, self._header), None
        if self._role_header is not None:
            role = self._value(request, self._role_header)
        if not name and not role:
            return None
        self._require_trusted(request)
        if not name:
            raise UntrustedError(f"The request has a role, and no name in {self._header}.")
        return Operator(self._name(name), self._role_of(role), confirmed_at=datetime.now(UTC))

    def _value(self, request: Request, header: str) -> str | None:
        values = request.headers.getlist(header)
        if len(values) > 1:
            raise UntrustedError(f"The request has the header {header} {len(values)} times.")
        return values[0].strip() if values else None

    def _require_trusted(self, request: Request) -> None:
        peer = _peer(request)
        try:
            address = ipaddress.ip_address(peer)
            address = getattr(address, "ipv4_mapped", None) or address
            is_trusted = any(address in network for network in self._proxies)
        except ValueError:
            is_trusted = False
        if not is_trusted:
            raise UntrustedError(
                f"The request names an operator in {self._header}, and comes from "
                f"{peer or 'an unknown address'}, which MILLIS_HOOKS_SIGN_IN_PROXIES does not list."
            )

    def _name(self, text: str) -> str:
        name = clean_name(text)
        if name is None:
            raise UntrustedError(
                f"What is in {self._header} is not a name: up to 64 letters, digits and . _ @ + -."
            )
        return name

    def _role_of(self, text: str | None) -> Role:
        if not text:
            return self._role
        if text not in ("view", "operate"):
            raise UntrustedError(f"What is in {self._role_header} is not a role: view or operate.")
        return "view" if text == "view" else "operate"


def _peer(request: Request) -> str:
    """Return the address the request came from, before a server believes a proxy about another."""
    peer = request.scope.get("extensions", {}).get(PEER)
    return str(peer or (request.client.host if request.client else ""))

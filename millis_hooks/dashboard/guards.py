"""What stands before every page: response headers, the same-origin check, safe redirects."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .origins import refusal_of

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

"""What stands before every page: response headers, the same-origin check, safe redirects."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Guards:
    """Middleware: sets the headers a page did not set, and refuses writes from other sites."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["method"] not in _SAFE_METHODS and not is_same_origin(Headers(scope=scope)):
            app = PlainTextResponse("This form was sent from another site.", 403)
        await app(scope, receive, send_guarded)


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from one of our own pages, or from no page at all."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def local_path(target: str | None) -> str | None:
    """Return where to go after signing in if it is a path on this site, else None."""
    return target if target and _LOCAL_PATH.fullmatch(target) else None

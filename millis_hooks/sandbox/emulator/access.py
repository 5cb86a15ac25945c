"""Who may come in: this machine, or who has the key.

A page of another site in the developer's browser is on this machine as well, and a tunnel brings
the whole world here: so host, origin, what browsers say of the page that asks and what proxies add
are looked at, too. A tunnel of bytes adds nothing: only a key shuts it out.
"""

from __future__ import annotations

from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from ...environment.addresses import is_loopback

#: How the headers begin that proxies, load balancers and tunnels add, and clients do not send.
_OF_PROXIES = (
    "cdn-loop",
    "cf-",
    "client-ip",
    "cloudfront-",
    "fastly-",
    "fly-",
    "forwarded",
    "ngrok-",
    "tailscale-",
    "true-client-ip",
    "via",
    "x-amz",
    "x-appengine-",
    "x-arr-",
    "x-azure-",
    "x-client-ip",
    "x-cloud-trace-",
    "x-cluster-client-ip",
    "x-envoy-",
    "x-forwarded",
    "x-nf-",
    "x-original-",
    "x-real-ip",
    "x-vercel-",
)
_REFUSAL = (
    "The sandbox is for this machine only. With MILLIS_HOOKS_SANDBOX_KEY it is for whoever has "
    "that key."
)


class Gate:
    """Middleware: lets nobody in from elsewhere, unless there is a key to ask for."""

    def __init__(self, app: ASGIApp, *, has_key: bool) -> None:
        self._app = app
        self._has_key = has_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._has_key or scope["type"] == "lifespan" or is_from_here(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before it is accepted, which the client sees as status 403.
            await WebSocket(scope, receive, send).close()
        else:
            await JSONResponse({"detail": _REFUSAL}, 403)(scope, receive, send)


def is_from_here(scope: Scope) -> bool:
    """Tell whether a request was made by this machine, for this machine, on a page of it."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    hosts = [f"//{headers.get('host', '')}", *_pages(headers)]
    is_here = client is not None and is_loopback(client[0]) and all(map(_is_here, hosts))
    return is_here and not any(name.startswith(_OF_PROXIES) for name in headers)


def _pages(headers: Headers) -> list[str]:
    """Return the address of the page that asks, or an empty one where it is another site's."""
    if "origin" in headers:
        return [headers["origin"]]
    # Where a browser names no origin, as for a picture or a frame, the page may still be known.
    is_foreign = headers.get("sec-fetch-site") == "cross-site"
    return [headers.get("referer", "")] if is_foreign else []


def _is_here(address: str) -> bool:
    try:
        return is_loopback(urlsplit(address).hostname)
    except ValueError:
        return False


class Keys:
    """Millis' keys, private and public: here any will do, unless one was set."""

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    @property
    def is_set(self) -> bool:
        """Whether there is a key that is asked for."""
        return self._key is not None

    def fits(self, given: str | None) -> bool:
        """Tell whether it is the key, or some key where none was set."""
        if self._key is None:
            return bool(given)
        return compare_digest((given or "").encode("utf-8", "replace"), self._key)

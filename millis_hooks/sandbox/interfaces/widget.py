"""The widget: a page by whose address a call is made. What is in its query becomes metadata.

Source: docs.millis.ai, integration/embeddable-call-widget. `id` is the agent, `k` the public key
and `c` the look and feel, which is ignored here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

_FILES = Path(__file__).with_name("widget_files")

_HEADERS = {
    # Teams put it into a frame of their own pages.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def widget_routes() -> list[Route]:
    """Return the page and its two files; they come before agents of any id."""
    return [
        Route("/agents/embedded", _file("widget.html"), methods=["GET"]),
        Route("/agents/embedded/widget.js", _file("widget.js"), methods=["GET"]),
        Route("/agents/embedded/widget.css", _file("widget.css"), methods=["GET"]),
    ]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        return FileResponse(_FILES / name, headers=_HEADERS)

    return serve

"""A bare Starlette application, and nothing else: what `start` starts for comparison."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def prefetch(request: Request) -> Response:
    return JSONResponse({})


app = Starlette(routes=[Route("/millis/prefetch", prefetch)])

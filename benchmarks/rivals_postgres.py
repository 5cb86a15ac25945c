"""The end-of-call webhook on PostgreSQL as it is soon written: a pool, and a commit per request.

A Starlette route and asyncpg; the database is that of `BENCH_POSTGRES`. It keeps the body and
nothing else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .rivals import is_authorized

POOL = 16
CREATE = "CREATE TABLE IF NOT EXISTS pooled (id BIGSERIAL PRIMARY KEY, body BYTEA NOT NULL)"
INSERT = "INSERT INTO pooled (body) VALUES ($1)"


async def _store(request: Request) -> Response:
    if not is_authorized(request.headers.get("authorization")):
        return JSONResponse({"detail": "unauthorized"}, status_code=401)
    await request.app.state.pool.execute(INSERT, await request.body())
    return JSONResponse({"received": True})


@asynccontextmanager
async def _pool(app: Starlette) -> AsyncIterator[None]:
    url = os.environ["BENCH_POSTGRES"]
    async with asyncpg.create_pool(url, min_size=POOL, max_size=POOL) as pool:
        await pool.execute(CREATE)
        app.state.pool = pool
        yield


pooled = Starlette(routes=[Route("/millis/end-of-call", _store, methods=["POST"])], lifespan=_pool)

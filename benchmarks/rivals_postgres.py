"""The end-of-call webhook on PostgreSQL as it is soon written: a pool, and a commit per request.

Raw ASGI and asyncpg, so that nothing but the commits costs much. The database is that of
`BENCH_POSTGRES`.
"""

from __future__ import annotations

import os
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from starlette.types import Receive, Scope, Send

from .rivals import is_authorized
from .rivals_end_of_call import read_body

POOL = 16
CREATE = "CREATE TABLE IF NOT EXISTS pooled (id BIGSERIAL PRIMARY KEY, body BYTEA NOT NULL)"
INSERT = "INSERT INTO pooled (body) VALUES ($1)"


class Pooled:
    """An ASGI application that knows one URL."""

    pool: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            status = 401
            if is_authorized(header):
                await self.pool.execute(INSERT, await read_body(receive))
                status = 200
            headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self.pool = await asyncpg.create_pool(
            os.environ["BENCH_POSTGRES"], min_size=POOL, max_size=POOL
        )
        await self.pool.execute(CREATE)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.pool.close()
        await send({"type": "lifespan.shutdown.complete"})


pooled = Pooled()

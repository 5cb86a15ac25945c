"""Counts each customer's calls in your PostgreSQL database, each call once.

pip install 'sqlalchemy[asyncio]' 'psycopg[binary]'
export SHOP_DATABASE_URL=postgresql+psycopg://shop:password@127.0.0.1/shop
millis-hooks dev examples/own_database.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from millis_hooks import EndOfCall, MillisHooks

#: In your own project, a migration makes these tables.
TABLES = (
    "CREATE TABLE IF NOT EXISTS customers (phone TEXT PRIMARY KEY, calls INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS handled (key TEXT PRIMARY KEY)",
)
MARK_HANDLED = text(
    "INSERT INTO handled (key) VALUES (:key) ON CONFLICT (key) DO NOTHING RETURNING key"
)
COUNT_CALL = text(
    "INSERT INTO customers (phone, calls) VALUES (:phone, 1) "
    "ON CONFLICT (phone) DO UPDATE SET calls = customers.calls + 1"
)


@asynccontextmanager
async def database() -> AsyncIterator[AsyncEngine]:
    """Keep one pool of connections, on the event loop of the handlers."""
    engine = create_async_engine(os.environ["SHOP_DATABASE_URL"], pool_size=5)
    async with engine.begin() as connection:
        for table in TABLES:
            await connection.execute(text(table))
    yield engine
    await engine.dispose()


hooks = MillisHooks(lifespan=database)


@hooks.on_end_of_call(channel="phone")
async def count_call(call: EndOfCall) -> None:
    """Count the call for its customer."""
    if call.customer_phone is None or call.dry_run:
        return
    engine: AsyncEngine = call.state
    # One transaction: either the call is counted and marked as handled, or neither.
    async with engine.begin() as connection:
        if await is_first_time(connection, call.idempotency_key):
            await connection.execute(COUNT_CALL, {"phone": call.customer_phone})


async def is_first_time(connection: AsyncConnection, key: str) -> bool:
    """Mark a call as handled; return False if an earlier attempt has done so."""
    result = await connection.execute(MARK_HANDLED, {"key": key})
    return result.first() is not None

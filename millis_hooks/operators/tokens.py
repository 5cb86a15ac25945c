"""Read tokens: what programs read the pages' JSON with. Stored hashed, by name.

All functions work in the caller's transaction.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from ..call_log.tables import read_tokens

#: Every token begins with it, so that it is recognized in files, and in requests.
TOKEN_PREFIX = "mht_"


@dataclass(frozen=True, slots=True)
class ReadToken:
    """A token, which is itself not stored; `last_used_at` is to the minute, None if never."""

    name: str
    created_at: datetime
    last_used_at: datetime | None


_COLUMNS = tuple(read_tokens.c[name] for name in ReadToken.__dataclass_fields__)


def add(connection: Connection, name: str, *, now: datetime) -> str | None:
    """Add a token and return it, to be shown this once; None if there is one of this name."""
    if connection.scalar(select(read_tokens.c.name).where(read_tokens.c.name == name)):
        return None
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = {"name": name, "token_hash": _hash(token), "created_at": now}
    connection.execute(insert(read_tokens), row)
    return token


def revoke(connection: Connection, name: str) -> bool:
    """Delete a token; False if there is none of this name."""
    return connection.execute(delete(read_tokens).where(read_tokens.c.name == name)).rowcount > 0


def find(connection: Connection, token: str) -> ReadToken | None:
    """Return the token if it is one."""
    row = connection.execute(
        select(*_COLUMNS).where(read_tokens.c.token_hash == _hash(token))
    ).one_or_none()
    return None if row is None else ReadToken(*row)


def see(connection: Connection, name: str, now: datetime) -> None:
    """Note that a token is in use."""
    connection.execute(
        update(read_tokens).where(read_tokens.c.name == name).values(last_used_at=now)
    )


def listed(connection: Connection) -> tuple[ReadToken, ...]:
    """Return all tokens, by name."""
    rows = connection.execute(select(*_COLUMNS).order_by(read_tokens.c.name))
    return tuple(ReadToken(*row) for row in rows)


def _hash(token: str) -> str:
    # Of 256 random bits; a slow hash is for what people choose.
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()

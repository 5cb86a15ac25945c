"""Reads one stored delivery again, with all of its session, while the service goes on."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Select, select

from .rederived import Rederived, Scratch
from .removal import Write
from .rereading import Batch, Reread, ToDigest, derive_again, read_again, write_again
from .tables import deliveries

#: How often it begins anew because something of the session came in meanwhile.
_TRIES = 5


def reread_delivery(
    reader: Engine, write: Write, delivery_id: int, digest: ToDigest
) -> Reread | None:
    """Put what the delivery tells in the place of what there is; None if there is no such one.

    Raises what `write` raises.
    """
    asked: Select[Any] = select(deliveries.c.id, deliveries.c.session_id).where(
        deliveries.c.id == delivery_id, deliveries.c.outcome != "rejected"
    )
    scratch = Scratch()
    try:
        for _ in range(_TRIES):
            with reader.connect() as connection:
                chosen = list(connection.execute(asked))
                batch = read_again(connection, chosen, digest)
            if not chosen:
                return None
            batch, fresh = derive_again(scratch, batch)
            reread = write(partial(_write, batch, fresh))
            if reread is not None:
                return reread
        return Reread()
    finally:
        scratch.close()


def _write(batch: Batch, fresh: Rederived, connection: Connection) -> Reread | None:
    return write_again(connection, batch, fresh)

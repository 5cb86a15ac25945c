"""Compresses the bodies of old deliveries where they are: they then take about a quarter.

The room they leave is used by what comes next; `millis-hooks vacuum` gives it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import accumulate, takewhile
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    LargeBinary,
    Row,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from .raw_bytes import length_of, pack
from .removal import Write
from .tables import deliveries, keys

#: What one transaction looks through and may write: so much takes it a few ms.
_BATCH_ROWS = 200
_BATCH_BYTES = 200_000
_PLACE = "packed up to"

_kept_place = select(keys.c.value).where(keys.c.name == _PLACE)
_shrink = (
    update(deliveries)
    .where(deliveries.c.id == bindparam("of"))
    .values(body=bindparam("packed", type_=LargeBinary))
)


def pack_older(reader: Engine, write: Write, *, before: datetime) -> Iterator[int]:
    """Pack the bodies received before then, a batch with each step; yield the bytes it saved.

    Stopping between two batches is safe: it goes on where it was. Raises what `write` raises.
    """
    with reader.connect() as connection:
        place = int(connection.scalar(_kept_place) or b"0")
    while batch := _read(reader, place, before):
        place = batch[-1].id
        smaller = [(row, packed) for row in batch if (packed := pack(row.body))]
        changes = [{"of": row.id, "packed": packed} for row, packed in smaller]
        write(lambda connection: _save(connection, changes, place))  # noqa: B023
        yield sum(len(row.body) - len(packed) for row, packed in smaller)


def _read(reader: Engine, place: int, before: datetime) -> Sequence[Row[Any, Any]]:
    d = deliveries.c
    following = select(d.id, d.received_at, length_of(d.body).label("size")).where(d.id > place)
    with reader.connect() as connection:
        rows = connection.execute(following.order_by(d.id).limit(_BATCH_ROWS)).all()
        old = list(takewhile(lambda row: row.received_at < before, rows))
        sizes = accumulate(row.size for row in old)
        few = [row.id for row, size in zip(old, sizes, strict=True) if size <= _BATCH_BYTES]
        last = few[-1] if few else old[0].id if old else place
        batch = select(d.id, d.body).where(d.id > place, d.id <= last)
        return connection.execute(batch.order_by(d.id)).all()


def _save(connection: Connection, changes: Sequence[dict[str, Any]], place: int) -> None:
    if changes:
        connection.execute(_shrink, changes)
    connection.execute(delete(keys).where(keys.c.name == _PLACE))
    connection.execute(insert(keys).values(name=_PLACE, value=b"%d" % place))

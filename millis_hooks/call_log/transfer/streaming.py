"""An export in pieces, for somebody who takes it as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from io import BytesIO

from sqlalchemy import Connection, Engine

from ...masking import MaskPolicy
from ..filters import CallFilter
from .chosen import Chosen, choose, read_calls
from .exporting import Format, writing

_PIECE_BYTES = 64 * 1024


def export(
    connection: Connection,
    wanted: CallFilter,
    format_: Format,
    policy: MaskPolicy,
    *,
    now: datetime,
) -> Iterator[bytes]:
    """Choose calls, now, and return them as a file, the first received first."""
    chosen = choose(connection, wanted, now)
    return _pieces(connection.engine, chosen, format_, policy)


def _pieces(engine: Engine, chosen: Chosen, format_: Format, policy: MaskPolicy) -> Iterator[bytes]:
    to = BytesIO()
    with writing(to, format_, policy) as calls:
        for told in read_calls(engine, chosen.calls, with_deliveries=format_ == "jsonl"):
            calls.write(told)
            if to.tell() >= _PIECE_BYTES:
                yield _taken(to)
    yield _taken(to)


def _taken(buffer: BytesIO) -> bytes:
    piece = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return piece

"""Reads what prefetches were answered with when nothing was wrong, by whichever process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, Row, Select, func, select

from .tables import deliveries

#: So many deliveries are looked through for each answer that is wanted, at most.
_LOOKED_THROUGH = 20


class GoodAnswers:
    """Reads on where it read last, at most `most` at a time, the newest."""

    def __init__(self, reader: Engine, *, most: int) -> None:
        self._reader = reader
        self._most = most
        self._last_id = 0

    def read(self, since: datetime) -> Sequence[Row[Any]]:
        """Return `query`, `answer` and `received_at` of what came since then and since the last
        time, the oldest first. Raises what SQLAlchemy raises."""
        d = deliveries.c
        with self._reader.connect() as connection:
            newest = connection.scalar(select(func.max(d.id))) or 0
            after = max(self._last_id, newest - _LOOKED_THROUGH * self._most)
            good: Select[Any] = (
                select(d.query, d.answer, d.received_at)
                .where(d.id > after, d.id <= newest, d.received_at >= since)
                .where(d.kind == "prefetch", d.outcome == "fresh", d.reason.is_(None))
                # What is made up in a rehearsal, or masked, is nobody's answer.
                .where(d.source.is_(None), ~d.redacted, ~d.imported, d.answer.is_not(None))
                .order_by(d.id.desc())
                .limit(self._most)
            )
            found = connection.execute(good).all()
        self._last_id = newest
        return found[::-1]

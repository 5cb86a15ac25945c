"""Fills the memory of last good answers from the call log: with what other replicas answered, and
with what was answered before the last start.

On a thread of its own, every few seconds: whoever falls back looks into memory and waits for
nobody. So an answer of another replica may be missing for as long.

Reads what prefetches were answered with when nothing was wrong, by whichever process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row, Select, func, select

from ..call_log.tables import deliveries
from ..masking.error_report import describe_failure
from ..protocol.events import PrefetchRequest
from .prefetch_answer import LastGood

logger = logging.getLogger("millis_hooks.prefetch")

EVERY_S = 5.0


class SharedAnswers:
    """Remembers what others have answered."""

    def __init__(
        self,
        answers: GoodAnswers,
        last_good: LastGood,
        *,
        max_age_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._answers = answers
        self._last_good = last_good
        self._max_age = timedelta(seconds=max_age_s)
        self._now = now
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-shared-answers", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def look(self) -> None:
        """Remember what is new in the call log."""
        now = self._now()
        for row in self._answers.read(now - self._max_age):
            call = PrefetchRequest.parse((row.query or "").encode())
            age_s = max((now - row.received_at).total_seconds(), 0.0)
            self._last_good.keep(call, row.answer, age_s=age_s)

    def _run(self) -> None:
        wait_s, is_cut_off = 0.0, False
        while not self._closing.wait(wait_s):
            wait_s = EVERY_S
            try:
                self.look()
                is_cut_off = False
            except Exception as error:  # whatever it is: the thread must live
                if not is_cut_off:
                    logger.warning("answers are not shared for now: %s", describe_failure(error))
                is_cut_off = True


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

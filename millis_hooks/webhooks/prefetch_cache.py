"""The last good prefetch answer of each caller, for when handlers fail. It is kept in memory, and
loaded from the call log at start.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Select, func, select

from ..call_log.tables import deliveries
from ..protocol.events import PrefetchRequest

#: Callers whose last good answer is kept.
MAX_CALLERS = 10_000
#: How old an answer may be.
MAX_AGE = timedelta(hours=24)
#: How many of the newest deliveries are searched for answers at start.
_SEARCHED = 20_000


class PrefetchCache:
    """The last good answer by caller and agent."""

    def __init__(
        self, *, max_callers: int = MAX_CALLERS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_callers = max_callers
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._answers: OrderedDict[tuple[str | None, ...], tuple[float, bytes]] = OrderedDict()

    def keep(self, call: PrefetchRequest[Any], answer: bytes, *, age_s: float = 0.0) -> None:
        """Keep `answer`, given `age_s` seconds ago, unless there is a newer one for this caller.

        Without a phone number there is no caller to keep it for. Any thread may call it.
        """
        if not (call.from_phone or call.to_phone):
            return
        key, given_at = _caller(call), self._monotonic() - age_s
        with self._lock:
            if key in self._answers and self._answers[key][0] > given_at:
                return
            self._answers[key] = (given_at, answer)
            self._answers.move_to_end(key)
            if len(self._answers) > self._max_callers:
                self._answers.popitem(last=False)

    def find(self, call: PrefetchRequest[Any]) -> bytes | None:
        """Return the last good answer of this caller, unless it is too old."""
        given_at, answer = self._answers.get(_caller(call), (0.0, None))
        return answer if self._monotonic() - given_at <= MAX_AGE.total_seconds() else None

    def load(self, reader: Engine, *, now: datetime) -> None:
        """Keep what callers were answered before the start, by any process on this call log.

        Raises what SQLAlchemy raises.
        """
        d = deliveries.c
        with reader.connect() as connection:
            newest = connection.scalar(select(func.max(d.id))) or 0
            good: Select[Any] = (
                select(d.query, d.answer, d.received_at)
                .where(d.id > newest - _SEARCHED, d.received_at >= now - MAX_AGE)
                .where(d.kind == "prefetch", d.outcome == "fresh", d.reason.is_(None))
                # Not what was made up for a rehearsal, or masked.
                .where(d.source.is_(None), ~d.redacted, ~d.imported, d.answer.is_not(None))
                .order_by(d.id.desc())
                .limit(self._max_callers)
            )
            rows = connection.execute(good).all()
        for row in reversed(rows):
            age_s = max((now - row.received_at).total_seconds(), 0.0)
            self.keep(PrefetchRequest.parse((row.query or "").encode()), row.answer, age_s=age_s)


def _caller(call: PrefetchRequest[Any]) -> tuple[str | None, ...]:
    # Both numbers: where ours are not configured, one alone may be the agent's own on an outbound
    # call, and the next customer would get the last one's answer.
    return call.agent_id, call.from_phone, call.to_phone

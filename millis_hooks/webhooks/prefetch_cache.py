"""Answers to prefetches that are given again, in memory: the last good one of each caller, for when
handlers fail, which is loaded from the call log at start; and those of handlers with `cache_s=`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Engine, Select, func, select

from ..call_log.tables import deliveries
from ..handlers.handler_call import Handler
from ..protocol.memory import is_of_one_caller
from ..protocol.prefetch import PrefetchRequest

#: Callers whose last good answer is kept.
MAX_CALLERS = 10_000
#: The size of all answers that are kept.
MAX_BYTES = 64 * 1024 * 1024
#: How old a last good answer may be.
MAX_AGE = timedelta(hours=24)
#: How many of the newest deliveries are searched for answers at start.
_SEARCHED = 20_000


#: What an answer is found by.
Key: TypeAlias = tuple[str | bool | None, ...]


class Given(NamedTuple):
    """An answer that was given, what its handlers kept, and when, in seconds of the clock."""

    answer: bytes
    kept: str | None
    at_s: float


class PrefetchCache:
    """Answers that were given, as many as there is room for; the latest stay. For any thread."""

    def __init__(
        self,
        *,
        max_callers: int = MAX_CALLERS,
        max_bytes: int = MAX_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_callers = max_callers
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._answers: OrderedDict[Key, Given] = OrderedDict()
        self._bytes = 0

    def keep(
        self,
        call: PrefetchRequest[Any],
        answer: bytes,
        kept: str | None = None,
        *,
        age_s: float = 0.0,
    ) -> None:
        """Keep `answer`, given `age_s` seconds ago, unless there is a newer one for this caller.

        Without a number of the caller's own there is none to keep it for.
        """
        if _number_of(call) is not None:
            self.put(_caller(call), answer, kept, age_s=age_s)

    def find(self, call: PrefetchRequest[Any]) -> Given | None:
        """Return the last good answer of this caller, unless it is too old."""
        return self.get(_caller(call), MAX_AGE.total_seconds())

    def put(self, key: Key, answer: bytes, kept: str | None, *, age_s: float = 0.0) -> None:
        """Keep `answer`, given `age_s` seconds ago, unless there is a newer one under this key."""
        given = Given(answer, kept, self._monotonic() - age_s)
        with self._lock:
            before = self._answers.get(key)
            if before is not None and before.at_s > given.at_s:
                return
            self._bytes += _size(given) - (_size(before) if before else 0)
            self._answers[key] = given
            self._answers.move_to_end(key)
            while len(self._answers) > self._max_callers or self._bytes > self._max_bytes:
                self._bytes -= _size(self._answers.popitem(last=False)[1])

    def get(self, key: Key, max_age_s: float) -> Given | None:
        """Return the answer under a key, unless it is too old."""
        given = self._answers.get(key)
        return given if given is not None and self.age_s(given) <= max_age_s else None

    def age_s(self, given: Given) -> float:
        """Return how long ago an answer was given, in seconds."""
        return self._monotonic() - given.at_s

    def load(self, reader: Engine, *, now: datetime) -> None:
        """Keep what callers were answered before the start, by any process on this call log.

        Raises what SQLAlchemy raises.
        """
        d = deliveries.c
        with reader.connect() as connection:
            newest = connection.scalar(select(func.max(d.id))) or 0
            good: Select[Any] = (
                select(d.query, d.answer, d.kept, d.received_at)
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
            call = PrefetchRequest.parse((row.query or "").encode())
            self.keep(call, row.answer, row.kept, age_s=age_s)


def key_of(handler: Handler, call: PrefetchRequest[Any]) -> str | None:
    """Return whose answer a handler with `cache_s=` gives; None if it is not to be kept.

    By default the customer's number is the key, or both numbers where it is not known which of
    them is the customer's.
    """
    if handler.key is not None:
        key = handler.key(call)
        return None if key is None or key == "" else blake2b(repr(key).encode()).hexdigest()
    return _number_of(call)


def _number_of(call: PrefetchRequest[Any]) -> str | None:
    if call.direction:
        numbers = [call.customer_phone]
    else:
        numbers = [call.from_phone, *filter(None, [call.to_phone])]
    whole = [number for number in numbers if number and is_of_one_caller(number)]
    return "/".join(whole) if len(whole) == len(numbers) else None


def _size(given: Given) -> int:
    return len(given.answer) + len(given.kept or "")


def _caller(call: PrefetchRequest[Any]) -> Key:
    # Both numbers: where ours are not configured, one alone may be the agent's own on an outbound
    # call, and the next customer would get the last one's answer.
    return call.agent_id, call.from_phone, call.to_phone

"""Shares the slots of a process between handlers, and reports handlers without a free slot.

A handler is hung when all its slots are taken by calls that do not return, such as calls into C
without a time limit, which cannot be stopped. The runs that wait for it fail after a while.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeAlias

from ..handlers.handler_call import DEFAULT_TIMEOUT_S, Handler

#: A handler by hook and name.
Key: TypeAlias = tuple[str, str]


class Slots:
    """The slots for handlers that run at the same time.

    Every handler can always have one, however slow the others are; beyond that, the handler with
    the fewest comes first. The `concurrency` of a handler limits it further.

    Late calls, which timed out and still run, hold no slot: otherwise a few that never end would
    stop all other handlers. When there are as many of them as slots, their handlers get no more.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        total: int,
        *,
        busy: Iterable[Handler] = (),
        late: Iterable[Handler] = (),
    ) -> None:
        """Share `total` slots; `busy` has a handler once for each slot it has already, and `late`
        once for each of its late calls."""
        self._handlers = handlers
        self._busy = Counter(map(key_of, busy))
        self._late = Counter(map(key_of, late))
        self._are_many_late = self._late.total() >= total
        self._free = total - self._busy.total()
        #: Whether more runs may wait than there were slots for.
        self.is_short = False

    def fair_order(self) -> list[Handler]:
        """Return the handlers, those with the fewest slots first."""
        return sorted(self._handlers, key=self.taken)

    def taken(self, handler: Handler) -> int:
        """Return how many slots the handler has."""
        return self._busy[key_of(handler)]

    def available(self, handler: Handler, *, elsewhere: int = 0) -> int:
        """Return how many slots the handler may take, if it has others in processes `elsewhere`."""
        late = self._late[key_of(handler)]
        if self.is_hung(handler):
            return 0
        taken = self.taken(handler)
        kept_free = sum(not self.taken(other) for other in self._handlers if other is not handler)
        available = min(max(self._free - kept_free, 0 if taken else 1), self._free)
        if handler.concurrency is None:
            return available
        return min(available, handler.concurrency - taken - late - elsewhere)

    def is_hung(self, handler: Handler) -> bool:
        """Tell whether late calls leave the handler no slot."""
        late, own = self._late[key_of(handler)], handler.concurrency
        all_own = own is not None and late >= own and not self.taken(handler)
        return bool(late) and (self._are_many_late or all_own)

    def take(self, handler: Handler, count: int) -> None:
        """Give the handler this number of slots."""
        self._busy[key_of(handler)] += count
        self._free -= count


def key_of(handler: Handler) -> Key:
    """Return the hook and the name of a handler."""
    return handler.hook, handler.name


logger = logging.getLogger("millis_hooks.runs")

#: A hung handler is reported after this: within 10 s all that can be interrupted has been.
REPORTED_AFTER_S = 12.0
#: Runs that wait for a hung handler fail after this many timeouts, at least LEAST_WAITED_S.
TIMEOUTS_WAITED = 5
LEAST_WAITED_S = 30.0

_REPORT = (
    "handler %r is not called any more: calls that do not return take all its slots. "
    "Give its sockets a time limit, and restart the service"
)
_REASON = "calls that do not return take all slots of {name}; restart the service"


class _Hung(NamedTuple):
    handler: Handler
    since: float  # on the monotonic clock
    is_reported: bool


class HungHandlers:
    """Keeps since when handlers are hung. Used by one thread; `reported` by any."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._hung: dict[Key, _Hung] = {}

    @property
    def reported(self) -> tuple[Key, ...]:
        """The handlers that have been hung for long."""
        return tuple(key for key, hung in self._hung.items() if hung.is_reported)

    def note(self, handlers: Iterable[Handler]) -> None:
        """Note which handlers are hung now, and log what has changed."""
        now, before = self._monotonic(), self._hung
        hung = {}
        for handler in handlers:
            earlier = before.get(key_of(handler)) or _Hung(handler, now, is_reported=False)
            is_reported = now - earlier.since >= REPORTED_AFTER_S
            if is_reported and not earlier.is_reported:
                logger.error(_REPORT, handler.name)
            hung[key_of(handler)] = earlier._replace(is_reported=is_reported)
        self._hung = hung
        for key in before.keys() - hung.keys():
            if before[key].is_reported:
                logger.warning("handler %r is called again", key[1])

    def given_up(self) -> Iterator[tuple[Key, timedelta, str]]:
        """Yield each handler whose waiting runs fail, the time they have waited, and the reason."""
        for key, hung in self._hung.items():
            if (reason := self.reason_for(hung.handler)) is not None:
                yield key, timedelta(seconds=_patience_s(hung.handler)), reason

    def reason_for(self, handler: Handler) -> str | None:
        """Return why runs of the handler fail; None while they may wait."""
        hung = self._hung.get(key_of(handler))
        if hung is None or self._monotonic() - hung.since < _patience_s(handler):
            return None
        return _REASON.format(name=handler.name)


def _patience_s(handler: Handler) -> float:
    return max(TIMEOUTS_WAITED * (handler.timeout_s or DEFAULT_TIMEOUT_S), LEAST_WAITED_S)

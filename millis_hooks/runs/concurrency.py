"""How many handlers may be at work, and whose turn it is.

Handlers that have no place left, because all are taken by calls that do not return: a call into
C without a time limit cannot be stopped. They are reported, and what waits for them is given up.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

from ..handlers.routing import DEFAULT_TIMEOUT_S, Handler


class Places:
    """Shares out the places between handlers.

    Every handler can always have one, however slow the others are; beyond that, who has the fewest
    comes first. A handler's own `concurrency` bounds it further.

    Late handlers, given up and yet at work, hold no place: otherwise a few that never end would
    stop all others. When there are as many of them as places, who has any gets no more.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        total: int,
        *,
        busy: Iterable[Handler] = (),
        late: Iterable[Handler] = (),
    ) -> None:
        """Share `total` places; `busy` has a handler once for each place it has already, and `late`
        once for each call that it does not end."""
        self._handlers = handlers
        self._busy = Counter(map(_key, busy))
        self._late = Counter(map(_key, late))
        self._are_many_late = self._late.total() >= total
        self._free = total - self._busy.total()

    def in_turn(self) -> list[Handler]:
        """Return the handlers, those with the fewest places first."""
        return sorted(self._handlers, key=self.taken)

    def taken(self, handler: Handler) -> int:
        """Return how many places the handler has."""
        return self._busy[_key(handler)]

    def room(self, handler: Handler, *, elsewhere: int = 0) -> int:
        """Return how many places the handler may take now, when it has others `elsewhere`."""
        late = self._late[_key(handler)]
        if self.is_hung(handler):
            return 0
        taken = self.taken(handler)
        kept_free = sum(not self.taken(other) for other in self._handlers if other is not handler)
        room = min(max(self._free - kept_free, 0 if taken else 1), self._free)
        if handler.concurrency is None:
            return room
        return min(room, handler.concurrency - taken - late - elsewhere)

    def is_hung(self, handler: Handler) -> bool:
        """Tell whether it gets no place because of calls that it does not end."""
        late, own = self._late[_key(handler)], handler.concurrency
        all_own = own is not None and late >= own and not self.taken(handler)
        return bool(late) and (self._are_many_late or all_own)

    def take(self, handler: Handler, count: int) -> None:
        """Note that the handler has taken so many."""
        self._busy[_key(handler)] += count
        self._free -= count


def _key(handler: Handler) -> tuple[str, str]:
    return handler.hook, handler.name


logger = logging.getLogger("millis_hooks.runs")

#: Reported is what lasts this long: after 10 s whatever can be interrupted was interrupted.
REPORTED_AFTER_S = 12.0
#: Runs that wait for such a handler are parked after so many times its timeout, and no sooner.
TIMEOUTS_WAITED = 5
LEAST_WAITED_S = 30.0

_REPORT = (
    "handler %r runs no more: all its places are taken by calls that do not return. "
    "Give its sockets a time limit, and restart the service"
)
_REASON = "all places of {name} are taken by calls that do not return; restart the service"


class _Hung(NamedTuple):
    handler: Handler
    since: float  # on the monotonic clock
    is_reported: bool


class HungHandlers:
    """Keeps how long handlers have had no place. Used by one thread; `reported` by any."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._hung: dict[tuple[str, str], _Hung] = {}

    @property
    def reported(self) -> tuple[tuple[str, str], ...]:
        """The hook and name of each handler that has had no place for long."""
        return tuple(key for key, hung in self._hung.items() if hung.is_reported)

    def note(self, handlers: Iterable[Handler]) -> None:
        """Note which handlers have no place now, and write into the log what has become of it."""
        now, before = self._monotonic(), self._hung
        hung = {}
        for handler in handlers:
            earlier = before.get(_handler_key(handler)) or _Hung(handler, now, is_reported=False)
            is_reported = now - earlier.since >= REPORTED_AFTER_S
            if is_reported and not earlier.is_reported:
                logger.error(_REPORT, handler.name)
            hung[_handler_key(handler)] = earlier._replace(is_reported=is_reported)
        self._hung = hung
        for key in before.keys() - hung.keys():
            if before[key].is_reported:
                logger.warning("handler %r runs again", key[1])

    def given_up(self) -> Iterator[tuple[tuple[str, str], timedelta, str]]:
        """Yield each handler whose runs waited long enough, with how long that is, and why."""
        for key, hung in self._hung.items():
            if (reason := self.reason_for(hung.handler)) is not None:
                yield key, timedelta(seconds=_patience_s(hung.handler)), reason

    def reason_for(self, handler: Handler) -> str | None:
        """Return why its runs are given up; None while they may wait."""
        hung = self._hung.get(_handler_key(handler))
        if hung is None or self._monotonic() - hung.since < _patience_s(handler):
            return None
        return _REASON.format(name=handler.name)


def _patience_s(handler: Handler) -> float:
    return max(TIMEOUTS_WAITED * (handler.timeout_s or DEFAULT_TIMEOUT_S), LEAST_WAITED_S)


def _handler_key(handler: Handler) -> tuple[str, str]:
    return handler.hook, handler.name

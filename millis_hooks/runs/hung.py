"""Handlers that have no place left, because all are taken by calls that do not return: a call into
C without a time limit cannot be stopped. They are reported, and what waits for them is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import NamedTuple

from ..routing import DEFAULT_TIMEOUT_S, Handler

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
            earlier = before.get(_key(handler)) or _Hung(handler, now, is_reported=False)
            is_reported = now - earlier.since >= REPORTED_AFTER_S
            if is_reported and not earlier.is_reported:
                logger.error(_REPORT, handler.name)
            hung[_key(handler)] = earlier._replace(is_reported=is_reported)
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
        hung = self._hung.get(_key(handler))
        if hung is None or self._monotonic() - hung.since < _patience_s(handler):
            return None
        return _REASON.format(name=handler.name)


def _patience_s(handler: Handler) -> float:
    return max(TIMEOUTS_WAITED * (handler.timeout_s or DEFAULT_TIMEOUT_S), LEAST_WAITED_S)


def _key(handler: Handler) -> tuple[str, str]:
    return handler.hook, handler.name

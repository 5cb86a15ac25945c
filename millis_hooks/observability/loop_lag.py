"""How late an event loop comes to what is due: what blocks it shows here first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from ..call_log.counts import SHORT_S, Histogram

#: How often is measured.
EVERY_S = 0.5


def watch(**loops: asyncio.AbstractEventLoop | None) -> dict[str, LoopLag]:
    """Measure these loops, from now on and by name; one that is there twice only once."""
    distinct = {loop: name for name, loop in reversed(loops.items()) if loop is not None}
    measured = {name: LoopLag(loop) for loop, name in distinct.items()}
    for lag in measured.values():
        lag.start()
    return measured


class LoopLag:
    """Measures a running loop, again and again; `seconds` are how late each measure was."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        every_s: float = EVERY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = Histogram(SHORT_S)
        self._loop = loop
        self._every_s = every_s
        self._monotonic = monotonic
        self._due_at = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    @property
    def overdue_s(self) -> float:
        """How late the next measure is already: what a loop that never comes back is stuck for."""
        return 0.0 if self._is_stopped else max(self._monotonic() - self._due_at, 0.0)

    def start(self) -> None:
        """Begin, from any thread."""
        self._loop.call_soon_threadsafe(self._again)

    def stop(self) -> None:
        """End, from any thread; a loop that has ended is no matter."""
        self._is_stopped = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _measure(self) -> None:
        self.seconds.add(max(self._monotonic() - self._due_at, 0.0))
        self._again()

    def _again(self) -> None:
        if not self._is_stopped:
            self._due_at = self._monotonic() + self._every_s
            self._timer = self._loop.call_later(self._every_s, self._measure)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

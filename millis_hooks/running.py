"""A handler at work, and how it ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

#: Calls that may wait for a blocked loop or for a free thread; more fail at once.
MAX_WAITING = 1000


class _NotWanted:
    """Stands for the answer of a handler whose `when` did not want the call."""


NOT_WANTED = _NotWanted()


class Finished(NamedTuple):
    """How a handler ended: with `value`, or with `error`."""

    value: object = None
    error: BaseException | None = None
    duration_ms: float = 0.0


_NOT_FINISHED = Finished()

#: Told how the handler ended, on whichever thread that happens.
Done: TypeAlias = Callable[[Finished], None]


class Running:
    """A handler at work. Exactly one `Finished` is delivered, whoever comes first."""

    __slots__ = ("_done", "_lock", "finished", "started", "task")

    def __init__(self, done: Done) -> None:
        self._done: Done | None = done
        self._lock = threading.Lock()
        self.started = time.perf_counter()
        self.task: asyncio.Task[None] | None = None
        self.finished = _NOT_FINISHED

    def begin(self) -> bool:
        """Start the clock; False if nobody waits any more."""
        self.started = time.perf_counter()
        return self._done is not None

    def finish(self, value: object = None, error: BaseException | None = None) -> None:
        with self._lock:
            done, self._done = self._done, None
            if done is None:
                return
            duration_ms = (time.perf_counter() - self.started) * 1000
            self.finished = Finished(value, error, duration_ms)
        done(self.finished)

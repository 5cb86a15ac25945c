"""A handler at work, and how it ended."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

#: Calls that may wait for a blocked loop or for a free thread; more fail at once.
MAX_WAITING = 1000


class _NotWanted:
    """Stands for the answer of a handler whose `when` did not want the call."""


NOT_WANTED = _NotWanted()


class Finished(NamedTuple):
    """How a handler ended: with `value`, or with `error`. One that did not begin took no time."""

    value: object = None
    error: BaseException | None = None
    duration_ms: float = 0.0


_NOT_FINISHED = Finished()

#: What a handler runs within: entered and left where its code runs.
Around: TypeAlias = AbstractContextManager[None]
NOTHING_AROUND: Around = nullcontext()

#: Told how the handler ended, on whichever thread that happens.
Done: TypeAlias = Callable[[Finished], None]
#: Told that the handler's code is over, on whichever thread that happens.
Left: TypeAlias = Callable[[], None]


class Running:
    """A handler at work. Exactly one `Finished` is delivered, whoever comes first.

    What was given up may go on for as long as it likes: `has_left` tells when its code is over.
    `begun_at` is when it began, in seconds of the monotonic clock; None while it waits for a loop
    or a thread.
    """

    __slots__ = (
        "_done",
        "_left",
        "around",
        "begun_at",
        "finished",
        "has_left",
        "is_given_up",
        "is_interrupted",
        "lock",
        "name",
        "task",
        "thread_id",
    )

    def __init__(
        self,
        name: str,
        done: Done,
        left: Left | None = None,
        around: Around = NOTHING_AROUND,
    ) -> None:
        self.name = name
        self.around = around
        self.begun_at: float | None = None
        self.finished = _NOT_FINISHED
        self.is_given_up = False
        self.is_interrupted = False
        self.has_left = False
        self.task: asyncio.Task[Any] | None = None
        self.thread_id: int | None = None
        self.lock = threading.Lock()
        self._done: Done | None = done
        self._left = left

    def begin(self) -> bool:
        """Start the clock; False if nobody waits any more."""
        self.begun_at = time.monotonic()
        if self._done is not None:
            return True
        with self.lock:  # held by whoever is telling `done`, which comes before `left`
            return False

    def finish(self, value: object = None, error: BaseException | None = None) -> None:
        """Deliver how the handler ended, unless that was done before."""
        if not self.is_given_up:
            with self.lock:
                self._deliver(value, error)

    def give_up(self, error: BaseException) -> bool:
        """Deliver `error`, however the handler will end; False if it has ended before."""
        if self.is_given_up:
            return False
        with self.lock:
            if self._done is None:
                return False
            self.is_given_up = True
            self._deliver(None, error)
        return True

    def leave(self) -> None:
        """Tell that the handler's code is over; once, and after `finish`."""
        self.has_left = True
        if self._left is not None:
            self._left()

    def refuse(self, error: BaseException) -> None:
        """Deliver `error` for a handler that is not begun at all."""
        self.finish(error=error)
        self.leave()

    def _deliver(self, value: object, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            taken_s = time.monotonic() - self.begun_at if self.begun_at is not None else 0.0
            self.finished = Finished(value, error, taken_s * 1000)
            done(self.finished)

"""Tells whoever listens in this process that calls have changed.

The one seam between those who write and those who watch: what happens in other processes is told
here too, by `elsewhere.py` or `replicas.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

#: A prefetch or an end of a call was processed, an end could not be read, a handler began or ended,
#: a request was refused; `refresh` is anything, and anywhere.
Kind = Literal["started", "ended", "unparsed", "runs", "rejected", "refresh"]

#: So many changes wait for one listener. Who is slower, or where more happens at once, is told to
#: refresh instead.
MOST_WAITING = 20
#: Sessions with a longer id are not named.
LONGEST_ID = 200


class Change(NamedTuple):
    """What changed, and of which session; None may be any."""

    kind: Kind
    session_id: str | None = None


REFRESH = Change("refresh")


class Listener:
    """The changes that one client has not been told of; the same one twice is told once."""

    def __init__(self, wake: Callable[[], None], lock: threading.Lock) -> None:
        self._wake = wake
        self._lock = lock
        self._waiting: dict[Change, None] = {}
        self.is_closed = False

    def take(self) -> tuple[Change, ...]:
        """Return what has changed since the last time."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return tuple(waiting)

    def hear(self, changes: Iterable[Change]) -> None:
        """Keep the changes, under the announcer's lock."""
        if REFRESH in self._waiting:
            return
        was_idle = not self._waiting
        self._waiting.update(dict.fromkeys(changes))
        if REFRESH in self._waiting or len(self._waiting) > MOST_WAITING:
            self._waiting = {REFRESH: None}
        if was_idle and self._waiting:
            self._wake()

    def close(self) -> None:
        """Say that nothing more will come."""
        self.is_closed = True
        self._wake()


class Announcer:
    """Passes changes on to listeners. May be used from any thread; costs nothing without any."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._forwarding: set[Listener] = set()
        self._lock = threading.Lock()
        #: Set while somebody listens, and for good once this is closed.
        self.heard = threading.Event()
        self.is_closed = False

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is told what changes here."""
        return bool(self._listeners or self._forwarding)

    def tell(self, changes: Iterable[Change]) -> None:
        """Pass on what changed here; `changes` are not even looked at if nobody wants to know."""
        if self.is_wanted:
            self._tell(changes, is_ours=True)

    def repeat(self, changes: Iterable[Change]) -> None:
        """Pass on what another process has told."""
        if self._listeners:
            self._tell(changes, is_ours=False)

    def _tell(self, changes: Iterable[Change], *, is_ours: bool) -> None:
        told = tuple(dict.fromkeys(map(_short, changes)))
        with self._lock:
            for listener in self._listeners | (self._forwarding if is_ours else set()):
                listener.hear(told)

    @contextmanager
    def forward(self, wake: Callable[[], None]) -> Iterator[Listener]:
        """Listen as with `listen` to what changes here alone, to tell other processes."""
        listener = Listener(wake, self._lock)
        with self._lock:
            listener.is_closed = self.is_closed
            self._forwarding.add(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._forwarding.discard(listener)

    @contextmanager
    def listen(self, wake: Callable[[], None]) -> Iterator[Listener]:
        """Listen; `wake` is called on any thread, quickly, when there is something to take."""
        listener = Listener(wake, self._lock)
        with self._lock:
            listener.is_closed = self.is_closed
            self._listeners.add(listener)
            self.heard.set()
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners.discard(listener)
                if not self._listeners and not self.is_closed:
                    self.heard.clear()

    def close(self) -> None:
        """Tell everybody that nothing more will come."""
        with self._lock:
            self.is_closed = True
            self.heard.set()
            for listener in self._listeners | self._forwarding:
                listener.close()


def _short(change: Change) -> Change:
    is_long = change.session_id is not None and len(change.session_id) > LONGEST_ID
    return Change(change.kind) if is_long else change

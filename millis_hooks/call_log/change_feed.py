"""The change feed: subscribers of this process learn which calls have changed.

Changes of this process are published at once, with their sessions. While there are subscribers, the
call log is polled for changes of other processes. SQLite counts the commits of other connections;
it is asked on the writer's connection, so that those of this process do not count. PostgreSQL has
no such count: there the newest rows are compared, and a change of this process is published a
second time, without its session.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

from sqlalchemy import Connection, func, select

from ..exceptions import StorageError
from .dialects import is_postgresql
from .tables import IS_OPEN, attempts, deliveries, handler_runs, inbox, rejections
from .writer import Writer

#: A prefetch or an end-of-call was processed, an end could not be read, a handler began or ended,
#: a request was refused; `refresh` is anything, and anywhere.
Kind = Literal["started", "function", "ended", "unparsed", "runs", "rejected", "refresh"]

#: The most changes that wait for one subscription; above it they become a single `refresh`.
MOST_WAITING = 20
#: Sessions with a longer id are not named.
LONGEST_ID = 200
#: Seconds between two looks at what other processes changed.
EVERY_S = 0.5


class Change(NamedTuple):
    """What changed, and of which session; None may be any."""

    kind: Kind
    session_id: str | None = None


REFRESH = Change("refresh")
#: What a poll cannot tell apart: every kind, of any session.
_ANY = tuple(Change(kind) for kind in get_args(Kind) if kind != "refresh")


class Subscription:
    """The changes that one client has not taken yet, each of them once."""

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

    def add(self, changes: Iterable[Change]) -> None:
        """Keep the changes, under the lock of the feed."""
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


class ChangeFeed:
    """Passes changes on to subscribers. May be used from any thread; costs nothing without any."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()
        self._lock = threading.Lock()
        #: Set while there are subscribers, and for good once this is closed.
        self.is_followed = threading.Event()
        self.is_closed = False

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return len(self._subscribers)

    def publish(self, changes: Iterable[Change]) -> None:
        """Pass changes on; without subscribers they are not even read."""
        if not self._subscribers:
            return
        short = tuple(dict.fromkeys(map(_without_long_id, changes)))
        with self._lock:
            for subscription in self._subscribers:
                subscription.add(short)

    @contextmanager
    def subscribe(self, wake: Callable[[], None]) -> Iterator[Subscription]:
        """Subscribe; `wake` is called on any thread, quickly, when there is something to take."""
        subscription = Subscription(wake, self._lock)
        with self._lock:
            subscription.is_closed = self.is_closed
            self._subscribers.add(subscription)
            self.is_followed.set()
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscribers.discard(subscription)
                if not self._subscribers and not self.is_closed:
                    self.is_followed.clear()

    def close(self) -> None:
        """Tell the subscribers that nothing more will come."""
        with self._lock:
            self.is_closed = True
            self.is_followed.set()
            for subscription in self._subscribers:
                subscription.close()


def _without_long_id(change: Change) -> Change:
    is_long = change.session_id is not None and len(change.session_id) > LONGEST_ID
    return Change(change.kind) if is_long else change


class OtherProcesses:
    """Polls the call log on a thread of its own, which waits while there are no subscribers."""

    def __init__(self, writer: Writer, feed: ChangeFeed) -> None:
        self._writer = writer
        self._feed = feed
        self._seen: Hashable = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="millis-hooks-changes", daemon=True)

    def start(self) -> None:
        """Look once, so that whatever changes from now on is noticed, and begin."""
        self.look()
        self._thread.start()

    def close(self) -> None:
        """End; the feed has to be closed before."""
        self._closing.set()
        self._thread.join()

    def look(self) -> None:
        """Publish that anything may have changed, if something has since the last look."""
        try:
            state = self._writer.run(_state)
        except StorageError:  # no page can be shown now either, and the writer logs why
            return
        if state != self._seen:
            self._seen = state
            self._feed.publish(_ANY)

    def _run(self) -> None:
        while self._feed.is_followed.wait() and not self._closing.is_set():
            self.look()
            self._closing.wait(EVERY_S)


def _state(connection: Connection) -> Hashable:
    """Return what differs after another process has changed something that pages show."""
    if is_postgresql(connection):
        return tuple(connection.execute(_NEWEST).one())
    commits: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return commits


_RUNNING = select(func.count()).where(IS_OPEN, handler_runs.c.state == "running")
#: Each is the end of an index, or a count of few rows.
_NEWEST = select(
    select(func.max(deliveries.c.id)).scalar_subquery(),
    select(func.min(inbox.c.delivery_id)).scalar_subquery(),  # moves when one was processed
    select(func.max(handler_runs.c.id)).scalar_subquery(),
    select(func.max(attempts.c.id)).scalar_subquery(),
    _RUNNING.scalar_subquery(),  # one less when an attempt has ended
    select(func.max(rejections.c.id)).scalar_subquery(),
)

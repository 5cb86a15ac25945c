"""The change feed: subscribers of this process learn which calls have changed.

Changes made by other processes are announced here too. On SQLite a thread polls
`PRAGMA data_version` while somebody subscribes; it asks on the writer's connection, so that the
writes of this process, which were announced by name, do not count. On PostgreSQL
`notifications.py` does the same with LISTEN and NOTIFY.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

from sqlalchemy import Connection

from ..exceptions import StorageError
from .writer import Writer

#: A prefetch or an end-of-call was processed, an end could not be read, a handler began or ended,
#: a request was refused; `refresh` is anything, and anywhere.
Kind = Literal["started", "ended", "unparsed", "runs", "rejected", "refresh"]

#: The most changes that wait for one subscription; above it they become a single `refresh`.
MOST_WAITING = 20
#: Sessions with a longer id are not named.
LONGEST_ID = 200


class Change(NamedTuple):
    """What changed, and of which session; None may be any."""

    kind: Kind
    session_id: str | None = None


REFRESH = Change("refresh")


class Subscription:
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

    def add(self, changes: Iterable[Change]) -> None:
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


class ChangeFeed:
    """Passes changes on to listeners. May be used from any thread; costs nothing without any."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()
        self._forwarding: set[Subscription] = set()
        self._lock = threading.Lock()
        #: Set while somebody listens, and for good once this is closed.
        self.heard = threading.Event()
        self.is_closed = False

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._subscribers)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is told what changes here."""
        return bool(self._subscribers or self._forwarding)

    def publish(self, changes: Iterable[Change]) -> None:
        """Pass on what changed here; `changes` are not even looked at if nobody wants to know."""
        if self.is_wanted:
            self._pass_on(changes, is_ours=True)

    def publish_from_others(self, changes: Iterable[Change]) -> None:
        """Pass on what another process has told."""
        if self._subscribers:
            self._pass_on(changes, is_ours=False)

    def _pass_on(self, changes: Iterable[Change], *, is_ours: bool) -> None:
        told = tuple(dict.fromkeys(map(_short, changes)))
        with self._lock:
            for subscription in self._subscribers | (self._forwarding if is_ours else set()):
                subscription.add(told)

    @contextmanager
    def forward(self, wake: Callable[[], None]) -> Iterator[Subscription]:
        """Listen as with `listen` to what changes here alone, to tell other processes."""
        subscription = Subscription(wake, self._lock)
        with self._lock:
            subscription.is_closed = self.is_closed
            self._forwarding.add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._forwarding.discard(subscription)

    @contextmanager
    def subscribe(self, wake: Callable[[], None]) -> Iterator[Subscription]:
        """Listen; `wake` is called on any thread, quickly, when there is something to take."""
        subscription = Subscription(wake, self._lock)
        with self._lock:
            subscription.is_closed = self.is_closed
            self._subscribers.add(subscription)
            self.heard.set()
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscribers.discard(subscription)
                if not self._subscribers and not self.is_closed:
                    self.heard.clear()

    def close(self) -> None:
        """Tell everybody that nothing more will come."""
        with self._lock:
            self.is_closed = True
            self.heard.set()
            for subscription in self._subscribers | self._forwarding:
                subscription.close()


def _short(change: Change) -> Change:
    is_long = change.session_id is not None and len(change.session_id) > LONGEST_ID
    return Change(change.kind) if is_long else change


#: PostgreSQL takes less than 8000 bytes.
_MOST_BYTES = 7000
_KINDS = frozenset(get_args(Kind))


def write_note(sender: str, changes: tuple[Change, ...]) -> str:
    """Return the note; if there is too much to tell, that anything may have changed."""
    note = json.dumps([sender, changes], separators=(",", ":"))
    return note if len(note) <= _MOST_BYTES else json.dumps([sender, [REFRESH]])


def read_note(note: str) -> tuple[str | None, tuple[Change, ...]]:
    """Return who told what; of one that cannot be read nobody, and that anything may have."""
    try:
        sender, changes = json.loads(note)
        return str(sender), tuple(_change(*each) for each in changes)
    except (ValueError, TypeError):
        return None, (REFRESH,)


def _change(kind: Kind, session_id: str | None) -> Change:
    is_known = kind in _KINDS and (session_id is None or isinstance(session_id, str))
    return Change(kind, session_id) if is_known else REFRESH


#: How often is looked.
EVERY_S = 1.0


class OtherProcesses:
    """Looks on a thread of its own, which waits while nobody listens."""

    def __init__(self, writer: Writer, feed: ChangeFeed) -> None:
        self._writer = writer
        self._feed = feed
        self._seen: int | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-elsewhere", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End; the announcer has to be closed before."""
        self._closing.set()
        self._thread.join()

    def look(self) -> None:
        """Tell if others have written since the last look."""
        try:
            version = self._writer.run(_data_version)
        except StorageError:  # nothing can be shown now either, and the writer logs why
            return
        if self._seen not in (None, version):
            self._feed.publish_from_others([REFRESH])
        self._seen = version

    def _run(self) -> None:
        while self._feed.heard.wait() and not self._closing.is_set():
            self.look()
            self._closing.wait(EVERY_S)
            if not self._feed.heard.is_set():
                self._seen = None


def _data_version(connection: Connection) -> int:
    version: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return version

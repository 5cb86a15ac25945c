"""The change feed between processes on one PostgreSQL, by LISTEN and NOTIFY.

A notification is sent after the commit it tells of, in a transaction of its own: NOTIFY holds a
lock of the whole database until its COMMIT is done, and this one does not wait for the disk. A
notification may be lost, with its sender or in a pooler that does not support LISTEN. Therefore
the sequences that every change draws from are polled as well, and pages refresh when one moved
without a notification.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from ..masking.error_report import describe_failure
from .change_feed import REFRESH, Change, ChangeFeed, read_note, write_note
from .postgres import PostgresDatabase

logger = logging.getLogger("millis_hooks.call_log")

CHANNEL = "millis_hooks"
#: What changes so shortly after another change is told with it.
GATHER_S = 0.05
#: How long is listened on when nobody does: who goes from page to page is soon there again.
LINGER_S = 30.0
#: How often is looked whether something happened that nobody told of.
LOOK_EVERY_S = 2.0
#: Until a lost connection is tried again; and how long ending may take.
_RETRY_S, _PAUSE_S = 0.5, 0.2

_NOTIFY = text("SELECT pg_notify(:channel, :note)")
_DRAWN = (
    "SELECT sum(last_value + is_called::int)::bigint FROM ("
    "SELECT last_value, is_called FROM deliveries_id_seq "
    "UNION ALL SELECT last_value, is_called FROM attempts_id_seq "
    "UNION ALL SELECT last_value, is_called FROM rejections_id_seq) AS drawn"
)


class Replicas:
    """Two threads: one sends, the other listens while somebody here wants to know."""

    def __init__(self, database: PostgresDatabase, feed: ChangeFeed) -> None:
        name = secrets.token_hex(8)
        self._parts = (
            _Sender(name, database.reader, feed),
            _Ear(name, database.open_for_listening(), feed),
        )
        self._threads = [
            threading.Thread(target=part.run, name=f"millis-hooks-{part.what}", daemon=True)
            for part in self._parts
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End; the announcer has to be closed before."""
        for thread in self._threads:
            thread.join()


class _Sender:
    """Tells the others."""

    what = "notes"

    def __init__(self, name: str, engine: Engine, feed: ChangeFeed) -> None:
        self._name = name
        self._engine = engine
        self._feed = feed

    def run(self) -> None:
        awake = threading.Event()
        with self._feed.forward(awake.set) as told:
            while not told.is_closed:
                awake.wait()
                awake.clear()
                if changes := told.take():
                    self._send(changes)
                    time.sleep(GATHER_S)

    def _send(self, changes: tuple[Change, ...]) -> None:
        note = {"channel": CHANNEL, "note": write_note(self._name, changes)}
        # Whom this does not reach has lost the server too, and looks by itself when it is back.
        with suppress(SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(_NOTIFY, note)


class _Ear:
    """Hears what the others tell."""

    what = "listening"

    def __init__(self, name: str, engine: Engine, feed: ChangeFeed) -> None:
        self._name = name
        self._engine = engine
        self._feed = feed
        self._is_deaf = False
        self._wanted_until_s = 0.0

    def run(self) -> None:
        while self._feed.heard.wait() and not self._feed.is_closed:
            try:
                with self._engine.connect() as connection:
                    self._listen(connection)
            except Exception as error:  # whatever it is: the thread must live
                if not self._is_deaf:
                    logger.warning(
                        "pages do not follow other processes now: %s", describe_failure(error)
                    )
                self._is_deaf = True
                time.sleep(_RETRY_S)

    def _listen(self, connection: Connection) -> None:
        session: Any = connection.connection.driver_connection
        session.execute(f"LISTEN {CHANNEL}")
        self._is_deaf = False
        self._feed.publish_from_others([REFRESH])  # nobody knows what was not heard
        drawn, heard = _drawn(connection), False
        look_at_s = time.monotonic() + LOOK_EVERY_S
        while self._is_wanted():
            for note in session.notifies(timeout=_PAUSE_S, stop_after=1):
                heard = True
                self._pass_on(note.payload)
            if time.monotonic() >= look_at_s:
                before, drawn = drawn, _drawn(connection)
                if drawn != before and not heard:
                    self._feed.publish_from_others([REFRESH])
                heard, look_at_s = False, time.monotonic() + LOOK_EVERY_S

    def _pass_on(self, note: str) -> None:
        sender, changes = read_note(note)
        if sender != self._name:
            self._feed.publish_from_others(changes)

    def _is_wanted(self) -> bool:
        now_s = time.monotonic()
        if self._feed.subscribers:
            self._wanted_until_s = now_s + LINGER_S
        return not self._feed.is_closed and now_s < self._wanted_until_s


def _drawn(connection: Connection) -> int:
    drawn: int = connection.exec_driver_sql(_DRAWN).scalar_one()
    return drawn

"""Notices that another process has changed the call log's file, while somebody here listens.

SQLite tells a connection whether others have written since: asked on the connection of the one
writer, it leaves out what this process wrote, which was told by name already. `replicas.py` has the
same for a server.
"""

from __future__ import annotations

import threading

from sqlalchemy import Connection

from ..exceptions import StorageError
from .news import REFRESH, Announcer
from .writer import Writer

#: How often is looked.
EVERY_S = 1.0


class Elsewhere:
    """Looks on a thread of its own, which waits while nobody listens."""

    def __init__(self, writer: Writer, news: Announcer) -> None:
        self._writer = writer
        self._news = news
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
            self._news.repeat([REFRESH])
        self._seen = version

    def _run(self) -> None:
        while self._news.heard.wait() and not self._closing.is_set():
            self.look()
            self._closing.wait(EVERY_S)
            if not self._news.heard.is_set():
                self._seen = None


def _data_version(connection: Connection) -> int:
    version: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return version

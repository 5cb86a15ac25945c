"""Threads for handlers that are not async."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .exceptions import HandlerError
from .running import MAX_WAITING, Running


class HandlerThreads:
    """Daemon threads, made when needed. The standard pool's threads would be joined at exit, and a
    handler that never returns would keep the process alive."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made = 0
        self._unfinished = 0
        self._queue: SimpleQueue[tuple[Running, Callable[[], Any]]] = SimpleQueue()
        self._lock = threading.Lock()

    def put(self, running: Running, work: Callable[[], Any]) -> None:
        with self._lock:
            is_full = self._unfinished - self._made >= MAX_WAITING
            self._unfinished += not is_full
            if self._unfinished > self._made and self._made < self._most:
                self._made += 1
                threading.Thread(target=self._run, name="millis-hooks-handler", daemon=True).start()
        if is_full:
            running.finish(error=HandlerError("All threads for handlers are busy."))
        else:
            self._queue.put((running, work))

    def _run(self) -> None:
        while True:
            running, work = self._queue.get()
            if running.begin():
                try:
                    running.finish(work())
                except BaseException as error:  # also SystemExit: the thread is used again
                    running.finish(error=error)
            with self._lock:
                self._unfinished -= 1

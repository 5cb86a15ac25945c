"""The threads handlers run in: one with an event loop for the async ones, several for the others.

All are daemons, and go on whatever a handler raises in them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from .exceptions import HandlerError
from .failures import describe_failure
from .interruption import HandlerInterrupted, keep_out
from .running import MAX_WAITING, Running

logger = logging.getLogger("millis_hooks.workbench")


class HandlerThreads:
    """Daemon threads, made when needed. The standard pool's threads would be joined at exit, and a
    handler that never returns would keep the process alive.

    At most `most` calls are at work, and those beside that were given up and do not return. When
    there are as many of these, a handler that has any gets no more; others do.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made = 0
        self._unfinished = 0
        self._inside: set[Running] = set()
        self._queue: SimpleQueue[tuple[Running, Callable[[], Any]]] = SimpleQueue()
        self._lock = threading.Lock()

    def put(self, running: Running, work: Callable[[], Any]) -> None:
        with self._lock:
            late = self._late()
            is_hung = running.name in late and len(late) >= self._most
            if self._made <= self._unfinished and self._made < self._most + len(late):
                self._make_one()
            is_full = not self._made or self._unfinished - self._made >= MAX_WAITING
            self._unfinished += not (is_full or is_hung)
        if is_hung:
            running.refuse(HandlerError("All its places are taken by calls that do not return."))
        elif is_full:
            running.refuse(HandlerError("All threads for handlers are busy."))
        else:
            self._queue.put((running, work))

    def hung(self) -> set[str]:
        """Return the names of the handlers that get no more places."""
        with self._lock:
            late = self._late()
        return set(late) if len(late) >= self._most else set()

    def _late(self) -> list[str]:
        """Return the name of each call that was given up and has not returned."""
        if self._made < self._most:
            return []  # there are few enough, and nobody has to count them
        return [running.name for running in self._inside if running.is_given_up]

    def _make_one(self) -> None:
        thread = threading.Thread(target=self._run, name="millis-hooks-handler", daemon=True)
        with suppress(RuntimeError):  # no thread to be had now, but perhaps for the next
            thread.start()
            self._made += 1

    def _run(self) -> None:
        thread_id = threading.get_ident()
        while True:
            running, work = self._queue.get()
            running.thread_id = thread_id
            with self._lock:
                self._inside.add(running)
            _do(running, work)
            with self._lock:
                self._inside.discard(running)
                self._unfinished -= 1
            running.leave()


def _do(running: Running, work: Callable[[], Any]) -> None:
    try:
        if running.begin():
            try:
                value = work()
            except BaseException as error:  # also SystemExit: the thread is used again
                running.finish(error=error)
            else:
                running.finish(value)
        keep_out(running)
    except HandlerInterrupted:
        pass  # meant for code that had just ended


class LoopThread:
    """A thread with an event loop. What a task that nobody waits for raises does not end it."""

    def __init__(self) -> None:
        self.loop = _new_event_loop()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="millis-hooks-handlers", daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    def stop(self) -> None:
        """End the loop and its thread, as soon as the code in it lets go."""
        self._is_stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt, HandlerInterrupted) as error:
                block = describe_failure(error).block
                logger.error("the handlers' loop goes on after\n%s", block)
        self.loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

"""The last resort for handlers that were given up and go on: an exception raised in their thread.

What it interrupts is the code of one handler, never what the thread does next. Code that is inside
a call into C, waiting for a socket say, is not reached before that call returns.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from .failures import describe_failure
from .running import Running

logger = logging.getLogger("millis_hooks.workbench")

#: Modules whose locks everybody needs. One that is interrupted as it is taken stays locked.
_DELICATE = {"logging", "importlib._bootstrap"}

#: How soon it is looked, at first, what has become of an interruption.
_PAUSE_S = 0.001


class HandlerInterrupted(BaseException):
    """Raised inside a handler that was given up and did not end. Not an `Exception`: a handler that
    catches every error of its work does not mean to catch this one."""


def interrupt(
    running: Running, thread_id: int, *, is_there: Callable[[], bool], within_s: float
) -> bool:
    """Raise `HandlerInterrupted` in the thread that is in the code of `running`, once at most.

    Blocks until the code is over, but not longer than `within_s`: then an exception that has not
    arrived is taken back. False if nobody gave the handler up, if it has not begun or is over, or
    if `is_there` says that the thread is in other code.
    """
    if not running.lock.acquire(blocking=False):
        return False  # somebody does it, or the code is over: see `keep_out`
    try:
        is_at_work = running.is_given_up and running.begun_at is not None and not running.has_left
        if not is_at_work or running.is_interrupted:
            return False
        running.is_interrupted = _raise_in(thread_id, running, is_there, within_s)
    finally:
        running.lock.release()
    if running.is_interrupted and running.has_left:
        logger.warning("handler %r went on after its time and was interrupted", running.name)
    return running.is_interrupted


def keep_out(running: Running) -> None:
    """Let no interruption of `running` reach what its thread does next.

    Called in that thread when the code is over. The interruption may arrive in here, and leave the
    lock locked; but it was the only one, and nobody waits for the lock of what was interrupted.
    """
    if running.is_given_up:
        running.has_left = True
        with running.lock:  # free when what has not arrived was taken back
            pass


def _raise_in(
    thread_id: int, running: Running, is_there: Callable[[], bool], within_s: float
) -> bool:
    # https://docs.python.org/3/c-api/threads.html#c.PyThreadState_SetAsyncExc
    import ctypes  # seldom needed, and not quick to import

    raise_in = ctypes.pythonapi["PyThreadState_SetAsyncExc"]  # of our own: its types are ours
    raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
    error, nothing = ctypes.py_object(HandlerInterrupted), ctypes.py_object()
    own_id, end, pause_s = threading.get_ident(), time.monotonic() + within_s, _PAUSE_S
    while _is_delicate(thread_id) or not is_there():
        if running.has_left or time.monotonic() > end:
            return False
        time.sleep(_PAUSE_S)
    # From here on no function written in Python is called. Before CPython 3.13 all threads stop to
    # look at every call until the exception is raised, and in 3.11 those that are traced, as by
    # a debugger or for coverage, come no further than that.
    raise_in(thread_id, error)
    while not running.has_left and time.monotonic() < end:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 50 * _PAUSE_S)
    raise_in(thread_id, nothing)
    try:  # what is taken back keeps them looking, and what is raised here ends that
        return bool(raise_in(own_id, error))
    except HandlerInterrupted:
        return True


def _is_delicate(thread_id: int) -> bool:
    """Tell whether an exception would arrive where such a lock may just be taken."""
    frame = sys._current_frames().get(thread_id)
    return frame is not None and frame.f_globals.get("__name__") in _DELICATE


@dataclass(slots=True)
class _Watched:
    running: Running
    due: float  # on the monotonic clock
    was_forced: bool = False
    is_stuck: bool = False

    @property
    def is_over(self) -> bool:
        """What was given up before it began will not begin."""
        return self.running.has_left or self.running.begun_at is None


class Watch:
    """Looks after handlers that were given up until their code is over.

    One that has not ended after `patience_s` is forced to by `force_out`, which returns False if
    that has to wait; one that has not ended after as long again is reported. There is one thread,
    and it ends when there is nothing to watch.
    """

    def __init__(self, force_out: Callable[[Running], bool], *, patience_s: float) -> None:
        self._force_out = force_out
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._watched: deque[_Watched] = deque()  # by `due`
        self._is_on = False

    def add(self, running: Running) -> None:
        """Watch `running`, which was given up just now."""
        with self._lock:
            self._watched.append(_Watched(running, time.monotonic() + self._patience_s))
            if not self._is_on:
                thread = threading.Thread(target=self._run, name="millis-hooks-watch", daemon=True)
                with suppress(RuntimeError):  # no thread to be had now, but perhaps for the next
                    thread.start()
                    self._is_on = True

    def _run(self) -> None:
        # Most end soon: looking late at the first, it finds that the others are over.
        time.sleep(self._patience_s)
        while (watched := self._next()) is not None:
            time.sleep(max(watched.due - time.monotonic(), 0))
            try:
                self._see_to(watched)
            except Exception as error:  # whatever it is: the others are watched all the same
                logger.error("a handler is watched no longer: %s", describe_failure(error))

    def _next(self) -> _Watched | None:
        with self._lock:
            while self._watched:
                watched = self._watched.popleft()
                if watched.is_stuck or not watched.is_over:
                    return watched
            self._is_on = False
            return None

    def _see_to(self, watched: _Watched) -> None:
        if watched.is_over:
            if watched.is_stuck:
                logger.info("handler %r returned late", watched.running.name)
            return
        if not watched.was_forced:
            watched.was_forced = self._force_out(watched.running)
        elif not watched.is_stuck:
            watched.is_stuck = True
            logger.warning(
                "handler %r cannot be stopped; it keeps its place until it or the process ends",
                watched.running.name,
            )
        watched.due = time.monotonic() + self._patience_s
        self._watched.append(watched)

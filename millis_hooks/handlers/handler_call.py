"""A handler at work, and how it ended.

The last resort for handlers that were given up and go on: an exception raised in their thread.

What it interrupts is the code of one handler, never what the thread does next. Code that is inside
a call into C, waiting for a socket say, is not reached before that call returns.

The threads handlers run in: one with an event loop for the async ones, several for the others.

All are daemons, and go on whatever a handler raises in them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

from ..exceptions import HandlerError
from ..masking.error_report import describe_failure

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

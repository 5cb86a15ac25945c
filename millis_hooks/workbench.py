"""Where the team's code runs: on a thread and an event loop of its own.

A handler that blocks, loops or never returns holds up other handlers at most, never the serving
loop: acknowledgements, pages and fallbacks go on. Async handlers run on the workbench's loop, the
others in daemon threads, which cannot keep the process from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

from .exceptions import HandlerError, HandlerTimeoutError
from .failures import describe_failure
from .routing import Event, Handler

logger = logging.getLogger("millis_hooks.workbench")

#: A function that makes the resources handlers share; what it yields is `call.state`.
Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]

#: Calls that may wait for a blocked loop or for a free thread; more fail at once.
MAX_WAITING = 1000


class _NotWanted:
    """Stands for the answer of a handler whose `when` did not want the call."""


NOT_WANTED = _NotWanted()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a handler ended: with `value`, or with `error`."""

    value: object = None
    error: BaseException | None = None
    duration_ms: float = 0.0


#: Told how the handler ended, on whichever thread that happens.
Done: TypeAlias = Callable[[Finished], None]


class Running:
    """A handler at work. Exactly one `Finished` is delivered, whoever comes first."""

    __slots__ = ("_done", "_lock", "finished", "started", "task")

    def __init__(self, done: Done) -> None:
        self._done: Done | None = done
        self._lock = threading.Lock()
        self.started = time.perf_counter()
        self.task: asyncio.Task[None] | None = None
        self.finished = Finished()

    def begin(self) -> bool:
        """Start the clock; False if nobody waits any more."""
        self.started = time.perf_counter()
        return self._done is not None

    def finish(self, value: object = None, error: BaseException | None = None) -> None:
        with self._lock:
            done, self._done = self._done, None
            if done is None:
                return
            duration_ms = (time.perf_counter() - self.started) * 1000
            self.finished = Finished(value, error, duration_ms)
        done(self.finished)


class Workbench:
    """Runs handlers. `isolated=False` runs the async ones on the loop that calls `start`."""

    def __init__(
        self, lifespan: Lifespan | None = None, *, isolated: bool = True, threads: int = 32
    ) -> None:
        self.state: Any = None
        self._lifespan = lifespan
        self._isolated = isolated
        self._threads = _Threads(threads)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resources = AsyncExitStack()
        self._waiting = 0

    async def start(self) -> None:
        """Start the loop and enter `lifespan`; what that raises is raised here."""
        serving = asyncio.get_running_loop()
        self._loop = _start_loop() if self._isolated else serving
        self._outward = Courier(serving, self._loop)
        self._homeward = Courier(self._loop, serving)
        try:
            await self._on_loop(self._enter(), self._loop)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Leave `lifespan` and end the loop, waiting at most `grace_s` for code that hangs."""
        loop = self._loop
        if loop is None:
            return
        try:
            await asyncio.wait_for(self._on_loop(self._resources.aclose(), loop), grace_s)
        except TimeoutError:
            logger.warning("the lifespan's exit took over %s s and was given up", grace_s)
        except Exception as error:  # what is stopped after us must still be
            logger.error("the lifespan's exit failed\n%s", describe_failure(error).traceback)
        if self._isolated:
            loop.call_soon_threadsafe(loop.stop)
        self._loop = None

    def ask(self, handler: Handler, call: Event, *, timeout_s: float) -> asyncio.Future[Finished]:
        """Run `handler` for the serving loop; the future ends in time whatever the handler does."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Finished] = loop.create_future()
        running = self.run(handler, call, partial(self._way_to(loop).send, _resolve, end))
        timer = loop.call_later(timeout_s, self._end_late, end, running, timeout_s)
        end.add_done_callback(partial(_cancel, timer))
        return end

    def _way_to(self, loop: asyncio.AbstractEventLoop) -> Courier:
        # Test clients ask from a loop per request.
        return self._homeward if loop is self._homeward.target else Courier(loop, loop)

    def _end_late(self, end: asyncio.Future[Finished], running: Running, timeout_s: float) -> None:
        self.give_up(running, timeout_s)
        # An answer given in time may be held up on its way by a handler that blocks the loop.
        _resolve(end, running.finished)

    def run(self, handler: Handler, call: Event, done: Done) -> Running:
        """Run `handler` on `call` and tell `done` how it ended."""
        running = Running(done)
        if self._loop is None:
            running.finish(error=HandlerError("The workbench is not running."))
        elif not handler.is_async:
            self._threads.put(running, partial(self._call_and_wait, handler, call))
        elif self._waiting >= MAX_WAITING:
            running.finish(error=HandlerError("The handlers' event loop is blocked."))
        else:
            self._waiting += 1
            self._outward.send(self._begin, running, handler, call)
        return running

    def give_up(self, running: Running, timeout_s: float) -> None:
        """Deliver a `HandlerTimeoutError` and cancel the handler where that is possible."""
        running.finish(error=HandlerTimeoutError(f"took over {timeout_s:g} s"))
        if self._loop is not None and running.task is not None:
            self._loop.call_soon_threadsafe(running.task.cancel)

    def _begin(self, running: Running, handler: Handler, call: Event) -> None:
        self._waiting -= 1
        if running.begin() and self._loop is not None:
            running.task = self._loop.create_task(self._await(running, handler, call))

    async def _await(self, running: Running, handler: Handler, call: Event) -> None:
        try:
            value = self._call(handler, call)
            running.finish(value if value is NOT_WANTED else await value)
        except BaseException as error:  # also SystemExit: it must not end the loop
            running.finish(error=error)

    def _call(self, handler: Handler, call: Event) -> Any:
        call = handler.prepare(call, self.state)
        if handler.when is not None and not handler.when(call):
            return NOT_WANTED
        return handler.function(call)

    def _call_and_wait(self, handler: Handler, call: Event) -> Any:
        value = self._call(handler, call)
        if inspect.iscoroutine(value) and self._loop is not None:
            # A plain function around an async one, as many decorators make: it still has to run.
            return asyncio.run_coroutine_threadsafe(value, self._loop).result()
        return value

    async def _enter(self) -> None:
        if self._lifespan is not None:
            self.state = await self._resources.enter_async_context(self._lifespan())

    async def _on_loop(
        self, work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop
    ) -> None:
        if self._isolated:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
        else:
            await work


class Courier:
    """Brings callbacks from one loop to another, those of one turn together.

    Waking a thread costs several times what a callback does. Other threads may send too; their
    callbacks go alone.
    """

    def __init__(
        self, origin: asyncio.AbstractEventLoop, target: asyncio.AbstractEventLoop
    ) -> None:
        self._origin = origin
        self.target = target
        self._bag: list[Callable[[], object]] = []

    def send(self, callback: Callable[..., object], *args: object) -> None:
        """Have `callback` called on the target's thread, soon."""
        if _running_loop() is not self._origin:
            self._hand_over(partial(callback, *args))
            return
        self._bag.append(partial(callback, *args))
        if len(self._bag) == 1:
            self._origin.call_soon(self._empty_bag)

    def _empty_bag(self) -> None:
        bag, self._bag = self._bag, []
        self._hand_over(partial(_call_all, bag))

    def _hand_over(self, callback: Callable[[], object]) -> None:
        # A handler may come back after the loop it was asked from has ended.
        with suppress(RuntimeError):
            self.target.call_soon_threadsafe(callback)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _call_all(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()


def _resolve(end: asyncio.Future[Finished], finished: Finished) -> None:
    if not end.done():
        end.set_result(finished)


def _cancel(timer: asyncio.TimerHandle, _end: asyncio.Future[Finished]) -> None:
    timer.cancel()


class _Threads:
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


def _start_loop() -> asyncio.AbstractEventLoop:
    loop = _new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    threading.Thread(target=run, name="millis-hooks-handlers", daemon=True).start()
    return loop


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()

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
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

from .courier import Courier
from .exceptions import HandlerError, HandlerTimeoutError
from .failures import describe_failure
from .handler_threads import HandlerThreads
from .routing import Event, Handler
from .running import MAX_WAITING, NOT_WANTED, Done, Finished, Running

logger = logging.getLogger("millis_hooks.workbench")

#: A function that makes the resources handlers share; what it yields is `call.state`.
Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Workbench:
    """Runs handlers. `isolated=False` runs the async ones on the loop that calls `start`."""

    def __init__(
        self, lifespan: Lifespan | None = None, *, isolated: bool = True, threads: int = 32
    ) -> None:
        self.state: Any = None
        self._lifespan = lifespan
        self._isolated = isolated
        self._threads = HandlerThreads(threads)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the loop and enter `lifespan`; what that raises is raised here."""
        serving = asyncio.get_running_loop()
        self._loop = _start_loop() if self._isolated else serving
        self._outward = Courier(serving, self._loop)
        self._homeward = Courier(self._loop, serving)
        entered: Future[None] = Future()
        self._life = asyncio.run_coroutine_threadsafe(self._live(entered), self._loop)
        try:
            await asyncio.wrap_future(entered)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Cancel the handlers at work, leave `lifespan` and end the loop.

        Waits at most `grace_s` for code that hangs.
        """
        loop = self._loop
        if loop is None:
            return
        loop.call_soon_threadsafe(self._leave)
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._life), grace_s)
        except TimeoutError:
            logger.warning("the lifespan's exit took over %s s and was given up", grace_s)
        except Exception as error:  # what is stopped after us must still be
            logger.error("the lifespan's exit failed\n%s", describe_failure(error).traceback)
        if self._isolated:
            loop.call_soon_threadsafe(loop.stop)
        self._loop = None

    async def ask(self, handler: Handler, call: Event, *, timeout_s: float) -> Finished:
        """Run `handler` for the serving loop; return in time whatever the handler does."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Finished] = loop.create_future()
        running = self.run(handler, call, partial(self._way_to(loop).send, _resolve, end))
        timer = loop.call_later(timeout_s, self._end_late, end, running, timeout_s)
        try:
            return await end
        finally:
            timer.cancel()

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
            running.task = task = self._loop.create_task(self._await(running, handler, call))
            self._tasks.add(task)

    async def _await(self, running: Running, handler: Handler, call: Event) -> None:
        try:
            value = self._call(handler, call)
            running.finish(value if value is NOT_WANTED else await value)
        except BaseException as error:  # also SystemExit: it must not end the loop
            running.finish(error=error)
        finally:
            self._tasks.discard(running.task)

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

    async def _live(self, entered: Future[None]) -> None:
        """Hold `lifespan` open, in one task from enter to exit as task groups ask for."""
        self._leaving = asyncio.Event()
        try:
            async with self._lifespan() if self._lifespan else nullcontext() as self.state:
                entered.set_result(None)
                await self._leaving.wait()
                if self._tasks:  # what they share must outlive them
                    await asyncio.wait(self._tasks)
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._leaving.set()


def _resolve(end: asyncio.Future[Finished], finished: Finished) -> None:
    if not end.done():
        end.set_result(finished)


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

"""The executor: runs the team's handlers on a thread and an event loop of their own.

A handler that blocks, loops or never returns holds up other handlers at most, never the serving
loop: acknowledgements, pages and fallbacks continue. Async handlers run on the executor's loop, the
others in daemon threads, which cannot keep the process from ending. A call that continues after it
was given up is interrupted, and reported if that does not end it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from ..exceptions import HandlerError, HandlerTimeoutError
from ..masking.error_report import describe_failure
from ..protocol.functions import FunctionRequest
from ..protocol.memory import Recall
from ..protocol.prefetch import PrefetchRequest
from .handler_call import (
    ANSWERING,
    MAX_WAITING,
    NOT_WANTED,
    NOTHING_AROUND,
    Around,
    Done,
    Event,
    Handler,
    HandlerCall,
    HandlerInterrupted,
    HandlerResult,
    HandlerThreads,
    Left,
    Read,
    interrupt,
    may_hold_lock_of_all,
)
from .made_up_calls import Answers, answered_for_this_call, logged, stop_following_threads
from .retries import FailedRun

logger = logging.getLogger("millis_hooks.executor")

_NOT_RUNNING = "The executor is not running."
#: The longest time between two checks of calls that continue after they were given up.
_LOOK_EVERY_S = 1.0

#: What is answered while a call waits.
Answered: TypeAlias = PrefetchRequest[Any, Any] | FunctionRequest[Any]
#: A function that makes the resources handlers share; what it yields is `call.state`.
Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(slots=True)
class _Overtime:
    """A call that continues after it was given up."""

    call: HandlerCall
    since: float  # given up, or interrupted, in seconds of the monotonic clock
    is_interrupted: bool = False
    is_reported: bool = False


class Executor:
    """Runs handlers. `isolated=False` runs the async ones on the loop that calls `start`.

    Handlers that answer Millis and are not async have `threads` threads, the others `runs_threads`
    of their own. A call that was given up is interrupted if it does not end within `patience_s`.
    What handlers of made-up calls send to Millis is answered by `unsent` in a dry run, and else by
    `rehearsed`.
    """

    def __init__(
        self,
        lifespan: Lifespan | None = None,
        *,
        isolated: bool = True,
        threads: int = 32,
        runs_threads: int = 16,
        patience_s: float = 10.0,
        unsent: Answers = logged,
        rehearsed: Answers = logged,
    ) -> None:
        self.state: Any = None
        self._lifespan = lifespan
        self._isolated = isolated
        self._threads = HandlerThreads(threads)
        self._runs_threads = HandlerThreads(runs_threads)
        self._patience_s = patience_s
        self._unsent = unsent
        self._rehearsed = rehearsed
        #: Returns, for an event and the end of its handler's time, what looks up earlier calls.
        self.recall: Callable[[Answered, float], Recall] | None = None
        self._own: _LoopThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._on_loop: set[HandlerCall] = set()
        self._overtime: dict[HandlerCall, _Overtime] = {}
        self._stopped = threading.Event()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that handlers run on, between start and stop."""
        return self._loop

    @property
    def hung_answering(self) -> set[str]:
        """The handlers that answer Millis and get no thread, as their calls do not return."""
        return self._threads.hung()

    @property
    def is_blocked(self) -> bool:
        """Whether a handler that was given up occupies the loop, so that async ones cannot run."""
        return any(call.is_given_up and _occupies_loop(call) for call in [*self._on_loop])

    async def start(self) -> None:
        """Start the loop and enter `lifespan`; what that raises is raised here."""
        self._own = _LoopThread() if self._isolated else None
        self._loop = self._own.loop if self._own is not None else asyncio.get_running_loop()
        self._stopped.clear()
        watch = threading.Thread(target=self._watch, name="millis-hooks-overtime", daemon=True)
        watch.start()
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
        except Exception as error:  # what is stopped after the executor must still be
            logger.error("the lifespan's exit failed\n%s", describe_failure(error).block)
        self._stopped.set()
        if self._own is not None:
            self._own.stop()
        self._loop = None
        self._threads.close()
        self._runs_threads.close()
        stop_following_threads()

    async def run(
        self,
        handler: Handler,
        event: Event,
        *,
        timeout_s: float,
        around: Around = NOTHING_AROUND,
        read: Read | None = None,
    ) -> HandlerResult:
        """Run `handler` and return its result, in time whatever the handler does.

        The result is what `read` makes of the returned value, where the handler runs.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[HandlerResult] = loop.create_future()
        if self.recall is not None and isinstance(event, PrefetchRequest | FunctionRequest):
            event._recall = self.recall(event, time.monotonic() + timeout_s)
        done = partial(_call_soon, loop, _resolve, result)
        call = self.submit(handler, event, done, around=around, read=read)
        timer = loop.call_later(timeout_s, self._end_late, result, call, timeout_s)
        try:
            return await result
        finally:
            timer.cancel()

    def _end_late(
        self, result: asyncio.Future[HandlerResult], call: HandlerCall, timeout_s: float
    ) -> None:
        self.give_up(call, timeout_s)
        # A result delivered in time may still be on its way to this loop.
        _resolve(result, call.result)

    def submit(
        self,
        handler: Handler,
        event: Event,
        done: Done,
        left: Left | None = None,
        *,
        around: Around = NOTHING_AROUND,
        read: Read | None = None,
    ) -> HandlerCall:
        """Run `handler` within `around`; call `done` with its result and then `left`.

        Each is called once, on any thread: `left` when the handler's code is over, which may be
        long after `done` if the call was given up.
        """
        call = HandlerCall(handler.name, done, left, around, read)
        if self._loop is None:
            call.refuse(HandlerError(_NOT_RUNNING))
        elif not handler.is_async:
            threads = self._threads if handler.hook in ANSWERING else self._runs_threads
            threads.put(call, partial(self._call_and_wait, call, handler, event))
        elif self._waiting >= MAX_WAITING:
            call.refuse(HandlerError("The handlers' event loop is blocked."))
        else:
            self._waiting += 1
            _call_soon(self._loop, self._begin, call, handler, event)
        return call

    def give_up(self, call: HandlerCall, timeout_s: float) -> None:
        """Deliver a `HandlerTimeoutError`, and stop the handler if possible."""
        if call.give_up(HandlerTimeoutError(f"took over {timeout_s:g} s")):
            _cancel_soon(call)
            for threads in (self._threads, self._runs_threads):
                threads.abandon(call)
            if call.begun_at is not None:  # else it will not begin
                self._overtime[call] = _Overtime(call, time.monotonic())

    def _begin(self, call: HandlerCall, handler: Handler, event: Event) -> None:
        self._waiting -= 1
        if self._loop is None or self._leaving.is_set():
            call.refuse(HandlerError(_NOT_RUNNING))
            return
        call.task = self._loop.create_task(self._await(call, handler, event))
        self._on_loop.add(call)

    async def _await(self, call: HandlerCall, handler: Handler, event: Event) -> None:
        with suppress(HandlerInterrupted):  # it may arrive when the handler has just ended
            if call.begin():
                await self._finish(call, handler, event)
            call.seal()
        self._on_loop.discard(call)
        call.leave()

    async def _finish(self, call: HandlerCall, handler: Handler, event: Event) -> None:
        try:
            with call.around, answered_for_this_call(self._answers_for(event)):
                value = self._call(handler, event)
                if value is not NOT_WANTED:
                    value = await value
                    value = value if call.read is None else call.read(value)
        except BaseException as error:  # also SystemExit: it must not end the loop
            call.finish(error=error)
        else:
            call.finish(value)

    def _answers_for(self, event: Event) -> Answers | None:
        call = event.call if isinstance(event, FailedRun) else event
        if not call.is_made_up:
            return None
        return self._unsent if call.dry_run else self._rehearsed

    def _call(self, handler: Handler, event: Event) -> Any:
        event = handler.prepare(event, self.state)
        if handler.when is not None and not handler.when(event):
            return NOT_WANTED
        return handler.call(event)

    def _call_and_wait(self, call: HandlerCall, handler: Handler, event: Event) -> Any:
        with call.around, answered_for_this_call(self._answers_for(event)):
            value = self._call(handler, event)
            if inspect.iscoroutine(value) and self._loop is not None:
                # A plain function around an async one, as many decorators make: await that too.
                held = self._hold(call, value)
                value = asyncio.run_coroutine_threadsafe(held, self._loop).result()
            return value if value is NOT_WANTED or call.read is None else call.read(value)

    async def _hold(self, call: HandlerCall, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await `coroutine` on the loop, for a handler in a thread."""
        call.task = asyncio.current_task()
        self._on_loop.add(call)
        try:
            if call.is_given_up or self._leaving.is_set():
                coroutine.close()
                raise asyncio.CancelledError
            return await coroutine
        finally:
            self._on_loop.discard(call)

    async def _live(self, entered: Future[None]) -> None:
        """Hold `lifespan` open, in one task from enter to exit as task groups ask for."""
        self._leaving = asyncio.Event()
        try:
            async with self._lifespan() if self._lifespan else nullcontext() as self.state:
                entered.set_result(None)
                await self._leaving.wait()
                if tasks := [call.task for call in self._on_loop if call.task]:
                    await asyncio.wait(tasks)  # what they share must outlive them
        except BaseException as error:
            if entered.done():
                raise
            if isinstance(error, SystemExit):  # as such it would end the loop, without a reason
                error = HandlerError(f"`lifespan` called sys.exit: {error.code}")
            entered.set_exception(error)

    def _leave(self) -> None:
        for call in self._on_loop:
            if call.begun_at is None:
                call.give_up(HandlerError(_NOT_RUNNING))
            _cancel(call)
        self._leaving.set()

    def _watch(self) -> None:
        is_stopped = False
        while not is_stopped:
            is_stopped = self._stopped.wait(min(self._patience_s, _LOOK_EVERY_S))
            for overtime in list(self._overtime.values()):
                try:
                    self._look_at(overtime)
                except Exception as error:  # the thread must live
                    logger.error(
                        "a handler's time limit is no longer watched: %s", describe_failure(error)
                    )
                    del self._overtime[overtime.call]

    def _look_at(self, overtime: _Overtime) -> None:
        """Interrupt the call once `patience_s` has passed, and report it after as long again."""
        call = overtime.call
        is_due = time.monotonic() - overtime.since >= self._patience_s
        if call.has_left:
            del self._overtime[call]
            if overtime.is_reported:
                logger.info("handler %r returned late", call.name)
        elif is_due and not overtime.is_interrupted:
            overtime.is_interrupted = self._interrupt(call)
            overtime.since = time.monotonic()
        elif is_due and not overtime.is_reported:
            overtime.is_reported = True
            logger.warning(
                "handler %r cannot be stopped; it keeps its place until it or the process ends",
                call.name,
            )

    def _interrupt(self, call: HandlerCall) -> bool:
        """Interrupt or cancel a call; False if that is to be tried again, as now it is not safe."""
        if call.task is not None and not _occupies_loop(call):
            _cancel_soon(call)  # it may have swallowed the first cancellation
            return not any(_occupies_loop(other) for other in [*self._on_loop])
        on_own_loop = self._own.thread_id if self._own is not None else None
        thread_id = call.thread_id if call.task is None else on_own_loop
        if thread_id is None:
            return True
        if may_hold_lock_of_all(thread_id):
            return False
        interrupt(call, thread_id)
        if call.is_over:
            logger.warning("handler %r exceeded its time limit and was interrupted", call.name)
        return True


class _LoopThread:
    """A thread with an event loop. What a task that is not awaited raises does not end it."""

    def __init__(self) -> None:
        self.loop = _new_event_loop()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="millis-hooks-handlers", daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    def stop(self) -> None:
        """End the loop and its thread, as soon as the code in it returns."""
        self._is_stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._is_stopping:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt, HandlerInterrupted) as error:
                block = describe_failure(error).block
                logger.error("the handlers' loop continues after\n%s", block)
        self.loop.close()


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _occupies_loop(call: HandlerCall) -> bool:
    """Tell whether the loop's thread is in the code of this call; handlers take turns on it."""
    return call.task is not None and asyncio.current_task(call.task.get_loop()) is call.task


def _call_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any
) -> None:
    with suppress(RuntimeError):  # a handler may return after the loop was closed
        loop.call_soon_threadsafe(function, *args)


def _cancel_soon(call: HandlerCall) -> None:
    """Cancel the task of a call, if it has one, from any thread."""
    if call.task is not None:
        _call_soon(call.task.get_loop(), _cancel, call)


def _cancel(call: HandlerCall) -> None:
    # One that has not begun finds its result delivered. Cancelled, it could not call `left`.
    if call.task is not None and call.begun_at is not None:
        call.task.cancel()


def _resolve(result: asyncio.Future[HandlerResult], value: HandlerResult) -> None:
    if not result.done():
        result.set_result(value)

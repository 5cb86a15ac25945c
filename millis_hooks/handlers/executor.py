"""Where the team's code runs: on a thread and an event loop of its own.

A handler that blocks, loops or never returns holds up other handlers at most, never the serving
loop: acknowledgements, pages and fallbacks go on. Async handlers run on the workbench's loop, the
others in daemon threads, which cannot keep the process from ending. What was given up is stopped
where that is possible.

Brings callbacks from one event loop to another without waking it for each.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any, TypeAlias

from ..exceptions import HandlerError, HandlerTimeoutError
from ..masking.error_report import describe_failure
from .handler_call import (
    MAX_WAITING,
    NOT_WANTED,
    NOTHING_AROUND,
    Around,
    Done,
    Finished,
    HandlerInterrupted,
    HandlerThreads,
    Left,
    LoopThread,
    Running,
    Watch,
    interrupt,
    keep_out,
)
from .made_up_calls import Answers, answered_for_this_call, stop_following_threads
from .routing import Event, Handler

#: Turns of the sending loop that a bag stays open while bags are shared. Turns with nothing to wait
#: for take microseconds, and in a flood each brings more to carry.
TURNS = 3


class Courier:
    """Brings callbacks from one loop to another, in a flood those of a few turns together.

    Waking a thread costs several times what a callback does. Other threads may send too; their
    callbacks go alone.
    """

    def __init__(
        self, origin: asyncio.AbstractEventLoop, target: asyncio.AbstractEventLoop
    ) -> None:
        self._origin = origin
        self.target = target
        self._bag: list[Callable[[], object]] = []
        self._turns = 1

    def send(self, callback: Callable[..., object], *args: object) -> None:
        """Have `callback` called on the target's thread, soon."""
        if _running_loop() is not self._origin:
            self._hand_over(partial(callback, *args))
            return
        self._bag.append(partial(callback, *args))
        if len(self._bag) == 1:
            self._origin.call_soon(self._empty_bag, self._turns)

    def _empty_bag(self, turns: int) -> None:
        if turns > 1:
            self._origin.call_soon(self._empty_bag, turns - 1)
            return
        bag, self._bag = self._bag, []
        self._turns = TURNS if len(bag) > 1 else 1
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


logger = logging.getLogger("millis_hooks.workbench")

_NOT_RUNNING = "The workbench is not running."

#: What an interruption may take to arrive on a busy machine, however little patience there is.
_ARRIVAL_S = 1.0

#: A function that makes the resources handlers share; what it yields is `call.state`.
Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Workbench:
    """Runs handlers. `isolated=False` runs the async ones on the loop that calls `start`.

    Prefetch handlers that are not async have `threads` threads, the others `runs_threads` of their
    own, beside those of calls that do not return. A handler that was given up is interrupted if it
    does not end within `patience_s`. What one asks of Millis is answered by what `answers_for`
    gives for its call, if it gives anything.
    """

    def __init__(
        self,
        lifespan: Lifespan | None = None,
        *,
        isolated: bool = True,
        threads: int = 32,
        runs_threads: int = 16,
        patience_s: float = 10.0,
        answers_for: Callable[[Event], Answers | None] = lambda call: None,
    ) -> None:
        self.state: Any = None
        self._lifespan = lifespan
        self._isolated = isolated
        self._threads = HandlerThreads(threads)
        self._runs_threads = HandlerThreads(runs_threads)
        self._patience_s = patience_s
        self._answers_for = answers_for
        self._watch = Watch(self._force_out, patience_s=patience_s)
        self._own: LoopThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting = 0
        self._at_work: set[Running] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that handlers run on, between start and stop."""
        return self._loop

    @property
    def hung_prefetches(self) -> set[str]:
        """The prefetch handlers that get no thread, because their calls do not return."""
        return self._threads.hung()

    @property
    def is_blocked(self) -> bool:
        """Whether a handler that was given up keeps the loop, so that async ones cannot go on."""
        return any(
            running.is_given_up and running.task is not None and _has_its_thread(running)
            for running in [*self._at_work]
        )

    async def start(self) -> None:
        """Start the loop and enter `lifespan`; what that raises is raised here."""
        serving = asyncio.get_running_loop()
        self._own = LoopThread() if self._isolated else None
        self._loop = self._own.loop if self._own is not None else serving
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
            logger.error("the lifespan's exit failed\n%s", describe_failure(error).block)
        if self._own is not None:
            self._own.stop()
        self._loop = None
        stop_following_threads()

    async def ask(
        self,
        handler: Handler,
        call: Event,
        *,
        timeout_s: float,
        around: Around = NOTHING_AROUND,
    ) -> Finished:
        """Run `handler` for the serving loop; return in time whatever the handler does."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Finished] = loop.create_future()
        done = partial(self._way_to(loop).send, _resolve, end)
        running = self.run(handler, call, done, around=around)
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

    def run(
        self,
        handler: Handler,
        call: Event,
        done: Done,
        left: Left | None = None,
        *,
        around: Around = NOTHING_AROUND,
    ) -> Running:
        """Run `handler` on `call`, tell `done` how it ended and then `left` that its code is over.

        Each is told once, on whichever thread. After `give_up` much may lie between the two. The
        code runs within `around`.
        """
        running = Running(handler.name, done, left, around)
        if self._loop is None:
            running.refuse(HandlerError(_NOT_RUNNING))
        elif not handler.is_async:
            threads = self._threads if handler.hook == "prefetch" else self._runs_threads
            threads.put(running, partial(self._call_and_wait, running, handler, call))
        elif self._waiting >= MAX_WAITING:
            running.refuse(HandlerError("The handlers' event loop is blocked."))
        else:
            self._waiting += 1
            self._outward.send(self._begin, running, handler, call)
        return running

    def give_up(self, running: Running, timeout_s: float) -> None:
        """Deliver a `HandlerTimeoutError`, and stop the handler by all means there are."""
        if running.give_up(HandlerTimeoutError(f"took over {timeout_s:g} s")):
            _cancel_soon(running)
            self._watch.add(running)

    def _begin(self, running: Running, handler: Handler, call: Event) -> None:
        self._waiting -= 1
        if self._loop is None or self._leaving.is_set():
            running.refuse(HandlerError(_NOT_RUNNING))
            return
        running.task = self._loop.create_task(self._await(running, handler, call))
        self._at_work.add(running)

    async def _await(self, running: Running, handler: Handler, call: Event) -> None:
        try:
            if running.begin():
                try:
                    with running.around, answered_for_this_call(self._answers_for(call)):
                        value = self._call(handler, call)
                        value = value if value is NOT_WANTED else await value
                except BaseException as error:  # also SystemExit: it must not end the loop
                    running.finish(error=error)
                else:
                    running.finish(value)
            keep_out(running)
        except HandlerInterrupted:
            pass  # meant for code that had just ended
        self._at_work.discard(running)
        running.leave()

    def _call(self, handler: Handler, call: Event) -> Any:
        call = handler.prepare(call, self.state)
        if handler.when is not None and not handler.when(call):
            return NOT_WANTED
        return handler.function(call)

    def _call_and_wait(self, running: Running, handler: Handler, call: Event) -> Any:
        with running.around, answered_for_this_call(self._answers_for(call)):
            value = self._call(handler, call)
            if inspect.iscoroutine(value) and self._loop is not None:
                # A plain function around an async one, as many decorators make: it has to run, too.
                held = self._hold(running, value)
                return asyncio.run_coroutine_threadsafe(held, self._loop).result()
            return value

    async def _hold(self, running: Running, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Await `coroutine` on the loop, for a handler in a thread."""
        running.task = asyncio.current_task()
        self._at_work.add(running)
        try:
            if running.is_given_up or self._leaving.is_set():
                coroutine.close()
                raise asyncio.CancelledError
            return await coroutine
        finally:
            self._at_work.discard(running)

    async def _live(self, entered: Future[None]) -> None:
        """Hold `lifespan` open, in one task from enter to exit as task groups ask for."""
        self._leaving = asyncio.Event()
        try:
            async with self._lifespan() if self._lifespan else nullcontext() as self.state:
                entered.set_result(None)
                await self._leaving.wait()
                if tasks := [running.task for running in self._at_work if running.task]:
                    await asyncio.wait(tasks)  # what they share must outlive them
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    def _leave(self) -> None:
        for running in self._at_work:
            if running.begun_at is None:
                running.give_up(HandlerError(_NOT_RUNNING))
            _cancel(running)
        self._leaving.set()

    def _force_out(self, running: Running) -> bool:
        """Interrupt `running` where that is possible; False while another handler has its loop."""
        if _has_its_thread(running):
            self._interrupt(running)
            return True
        _cancel_soon(running)  # it may have swallowed the first
        return not any(_has_its_thread(other) for other in [*self._at_work])

    def _interrupt(self, running: Running) -> None:
        own_id = self._own.thread_id if self._own is not None else None
        thread_id = running.thread_id if running.task is None else own_id
        if thread_id is not None:
            is_there = partial(_has_its_thread, running)
            within_s = max(self._patience_s, _ARRIVAL_S)
            work = partial(interrupt, is_there=is_there, within_s=within_s)
            threading.Thread(
                target=work, args=(running, thread_id), name="millis-hooks-interrupt", daemon=True
            ).start()


def _has_its_thread(running: Running) -> bool:
    """Tell whether its thread is in the code of `running`: on a loop, handlers take turns."""
    return running.task is None or asyncio.current_task(running.task.get_loop()) is running.task


def _cancel_soon(running: Running) -> None:
    """Cancel the task of `running`, if it has one, from any thread."""
    if running.task is not None:
        with suppress(RuntimeError):  # the loop may have been closed
            running.task.get_loop().call_soon_threadsafe(_cancel, running)


def _cancel(running: Running) -> None:
    # What has not begun will see that nobody waits. Cancelled, it could not even say that it left.
    if running.task is not None and running.begun_at is not None:
        running.task.cancel()


def _resolve(end: asyncio.Future[Finished], finished: Finished) -> None:
    if not end.done():
        end.set_result(finished)

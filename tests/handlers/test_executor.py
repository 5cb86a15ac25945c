"""The executor by itself; that it delays no answer is tested through the webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from millis_hooks import PrefetchRequest, Router
from millis_hooks.exceptions import HandlerError, HandlerTimeoutError
from millis_hooks.handlers import executor as executor_module
from millis_hooks.handlers import handler_call
from millis_hooks.handlers.executor import Executor, Lifespan
from millis_hooks.handlers.handler_call import (
    NOT_WANTED,
    Handler,
    HandlerCall,
    HandlerResult,
    HandlerThreads,
)
from support.waiting import SOON_S, eventually

T = TypeVar("T")

CALL = PrefetchRequest(session_id="-Ox1")
LONG_S = 30.0
LOOPS = ["uvloop", "asyncio"]


def handler(function: Callable[[Any], Any], **filters: Any) -> Handler:
    router = Router()
    router.on_prefetch(**filters)(function)
    [registered] = router
    return registered


def at_work(
    work: Callable[[Executor], Awaitable[T]], lifespan: Lifespan | None = None, **options: Any
) -> T:
    """Do `work` while a executor runs."""

    async def main() -> T:
        executor = Executor(lifespan, **options)
        await executor.start()
        try:
            return await work(executor)
        finally:
            await executor.stop(grace_s=0.2)

    return asyncio.run(main())


def ask(
    function: Callable[[Any], Any], *, timeout_s: float = LONG_S, **options: Any
) -> HandlerResult:
    async def work(executor: Executor) -> HandlerResult:
        return await executor.run(handler(function), CALL, timeout_s=timeout_s)

    return at_work(work, **options)


class Told:
    """Notes what is told of a handler at work, in the order of telling."""

    def __init__(self) -> None:
        self.notes: list[HandlerResult | str] = []

    def done(self, finished: HandlerResult) -> None:
        self.notes.append(finished)

    def left(self) -> None:
        self.notes.append("left")

    @property
    def finished(self) -> HandlerResult:
        """How the handler ended, once its code is over; that must have been told last, and once."""
        finished, left = eventually(lambda: self.notes if "left" in self.notes else None) or []
        assert isinstance(finished, HandlerResult)
        assert left == "left"
        return finished


def plain(call: PrefetchRequest) -> str:
    return f"plain {call.session_id}"


async def later(call: PrefetchRequest) -> str:
    await asyncio.sleep(0)
    return f"later {call.session_id}"


def raising(error: BaseException) -> Callable[[Any], None]:
    def fail(call: PrefetchRequest) -> None:
        raise error

    return fail


def choose(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workbenches made with this kind of loop."""
    if loop == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(("function", "value"), [(plain, "plain -Ox1"), (later, "later -Ox1")])
def test_a_handler_is_run_and_its_value_delivered(
    function: Callable[[Any], Any], value: str, isolated: bool
) -> None:
    finished = ask(function, isolated=isolated)
    assert (finished.value, finished.error) == (value, None)
    assert finished.duration_ms >= 0


@pytest.mark.parametrize("function", [plain, later])
def test_a_handler_runs_away_from_the_serving_thread(function: Callable[[Any], Any]) -> None:
    threads: list[str] = []

    def remember(call: PrefetchRequest) -> Any:
        threads.append(threading.current_thread().name)
        return function(call)

    ask(remember)
    assert threads[0].startswith("millis-hooks-handler")


def test_threads_of_handlers_end_with_the_executor() -> None:
    threads: list[threading.Thread] = []
    ask(lambda call: threads.append(threading.current_thread()))
    eventually(lambda: not threads[0].is_alive())


def test_on_request_async_handlers_share_the_serving_loop() -> None:
    async def which(call: PrefetchRequest) -> threading.Thread:
        return threading.current_thread()

    assert ask(which, isolated=False).value is threading.current_thread()


ENDINGS = [
    ValueError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    StopIteration(),
    GeneratorExit(),
    ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
    BaseExceptionGroup("worse", [SystemExit(1)]),
]


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("isolated", [True, False])
def test_whatever_a_handler_raises_ends_that_handler_alone(
    error: BaseException, isolated: bool
) -> None:
    async def fail_later(call: PrefetchRequest) -> None:
        raise error

    async def work(executor: Executor) -> list[HandlerResult]:
        functions: list[Callable[[Any], Any]] = [raising(error), fail_later, plain, later]
        ends = [executor.run(handler(each), CALL, timeout_s=LONG_S) for each in functions]
        return await asyncio.gather(*ends)

    plainly, lately, *others = at_work(work, isolated=isolated, threads=1)
    assert plainly.error is error
    assert lately.error is error or isinstance(error, StopIteration)
    assert [finished.value for finished in others] == ["plain -Ox1", "later -Ox1"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_of_a_handler_s_own_does_not_end_the_loop(
    error: BaseException,
    loop: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choose(loop, monkeypatch)

    async def fail() -> None:
        raise error

    async def leave_a_task(call: PrefetchRequest) -> None:
        with contextlib.suppress(BaseException):
            await asyncio.create_task(fail())

    async def work(executor: Executor) -> list[HandlerResult]:
        functions = [later, leave_a_task, later, later]
        ends = [executor.run(handler(each), CALL, timeout_s=LONG_S) for each in functions]
        return await asyncio.gather(*ends, executor.run(handler(later), CALL, timeout_s=LONG_S))

    assert [finished.error for finished in at_work(work)] == [None] * 5
    assert "the handlers' loop continues after" in caplog.text


@pytest.mark.parametrize("function", [plain, later])
@pytest.mark.parametrize("hook", ["prefetch", "end_of_call"])
def test_that_the_code_is_over_is_reported_once_and_last(
    function: Callable[[Any], Any], hook: Any
) -> None:
    told = Told()

    async def work(executor: Executor) -> bool:
        asked = replace(handler(function), hook=hook)
        running = executor.submit(asked, CALL, told.done, told.left)
        return await asyncio.to_thread(lambda: bool(told.finished.value) and running.has_left)

    assert at_work(work)


def test_that_the_code_is_over_is_reported_after_a_failure_too() -> None:
    told = [Told() for _ in ENDINGS]

    async def work(executor: Executor) -> None:
        for each, error in zip(told, ENDINGS, strict=True):
            executor.submit(handler(raising(error)), CALL, each.done, each.left)
        await asyncio.to_thread(lambda: [each.finished for each in told])

    at_work(work)
    assert [each.finished.error for each in told] == ENDINGS


def test_that_the_code_is_over_is_not_told_before_how_it_ended(released: threading.Event) -> None:
    telling, told = threading.Event(), Told()

    def tell_slowly(finished: HandlerResult) -> None:
        telling.set()
        released.wait()
        told.done(finished)

    running = HandlerCall("slow to hear", tell_slowly, told.left)
    giving_up = threading.Thread(target=running.give_up, args=(HandlerTimeoutError(),))
    giving_up.start()
    assert telling.wait(LONG_S)
    HandlerThreads(1).put(running, lambda: "late")
    assert not running.has_left
    released.set()
    assert isinstance(told.finished.error, HandlerTimeoutError)
    giving_up.join()


def test_a_handler_begins_when_its_turn_comes(released: threading.Event) -> None:
    def has_begun(running: HandlerCall) -> bool:
        return running.begun_at is not None and running.begun_at <= time.monotonic()

    async def work(executor: Executor) -> None:
        hang = handler(lambda call: released.wait())
        first, second = (executor.submit(hang, CALL, lambda finished: None) for _ in range(2))
        await asyncio.to_thread(eventually, lambda: has_begun(first))
        assert second.begun_at is None
        released.set()
        await asyncio.to_thread(eventually, lambda: has_begun(second))

    at_work(work, threads=1)


def test_a_handler_that_waits_for_a_blocked_loop_has_not_begun(released: threading.Event) -> None:
    blocking, told = threading.Event(), Told()

    async def block(call: PrefetchRequest) -> None:
        blocking.set()
        released.wait()

    async def work(executor: Executor) -> None:
        executor.submit(handler(block), CALL, lambda finished: None)
        assert await asyncio.to_thread(blocking.wait, LONG_S)
        waiting = executor.submit(handler(later), CALL, told.done, told.left)
        await asyncio.sleep(0)
        executor.give_up(waiting, 1.0)
        assert waiting.begun_at is None
        assert not waiting.has_left
        released.set()
        await asyncio.to_thread(lambda: told.finished)

    at_work(work)
    assert isinstance(told.finished.error, HandlerTimeoutError)


def test_slow_ends_of_calls_do_not_take_the_threads_of_prefetches(
    released: threading.Event,
) -> None:
    async def work(executor: Executor) -> HandlerResult:
        slow = replace(handler(lambda call: released.wait()), hook="end_of_call")
        for _ in range(3):
            executor.submit(slow, CALL, lambda finished: None)
        return await executor.run(handler(plain), CALL, timeout_s=LONG_S)

    assert at_work(work, threads=1, runs_threads=1).value == "plain -Ox1"


def test_only_what_has_not_ended_is_given_up() -> None:
    told = Told()
    running = HandlerCall("quick", told.done, told.left)
    running.finish("in time")
    assert not running.give_up(HandlerTimeoutError())
    running.leave()
    assert told.finished.value == "in time"


def test_nothing_is_given_up_twice() -> None:
    told = Told()
    running = HandlerCall("slow", told.done, told.left)
    assert [running.give_up(HandlerTimeoutError()) for _ in range(2)] == [True, False]
    running.finish("late")
    assert len(told.notes) == 1


def test_a_handler_that_never_returns_is_given_up(released: threading.Event) -> None:
    finished = ask(lambda call: released.wait(), timeout_s=0.02)
    assert isinstance(finished.error, HandlerTimeoutError)
    assert str(finished.error) == "took over 0.02 s"


def test_a_handler_that_blocks_its_loop_is_given_up(released: threading.Event) -> None:
    async def block(call: PrefetchRequest) -> None:
        released.wait()

    async def work(executor: Executor) -> list[HandlerResult]:
        ends = [executor.run(handler(each), CALL, timeout_s=0.02) for each in (block, later)]
        finished = await asyncio.gather(*ends)
        released.set()
        return finished

    assert [type(each.error) for each in at_work(work)] == [HandlerTimeoutError] * 2


def test_an_answer_held_up_by_a_blocked_loop_arrives_in_time(released: threading.Event) -> None:
    async def prompt(call: PrefetchRequest) -> str:
        return "prompt"

    async def block(call: PrefetchRequest) -> None:
        released.wait()

    async def work(executor: Executor) -> list[HandlerResult]:
        finished = await asyncio.gather(
            executor.run(handler(prompt), CALL, timeout_s=LONG_S),
            executor.run(handler(block), CALL, timeout_s=0.05),
        )
        released.set()
        return [*finished]

    prompted, blocked = at_work(work)
    assert prompted.value == "prompt"
    assert isinstance(blocked.error, HandlerTimeoutError)


def test_an_async_handler_that_is_given_up_is_cancelled() -> None:
    cancelled = threading.Event()

    async def wait(call: PrefetchRequest) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def work(executor: Executor) -> HandlerResult:
        finished = await executor.run(handler(wait), CALL, timeout_s=SOON_S)
        assert await asyncio.to_thread(cancelled.wait, LONG_S)
        return finished

    assert isinstance(at_work(work).error, HandlerTimeoutError)


def test_an_answer_that_comes_late_is_not_delivered(released: threading.Event) -> None:
    delivered: list[HandlerResult] = []
    returned = threading.Event()

    def late(call: PrefetchRequest) -> str:
        released.wait()
        return "late"

    async def work(executor: Executor) -> None:
        running = executor.submit(handler(late), CALL, delivered.append)
        executor.give_up(running, 1.0)
        released.set()
        executor.submit(handler(plain), CALL, lambda finished: returned.set())
        assert await asyncio.to_thread(returned.wait, LONG_S)

    at_work(work, threads=1)
    assert [type(finished.error) for finished in delivered] == [HandlerTimeoutError]


def test_a_handler_whose_time_is_over_before_it_begins_is_not_run(
    released: threading.Event,
) -> None:
    ran: list[PrefetchRequest] = []

    told = Told()

    async def work(executor: Executor) -> None:
        executor.submit(handler(lambda call: released.wait()), CALL, lambda finished: None)
        queued = executor.submit(handler(ran.append), CALL, told.done, told.left)
        executor.give_up(queued, 1.0)
        released.set()
        await executor.run(handler(plain), CALL, timeout_s=LONG_S)

    at_work(work, threads=1)
    assert ran == []
    assert isinstance(told.finished.error, HandlerTimeoutError)


def test_no_handler_waits_behind_another_while_threads_may_be_made() -> None:
    together = threading.Barrier(8)

    def meet(call: PrefetchRequest) -> int:
        return together.wait(LONG_S)

    async def work(executor: Executor) -> list[HandlerResult]:
        rounds: list[HandlerResult] = []
        for _ in range(20):
            ends = [executor.run(handler(meet), CALL, timeout_s=LONG_S) for _ in range(8)]
            rounds += await asyncio.gather(*ends)
        return rounds

    assert all(finished.error is None for finished in at_work(work, threads=8))


def test_when_all_threads_hang_more_work_is_refused_at_once(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_call, "MAX_WAITING", 1)

    async def work(executor: Executor) -> HandlerResult:
        hang = handler(lambda call: released.wait())
        for _ in range(2):
            executor.submit(hang, CALL, lambda finished: None)
        return await executor.run(hang, CALL, timeout_s=LONG_S)

    assert str(at_work(work, threads=1).error) == "All threads for handlers are busy."


def test_a_handler_whose_calls_do_not_return_is_refused_at_once_and_others_continue(
    released: threading.Event,
) -> None:
    async def work(executor: Executor) -> tuple[list[HandlerResult], list[set[str]]]:
        def hang(call: PrefetchRequest) -> None:
            released.wait()

        first = [executor.run(handler(hang), CALL, timeout_s=SOON_S) for _ in range(3)]
        ends = await asyncio.gather(*first)
        hung = [executor.hung_answering]
        ends.append(await executor.run(handler(hang), CALL, timeout_s=LONG_S))
        ends += await asyncio.gather(
            *(executor.run(handler(plain), CALL, timeout_s=LONG_S) for _ in range(3))
        )
        released.set()
        await asyncio.to_thread(eventually, lambda: not executor.hung_answering)
        ends.append(await executor.run(handler(hang), CALL, timeout_s=LONG_S))
        return ends, hung

    ends, hung = at_work(work, threads=3)
    assert hung == [{"hang"}]
    assert str(ends[3].error) == "All its places are taken by calls that do not return."
    assert [end.value for end in ends[4:]] == ["plain -Ox1"] * 3 + [None]
    assert ends[-1].error is None


def test_a_handler_that_was_given_up_and_keeps_the_loop_blocks_it(
    released: threading.Event,
) -> None:
    async def block(call: PrefetchRequest) -> None:
        released.wait()

    async def work(executor: Executor) -> list[bool]:
        seen = [executor.is_blocked]
        await executor.run(handler(block), CALL, timeout_s=SOON_S)
        seen.append(executor.is_blocked)
        released.set()
        await executor.run(handler(later), CALL, timeout_s=LONG_S)
        return [*seen, executor.is_blocked]

    assert at_work(work) == [False, True, False]


def test_when_the_loop_hangs_more_work_is_refused_at_once(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "MAX_WAITING", 1)
    blocking = threading.Event()

    async def block(call: PrefetchRequest) -> None:
        blocking.set()
        released.wait()

    async def work(executor: Executor) -> HandlerResult:
        executor.submit(handler(block), CALL, lambda finished: None)
        assert await asyncio.to_thread(blocking.wait, LONG_S)
        executor.submit(handler(later), CALL, lambda finished: None)
        finished = await executor.run(handler(later), CALL, timeout_s=LONG_S)
        released.set()
        return finished

    assert str(at_work(work).error) == "The handlers' event loop is blocked."


def test_a_handler_that_does_not_want_the_call_says_so() -> None:
    async def work(executor: Executor) -> list[object]:
        picky = [handler(each, when=lambda call: call.from_phone) for each in (plain, later)]
        return [(await executor.run(each, CALL, timeout_s=LONG_S)).value for each in picky]

    assert at_work(work) == [NOT_WANTED, NOT_WANTED]


def test_a_filter_that_fails_is_the_handler_s_failure() -> None:
    async def work(executor: Executor) -> HandlerResult:
        picky = handler(later, when=lambda call: call.metadata["plan"] == "gold")
        return await executor.run(picky, CALL, timeout_s=LONG_S)

    assert isinstance(at_work(work).error, KeyError)


def test_a_plain_function_around_an_async_one_is_awaited() -> None:
    @functools.wraps(later)
    def wrapper(call: PrefetchRequest) -> Any:
        return later(call)

    assert ask(wrapper).value == "later -Ox1"


def test_a_plain_function_around_an_async_one_is_cancelled_with_it() -> None:
    began, told = threading.Event(), Told()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    async def work(executor: Executor) -> None:
        running = executor.submit(handler(lambda call: hang()), CALL, told.done, told.left)
        assert await asyncio.to_thread(began.wait, LONG_S)
        executor.give_up(running, 1.0)
        await asyncio.to_thread(lambda: told.finished)

    at_work(work, patience_s=60.0)
    assert isinstance(told.finished.error, HandlerTimeoutError)


def test_a_plain_function_given_up_before_its_async_part_begins_does_not_run_it(
    released: threading.Event,
) -> None:
    entered, ran, told = threading.Event(), threading.Event(), Told()

    async def run() -> None:
        ran.set()

    def wrapper(call: PrefetchRequest) -> Any:
        entered.set()
        released.wait()
        return run()

    async def work(executor: Executor) -> None:
        running = executor.submit(handler(wrapper), CALL, told.done, told.left)
        assert await asyncio.to_thread(entered.wait, LONG_S)
        executor.give_up(running, 1.0)
        released.set()
        await asyncio.to_thread(lambda: told.finished)

    at_work(work, patience_s=60.0)
    assert not ran.is_set()


def test_the_standard_loop_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    choose("asyncio", monkeypatch)

    async def loop_of(call: PrefetchRequest) -> str:
        return type(asyncio.get_running_loop()).__module__

    assert str(ask(loop_of).value).startswith("asyncio.")


def test_an_executor_that_is_not_running_refuses() -> None:
    told = Told()
    Executor().submit(handler(plain), CALL, told.done, told.left)
    assert isinstance(told.finished.error, HandlerError)


def test_an_executor_that_was_not_started_can_be_stopped() -> None:
    asyncio.run(Executor().stop())


@pytest.mark.parametrize("isolated", [True, False])
def test_what_the_lifespan_yields_is_the_state_of_every_call(isolated: bool) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, str]]:
        events.append("entered")
        yield {"crm": "open"}
        events.append("left")

    finished = ask(lambda call: call.state["crm"], lifespan=lifespan, isolated=isolated)
    assert (finished.value, events) == ("open", ["entered", "left"])


def test_a_lifespan_may_hold_a_task_group() -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[asyncio.Task[str]]:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            yield group.create_task(asyncio.sleep(0, "done"))

    async def result(call: PrefetchRequest) -> Any:
        return await call.state

    assert ask(result, lifespan=lifespan).value == "done"


def test_a_handler_at_work_when_the_workbench_stops_is_cancelled() -> None:
    began, cleaned_up = threading.Event(), threading.Event()

    async def hang(call: PrefetchRequest) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    async def work(executor: Executor) -> None:
        executor.submit(handler(hang), CALL, lambda finished: None)
        await asyncio.to_thread(began.wait, LONG_S)

    at_work(work)
    assert cleaned_up.wait(LONG_S)


def test_what_handlers_share_outlives_them() -> None:
    began, events = threading.Event(), []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        events.append("closed")

    async def hang(call: PrefetchRequest) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.gather(*[asyncio.sleep(0) for _ in range(3)])
            events.append("cleaned up")

    async def work(executor: Executor) -> None:
        executor.submit(handler(hang), CALL, lambda finished: None)
        await asyncio.to_thread(began.wait, LONG_S)

    at_work(work, lifespan)
    assert events == ["cleaned up", "closed"]


def test_what_waits_for_its_turn_when_the_workbench_stops_is_not_begun(
    released: threading.Event,
) -> None:
    waiting, too_late, blocking = Told(), Told(), threading.Event()

    async def block(call: PrefetchRequest) -> None:
        blocking.set()
        released.wait()

    async def work(executor: Executor) -> None:
        executor.submit(handler(block), CALL, lambda finished: None)
        assert await asyncio.to_thread(blocking.wait, LONG_S)
        executor.submit(handler(later), CALL, waiting.done, waiting.left)
        stopping = asyncio.create_task(executor.stop(grace_s=LONG_S))
        await asyncio.sleep(0)
        executor.submit(handler(later), CALL, too_late.done, too_late.left)
        await asyncio.sleep(0)
        released.set()
        await stopping

    at_work(work)
    errors = [str(told.finished.error) for told in (waiting, too_late)]
    assert errors == ["The executor is not running."] * 2


def test_what_a_lifespan_raises_at_the_start_is_raised_and_leaves_no_thread() -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise ConnectionError("no CRM")
        yield

    before = set(threading.enumerate())
    with pytest.raises(ConnectionError, match="no CRM"):
        ask(plain, lifespan=lifespan)
    assert eventually(lambda: before >= set(threading.enumerate()))


def test_what_a_lifespan_raises_at_the_end_is_logged_without_its_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        raise ConnectionError("password=hunter2-hunter2 for +14155550134")

    assert ask(plain, lifespan=lifespan).value == "plain -Ox1"
    assert "the lifespan's exit failed" in caplog.text
    assert "hunter2" not in caplog.text
    assert "4155550134" not in caplog.text


def test_a_lifespan_that_does_not_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING):
        ask(plain, lifespan=lifespan)
    assert "exit took over 0.2 s and was given up" in caplog.text

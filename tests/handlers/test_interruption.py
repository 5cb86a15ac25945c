"""What was given up and goes on is interrupted, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from test_executor import CALL, LONG_S, LOOPS, Told, at_work, choose, handler, later, plain

from millis_hooks import PrefetchRequest
from millis_hooks.exceptions import HandlerError, HandlerTimeoutError
from millis_hooks.handlers.executor import Executor
from millis_hooks.handlers.handler_call import HandlerCall, HandlerThreads, may_hold_lock_of_all
from support.waiting import eventually

SOON_S = 0.01
ENDLESS = sys.maxsize


class Signals:
    """The state of the calls here: handlers say that they are at work, and may wait for an end."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.released = threading.Event()


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.released.set()


@pytest.fixture
def _hasty() -> Iterator[None]:
    """Threads take turns a thousand times as often as they do otherwise."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(interval_s / 1000)
    yield
    sys.setswitchinterval(interval_s)


async def begin(
    executor: Executor, function: Callable[[Any], Any], told: Told, signals: Signals
) -> HandlerCall:
    """Run `function`, and return once it is at work."""
    executor.state = signals
    running = executor.submit(handler(function), CALL, told.done, told.left)
    assert await asyncio.to_thread(signals.began.wait, LONG_S)
    signals.began.clear()
    return running


def give_up(function: Callable[[Any], Any], signals: Signals, **options: Any) -> None:
    """Give `function` up while it is at work, see its code end and the executor work on."""

    async def work(executor: Executor) -> None:
        told = Told()
        executor.give_up(await begin(executor, function, told, signals), 1.0)
        finished = await asyncio.to_thread(lambda: told.finished)
        assert isinstance(finished.error, HandlerTimeoutError)
        for other in (plain, later):
            finished = await executor.run(handler(other), CALL, timeout_s=LONG_S)
            assert finished.value == f"{other.__name__} -Ox1"

    at_work(work, threads=1, **({"patience_s": SOON_S} | options))


def loop_for_ever(call: PrefetchRequest) -> None:
    call.state.began.set()
    while True:
        with suppress(Exception):
            pass


async def loop_for_ever_later(call: PrefetchRequest) -> None:
    loop_for_ever(call)


def loop_for_ever_elsewhere(call: PrefetchRequest) -> Any:
    return loop_for_ever_later(call)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("function", [loop_for_ever, loop_for_ever_later, loop_for_ever_elsewhere])
def test_an_endless_loop_is_interrupted(
    function: Callable[[Any], Any],
    loop: str,
    signals: Signals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choose(loop, monkeypatch)
    give_up(function, signals)
    assert eventually(
        lambda: f"'{function.__name__}' exceeded its time limit and was interrupted" in caplog.text
    )
    assert "the handlers' loop continues" not in caplog.text


@pytest.mark.parametrize("isolated", [True, False])
def test_a_handler_that_swallows_its_cancellation_is_cancelled_again(
    isolated: bool, signals: Signals
) -> None:
    async def stay(call: PrefetchRequest) -> None:
        call.state.began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    give_up(stay, signals, isolated=isolated)


def hang(call: PrefetchRequest) -> None:
    call.state.began.set()
    call.state.released.wait()


async def hang_later(call: PrefetchRequest) -> None:
    hang(call)


async def hang_in_a_task(call: PrefetchRequest) -> None:
    await asyncio.create_task(hang_later(call))


def swallow_all(call: PrefetchRequest) -> None:
    with suppress(BaseException):
        loop_for_ever(call)
    call.state.released.wait()


async def swallow_all_later(call: PrefetchRequest) -> None:
    call.state.began.set()
    while not call.state.released.is_set():
        with suppress(BaseException):
            await asyncio.sleep(SOON_S)


def once_stuck(then: Callable[[], object], caplog: pytest.LogCaptureFixture) -> None:
    """Call `then` once a handler is said to be stuck, on a thread of its own."""

    def wait() -> None:
        eventually(lambda: "cannot be stopped" in caplog.text)
        then()

    threading.Thread(target=wait).start()


@pytest.mark.parametrize(
    "function", [hang, hang_later, hang_in_a_task, swallow_all, swallow_all_later]
)
def test_what_cannot_be_stopped_is_reported_once_and_when_it_returns(
    function: Callable[[Any], Any], signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    once_stuck(signals.released.set, caplog)
    with caplog.at_level(logging.INFO, "millis_hooks"):
        give_up(function, signals)
        eventually(lambda: f"handler '{function.__name__}' returned late" in caplog.text)
    assert caplog.text.count("keeps its place until it or the process ends") == 1


def test_a_loop_that_is_not_ours_is_not_interrupted(
    signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()

    def give_up_from_beside(executor: Executor, running: HandlerCall) -> None:
        assert signals.began.wait(LONG_S)
        executor.give_up(running, 1.0)

    async def work(executor: Executor) -> None:
        executor.state = signals
        running = executor.submit(handler(hang_later), CALL, told.done, told.left)
        threading.Thread(target=give_up_from_beside, args=(executor, running)).start()
        await asyncio.to_thread(lambda: told.finished)

    once_stuck(signals.released.set, caplog)
    at_work(work, isolated=False, patience_s=SOON_S)
    assert "interrupted" not in caplog.text


def test_handlers_waiting_for_a_blocked_loop_are_not_interrupted(
    signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait(call: PrefetchRequest) -> None:
        call.state.began.set()
        await asyncio.Event().wait()

    async def work(executor: Executor) -> None:
        functions: list[Callable[[Any], Any]] = [wait, hang_later, hang]
        waiting, _, hanging = [await begin(executor, each, Told(), signals) for each in functions]
        executor.give_up(waiting, 1.0)
        executor.give_up(hanging, 1.0)
        await asyncio.to_thread(eventually, lambda: "'hang' cannot be stopped" in caplog.text)
        signals.released.set()

    at_work(work, patience_s=SOON_S)
    assert "'wait'" not in caplog.text


def spin(turns: int) -> int:
    for _ in range(turns):
        pass
    return turns


class Quiet(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None: ...


def test_a_thread_may_hold_the_lock_of_the_log(signals: Signals) -> None:
    log, quiet = logging.Logger("apart"), Quiet()
    log.addHandler(quiet)

    def log_until_released() -> None:
        while not signals.released.is_set():
            log.info("again")

    thread = threading.Thread(target=log_until_released, daemon=True)
    assert quiet.lock is not None
    with quiet.lock:
        thread.start()
        eventually(lambda: module_of(thread.ident) == "logging")
        assert may_hold_lock_of_all(thread.ident or 0)
    assert not may_hold_lock_of_all(threading.get_ident())


def module_of(thread_id: int | None) -> object:
    """Return the module whose code the thread is in."""
    frame = sys._current_frames().get(thread_id or 0)
    return frame.f_globals.get("__name__") if frame is not None else None


class Race:
    """A handler whose last moments are to meet its interruption.

    It waits for locks written in C: those written in Python may stay locked when interrupted.
    """

    def __init__(self, turns: int) -> None:
        self.told = Told()
        self.bystander = Told()
        self._turns = turns
        self._at_work = threading.Lock()
        self._go = threading.Lock()
        self._at_work.acquire()
        self._go.acquire()

    def run(self, call: object = None) -> None:
        sys.settrace(None)  # so do the locks of what measures coverage
        self._at_work.release()
        self._go.acquire()
        spin(self._turns)

    async def run_later(self, call: PrefetchRequest) -> None:
        self.run()

    def start(self, give_up: Callable[[], object]) -> None:
        """Wait until the handler is at work, give it up and let it go on."""
        self._at_work.acquire()
        give_up()
        self._go.release()

    def check(self, value: object) -> None:
        """See that neither the handler nor the one behind it was lost or hit in its place."""
        assert isinstance(self.told.finished.error, HandlerTimeoutError)
        assert self.bystander.finished[:2] == (value, None)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_of_many_handlers_interrupted_on_their_loop_none_is_lost(
    loop: str, count: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose(loop, monkeypatch)
    chance = random.Random(1)

    def work(executor: Executor) -> None:
        # Every tenth ends by its interruption alone, however slow the thread that interrupts is.
        turns = [ENDLESS if nth % 10 == 0 else chance.randrange(50_000) for nth in range(count)]
        races = [Race(each) for each in turns]
        for race in races:
            hit, missed = handler(race.run_later), handler(later)
            running = executor.submit(hit, CALL, race.told.done, race.told.left)
            executor.submit(missed, CALL, race.bystander.done, race.bystander.left)
            race.start(partial(executor.give_up, running, 1.0))
        for race in races:
            race.check("later -Ox1")

    at_work(lambda executor: asyncio.to_thread(work, executor), patience_s=0.001)
    assert "was interrupted" in caplog.text
    assert "the handlers' loop continues" not in caplog.text


def test_what_finds_no_thread_to_run_in_is_reported_and_the_next_finds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, first, second = HandlerThreads(1), Told(), Told()
    with monkeypatch.context() as patches:
        patches.setattr(threading.Thread, "start", refuse)
        threads.put(HandlerCall("first", first.done, first.left), lambda: "late")
    assert isinstance(first.finished.error, HandlerError)
    threads.put(HandlerCall("second", second.done, second.left), lambda: "done")
    assert second.finished.value == "done"

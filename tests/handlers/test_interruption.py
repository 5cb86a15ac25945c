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
from millis_hooks.handlers.executor import Workbench
from millis_hooks.handlers.handler_call import (
    HandlerThreads,
    LoopThread,
    Running,
    Watch,
    interrupt,
    keep_out,
)
from support.waiting import eventually

SOON_S = 0.01


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
    workbench: Workbench, function: Callable[[Any], Any], told: Told, signals: Signals
) -> Running:
    """Run `function`, and return once it is at work."""
    workbench.state = signals
    running = workbench.run(handler(function), CALL, told.done, told.left)
    assert await asyncio.to_thread(signals.began.wait, LONG_S)
    signals.began.clear()
    return running


def give_up(function: Callable[[Any], Any], signals: Signals, **options: Any) -> None:
    """Give `function` up while it is at work, see its code end and the workbench work on."""

    async def work(workbench: Workbench) -> None:
        told = Told()
        workbench.give_up(await begin(workbench, function, told, signals), 1.0)
        finished = await asyncio.to_thread(lambda: told.finished)
        assert isinstance(finished.error, HandlerTimeoutError)
        for other in (plain, later):
            finished = await workbench.ask(handler(other), CALL, timeout_s=LONG_S)
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
    assert eventually(lambda: f"handler '{function.__name__}' went on after" in caplog.text)
    assert "the handlers' loop goes on" not in caplog.text


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

    def give_up_from_beside(workbench: Workbench, running: Running) -> None:
        assert signals.began.wait(LONG_S)
        workbench.give_up(running, 1.0)

    async def work(workbench: Workbench) -> None:
        workbench.state = signals
        running = workbench.run(handler(hang_later), CALL, told.done, told.left)
        threading.Thread(target=give_up_from_beside, args=(workbench, running)).start()
        await asyncio.to_thread(lambda: told.finished)

    once_stuck(signals.released.set, caplog)
    at_work(work, isolated=False, patience_s=SOON_S)
    assert "interrupted" not in caplog.text


def test_those_who_wait_for_a_handler_that_has_the_loop_are_left_alone(
    signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait(call: PrefetchRequest) -> None:
        call.state.began.set()
        await asyncio.Event().wait()

    async def work(workbench: Workbench) -> None:
        functions: list[Callable[[Any], Any]] = [wait, hang_later, hang]
        waiting, _, hanging = [await begin(workbench, each, Told(), signals) for each in functions]
        workbench.give_up(waiting, 1.0)
        workbench.give_up(hanging, 1.0)
        await asyncio.to_thread(eventually, lambda: "'hang' cannot be stopped" in caplog.text)
        signals.released.set()

    at_work(work, patience_s=SOON_S)
    assert "'wait'" not in caplog.text


def begun_in(threads: HandlerThreads, told: Told) -> Running:
    """Return a handler at work that would never end."""
    running = Running("endless", told.done, told.left)
    threads.put(running, partial(spin, sys.maxsize))
    eventually(lambda: running.begun_at is not None)
    return running


def interrupt_thread_of(
    running: Running, is_there: Callable[[], bool] = lambda: True, within_s: float = LONG_S
) -> bool:
    assert running.thread_id is not None
    return interrupt(running, running.thread_id, is_there=is_there, within_s=within_s)


def spin(turns: int) -> int:
    for _ in range(turns):
        pass
    return turns


def test_only_what_was_given_up_and_is_at_work_is_interrupted_and_only_once() -> None:
    told = Told()
    running = begun_in(HandlerThreads(1), told)
    assert not interrupt_thread_of(running)
    running.give_up(HandlerTimeoutError())
    assert not interrupt_thread_of(running, is_there=lambda: False, within_s=0.0)
    assert interrupt_thread_of(running)
    assert not interrupt_thread_of(running)
    assert isinstance(told.finished.error, HandlerTimeoutError)


def test_what_is_over_is_not_interrupted() -> None:
    running = Running("over", lambda finished: None)
    running.begin()
    running.give_up(HandlerTimeoutError())
    keep_out(running)
    running.thread_id = threading.get_ident()
    assert not interrupt_thread_of(running)


class Quiet(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None: ...


def test_a_handler_is_not_interrupted_while_it_may_hold_the_lock_of_the_log() -> None:
    log, quiet, told = logging.Logger("apart"), Quiet(), Told()
    log.addHandler(quiet)

    def log_for_ever() -> None:
        while True:
            log.info("again")

    running = Running("log_for_ever", told.done, told.left)
    assert quiet.lock is not None
    with quiet.lock:
        HandlerThreads(1).put(running, log_for_ever)
        eventually(lambda: module_of(running.thread_id) == "logging")
        running.give_up(HandlerTimeoutError())
        assert not interrupt_thread_of(running, within_s=0.0)
    assert interrupt_thread_of(running)
    assert isinstance(told.finished.error, HandlerTimeoutError)


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


@pytest.mark.usefixtures("_hasty")
def test_of_thousands_of_handlers_interrupted_at_any_moment_none_is_lost() -> None:
    chance, threads, interrupted = random.Random(1), HandlerThreads(2), 0
    races = [Race(chance.randrange(50)) for _ in range(2000)]
    for race in races:
        running = Running("hit", race.told.done, race.told.left)
        threads.put(running, race.run)
        beside = Running("missed", race.bystander.done, race.bystander.left)
        threads.put(beside, partial(spin, 300))
        race.start(partial(running.give_up, HandlerTimeoutError()))
        spin(chance.randrange(6000))
        interrupted += interrupt_thread_of(running)
    for race in races:
        race.check(300)
    assert 0 < interrupted < len(races)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.usefixtures("_hasty")
def test_of_a_thousand_handlers_interrupted_on_their_loop_none_is_lost(
    loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose(loop, monkeypatch)
    chance = random.Random(1)

    def work(workbench: Workbench) -> None:
        races = [Race(chance.randrange(50_000)) for _ in range(1000)]
        for race in races:
            hit, missed = handler(race.run_later), handler(later)
            running = workbench.run(hit, CALL, race.told.done, race.told.left)
            workbench.run(missed, CALL, race.bystander.done, race.bystander.left)
            race.start(partial(workbench.give_up, running, 1.0))
        for race in races:
            race.check("later -Ox1")

    at_work(lambda workbench: asyncio.to_thread(work, workbench), patience_s=0.001)
    assert eventually(lambda: "was interrupted" in caplog.text)
    assert "the handlers' loop goes on" not in caplog.text


@pytest.mark.parametrize("loop", LOOPS)
def test_an_interruption_that_comes_late_does_not_end_the_loop(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(loop, monkeypatch)
    own = LoopThread()
    running = Running("gone", lambda finished: None)
    running.begin()
    running.give_up(HandlerTimeoutError())
    running.thread_id = own.thread_id
    interrupting = threading.Thread(
        target=interrupt_thread_of, args=(running,), kwargs={"within_s": 0.5}
    )
    interrupting.start()

    def leave() -> bool:
        own.loop.call_soon_threadsafe(running.leave)  # it may arrive in here
        return not interrupting.is_alive()

    assert eventually(leave)
    sleep = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "awake"), own.loop)
    assert sleep.result(LONG_S) == "awake"
    own.stop()


def watched(count: int) -> Iterator[Running]:
    """Handlers at work that were given up."""
    for _ in range(count):
        running = Running("stubborn", lambda finished: None)
        running.begin()
        running.give_up(HandlerTimeoutError())
        yield running


class Forcing:
    """Stands for the workbench: has a handler leave when it is asked for the `turns`-th time."""

    def __init__(self, turns: int = 1) -> None:
        self.asked: list[Running] = []
        self._turns = turns

    def __call__(self, running: Running) -> bool:
        self.asked.append(running)
        if len(self.asked) < self._turns:
            return False
        running.leave()
        return True


def test_what_ends_in_time_is_not_forced_and_leaves_no_thread() -> None:
    forcing, before = Forcing(), set(threading.enumerate())
    watch = Watch(forcing, patience_s=SOON_S)
    for _ in range(2):
        for running in watched(100):
            watch.add(running)
            running.leave()
        assert eventually(lambda: before >= set(threading.enumerate()))
    assert forcing.asked == []


def test_what_cannot_be_forced_yet_is_forced_later() -> None:
    forcing = Forcing(turns=3)
    [running] = watched(1)
    Watch(forcing, patience_s=SOON_S).add(running)
    assert eventually(lambda: running.has_left)
    assert forcing.asked == [running] * 3


def test_the_watch_goes_on_when_forcing_fails(caplog: pytest.LogCaptureFixture) -> None:
    forcing = Forcing()

    def fail_first(running: Running) -> bool:
        if running is first:
            raise OSError("no")
        return forcing(running)

    watch = Watch(fail_first, patience_s=SOON_S)
    first, second = watched(2)
    watch.add(first)
    watch.add(second)
    assert eventually(lambda: second.has_left)
    assert "a handler is watched no longer: OSError: no" in caplog.text


def test_what_finds_no_thread_to_run_in_is_told_and_the_next_finds_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, first, second = HandlerThreads(1), Told(), Told()
    with monkeypatch.context() as patches:
        patches.setattr(threading.Thread, "start", refuse)
        threads.put(Running("first", first.done, first.left), lambda: "late")
    assert isinstance(first.finished.error, HandlerError)
    threads.put(Running("second", second.done, second.left), lambda: "done")
    assert second.finished.value == "done"


def test_what_finds_no_thread_to_watch_it_is_watched_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    watch = Watch(Forcing(), patience_s=SOON_S)
    first, second = watched(2)
    with monkeypatch.context() as patches:
        patches.setattr(threading.Thread, "start", refuse)
        watch.add(first)
    watch.add(second)
    assert eventually(lambda: first.has_left and second.has_left)

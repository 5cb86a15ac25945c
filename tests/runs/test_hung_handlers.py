"""Handlers all of whose places are taken by calls that do not return."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from test_runs import Runs, started

from millis_hooks import EndOfCall, ParkedRun, Router
from millis_hooks.call_log.tables import handler_runs
from millis_hooks.handlers.handler_call import Handler
from millis_hooks.runs.concurrency import LEAST_WAITED_S, REPORTED_AFTER_S, HungHandlers
from support.app import END_OF_CALL, PREFETCH, MakeHooks, serving
from support.storage import NOW
from support.waiting import SOON_S, eventually

MIN = 60.0
TOKEN = "0123456789abcdef0123456789abcdef"


class Clock:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def passing(self, look: Callable[[], bool]) -> Callable[[], bool]:
        """Look, and let time pass: what is measured may begin at any look."""

        def look_later() -> bool:
            self.now += REPORTED_AFTER_S
            return look()

        return look_later


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def registered(timeout_s: float = 1.0) -> Handler:
    router = Router()
    router.on_end_of_call(name="work", timeout_s=timeout_s)(lambda call: None)
    return next(iter(router))


def test_what_lasts_is_reported_once_and_taken_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    hung, handler = HungHandlers(clock), registered()
    hung.note([handler])
    clock.now = REPORTED_AFTER_S - 1
    hung.note([handler])
    assert hung.reported == ()
    assert caplog.messages == []
    clock.now += 1
    for _ in range(2):
        hung.note([handler])
    assert list(hung.reported) == [("end_of_call", "work")]
    hung.note([])
    assert not hung.reported
    levels = [(record.levelname, "'work'" in record.getMessage()) for record in caplog.records]
    assert levels == [("ERROR", True), ("WARNING", True)]


def test_what_ends_soon_is_not_reported(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    hung, handler = HungHandlers(clock), registered()
    for handlers in ([handler], [], [handler]):
        hung.note(handlers)
        clock.now += REPORTED_AFTER_S - 1
    assert hung.reported == ()
    assert caplog.messages == []


@pytest.mark.parametrize(("timeout_s", "waits_s"), [(1.0, LEAST_WAITED_S), (60.0, 5 * MIN)])
def test_runs_wait_for_a_handler_for_some_of_its_timeouts(
    clock: Clock, timeout_s: float, waits_s: float
) -> None:
    hung, handler = HungHandlers(clock), registered(timeout_s=timeout_s)
    hung.note([handler])
    clock.now = waits_s - 1
    assert list(hung.given_up()) == []
    clock.now = waits_s
    [(key, wait, reason)] = hung.given_up()
    assert (key, wait.total_seconds()) == (("end_of_call", "work"), waits_s)
    assert reason.startswith("calls that do not return take all slots of work")


def age_runs(runs: Runs) -> None:
    """Let what waits have waited for an hour."""
    old = update(handler_runs).where(handler_runs.c.state == "pending")
    long_ago = old.values(state_since=NOW.replace(year=NOW.year - 1))
    runs.writer.run(lambda connection: connection.execute(long_ago))


def blocking(release: threading.Event, *, is_async: bool) -> Any:
    def hang(call: EndOfCall) -> None:
        if call.session_id.startswith("-hang"):
            release.wait()

    async def hang_with_the_loop(call: EndOfCall) -> None:
        hang(call)

    return hang_with_the_loop if is_async else hang


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "async"])
def test_runs_that_wait_for_calls_that_hang_are_failed_and_told_of(
    tmp_path: Path, clock: Clock, release: threading.Event, is_async: bool
) -> None:
    router, told, done = Router(), [], []
    work = blocking(release, is_async=is_async)
    router.on_end_of_call(name="work", timeout_s=SOON_S, max_attempts=1)(work)

    @router.on_end_of_call(name="other")
    def other(call: EndOfCall) -> None:
        done.append(call.session_id)

    @router.on_parked
    def tell(failed: ParkedRun) -> None:
        told.append((failed.call.session_id, failed.reason))

    with started(tmp_path, router, hung=HungHandlers(clock)) as runs:
        runs.receive("-hang1", "-hang2", handlers=("work",))
        eventually(lambda: runs.runner.status.late >= 1)
        runs.receive("-waits", handlers=("work",))
        runs.receive("-good", handlers=("other",))
        eventually(lambda: "-good" in done)
        eventually(clock.passing(lambda: runs.runner.status.hung == (("end_of_call", "work"),)))
        age_runs(runs)
        eventually(clock.passing(lambda: "-waits" in [session_id for session_id, _ in told]))
        assert "calls that do not return take all slots of work" in dict(told)["-waits"]
        release.set()
        eventually(lambda: not runs.runner.status.hung)
        runs.receive("-later", handlers=("work",))
        runs.do_all()
        assert runs.states()[-1] == "succeeded"


def test_a_run_that_cannot_begin_is_given_up(
    tmp_path: Path, clock: Clock, release: threading.Event
) -> None:
    """It was taken, and waits behind a call that keeps the event loop."""
    router, first = Router(), threading.Event()

    @router.on_end_of_call(name="work", timeout_s=1, max_attempts=1)
    async def hang(call: EndOfCall) -> None:
        first.set()
        release.wait()

    with started(tmp_path, router, hung=HungHandlers(clock)) as runs:
        runs.receive("-1")
        assert first.wait(10)
        runs.receive("-2")
        eventually(lambda: runs.states() == ["failed", "running"])
        eventually(clock.passing(lambda: runs.states() == ["failed", "failed"]))
        release.set()


def test_a_service_whose_handlers_hang_is_not_ready(
    make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    monkeypatch.setattr("millis_hooks.runs.concurrency.REPORTED_AFTER_S", 0.0)
    hooks = make_hooks(metrics_token=TOKEN, handler_threads=1, prefetch_budget_s=SOON_S)
    work = blocking(release, is_async=False)
    hooks.on_end_of_call(name="work", timeout_s=SOON_S, concurrency=1, max_attempts=1)(work)
    hooks.on_prefetch(name="greet")(lambda call: None if release.wait() else "never")
    with serving(hooks) as client:
        client.get(PREFETCH)
        client.post(END_OF_CALL, content=b'{"session_id":"-hang"}')
        wanted = [["prefetch", "greet"], ["end_of_call", "work"]]
        eventually(lambda: sorted(client.get("/readyz").json()["runner"]["hung"]) == sorted(wanted))
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "cannot run handlers")
        metrics = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        assert 'millis_hooks_handler_hung{handler="greet",hook="prefetch"} 1.0' in metrics
        release.set()
        eventually(lambda: client.get("/readyz").status_code == 200)

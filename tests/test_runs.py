"""Handler runs, on a real call log and a real workbench. Handlers wait on events, never on time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, text, update
from storage import ended, eventually, opened, rows, writing

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.tables import attempts, deliveries, handler_runs
from millis_hooks.call_log.writer import Writer
from millis_hooks.events import EndOfCall
from millis_hooks.routing import Router
from millis_hooks.runs.runner import Runner
from millis_hooks.workbench import Workbench


class Runs:
    """A runner with all it needs, on a call log that is filled by `receive`."""

    def __init__(self, database: Database, writer: Writer, router: Router) -> None:
        self.database = database
        self.writer = writer
        self.workbench = Workbench()
        self.router = router
        self.runner = Runner(writer, self.workbench, router, concurrency=2)

    def receive(self, *session_ids: str, handlers: tuple[str, ...] = ()) -> None:
        """Store and process end-of-calls; `handlers` are those that match unless given."""

        def runs_for(call: EndOfCall) -> list[str]:
            matching = self.router.matching("end_of_call", call)
            return list(handlers) or [handler.name for handler in matching]

        for session_id in session_ids:
            asyncio.run(self.writer.store(ended(session_id)))
        processor = Processor(self.database, self.writer, runs_for=runs_for)
        while processor.process_chunk():
            pass
        self.runner.wake()

    def do_all(self) -> list[Row[Any]]:
        """Wait until no run is left to do, and return all attempts."""
        eventually(lambda: not {"pending", "running"} & set(self.states()))
        return rows(self.database, attempts)

    def states(self) -> list[str]:
        return [run.state for run in rows(self.database, handler_runs)]


@contextmanager
def started(folder: Path, router: Router, *session_ids: str) -> Iterator[Runs]:
    """Runs at work; the calls of `session_ids` were there before."""
    with opened(folder) as database, writing(database) as writer:
        runs = Runs(database, writer, router)
        runs.receive(*session_ids)
        asyncio.run(runs.workbench.start())
        runs.runner.start()
        try:
            yield runs
        finally:
            runs.runner.close()
            asyncio.run(runs.workbench.stop())


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a handler may wait for; set at the end, so that no thread stays behind."""
    event = threading.Event()
    yield event
    event.set()


def failing_with(error: BaseException) -> Callable[[EndOfCall], None]:
    def fail(call: EndOfCall) -> None:
        raise error

    return fail


def test_a_handler_is_called_with_the_call(tmp_path: Path, router: Router) -> None:
    seen: list[EndOfCall] = []

    @router.on_end_of_call
    def see(call: EndOfCall) -> None:
        seen.append(call)

    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        (attempt,) = runs.do_all()
    assert [call.session_id for call in seen] == ["-s1"]
    assert (attempt.number, attempt.outcome, attempt.error_type) == (1, "succeeded", None)
    assert None not in (attempt.ended_at, attempt.duration_ms)


def test_every_handler_of_a_call_has_a_run_of_its_own(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call
    async def good(call: EndOfCall) -> None: ...

    router.on_end_of_call(name="bad")(failing_with(ValueError("no")))
    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        runs.do_all()
        found = {run.handler: run.state for run in rows(runs.database, handler_runs)}
    assert found == {"good": "succeeded", "bad": "failed"}


def test_runs_written_before_the_start_are_done(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call
    def see(call: EndOfCall) -> None: ...

    with started(tmp_path, router, "-s1", "-s2", "-s3") as runs:
        runs.do_all()
        assert runs.states() == ["succeeded"] * 3


def test_a_failure_is_kept_with_its_traceback_and_without_secrets(
    tmp_path: Path, router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    error = ConnectionError("Bearer sk-4f9a8b7c6d5e4f3a2b1c refused for +14155550134")
    router.on_end_of_call(name="notify")(failing_with(error))
    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        (attempt,) = runs.do_all()
    told = attempt.error_message + attempt.traceback + caplog.text
    assert (attempt.outcome, attempt.error_type) == ("failed", "ConnectionError")
    assert "in fail" in attempt.traceback
    assert "run 1 of notify failed: ConnectionError: " in caplog.text
    assert "4f9a8b7c6d5e" not in told
    assert "4155550134" not in told


def test_a_failure_in_words_no_database_takes_is_kept_too(tmp_path: Path, router: Router) -> None:
    router.on_end_of_call(name="notify")(failing_with(ValueError("half \ud83d of a \0 pair")))
    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        (attempt,) = runs.do_all()
    assert attempt.error_message == "half ? of a � pair"


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [True, False])
def test_no_handler_ends_the_service(
    tmp_path: Path, router: Router, error: BaseException, is_async: bool
) -> None:
    async def fail(call: EndOfCall) -> None:
        raise error

    router.on_end_of_call(name="leave")(fail if is_async else failing_with(error))
    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        runs.do_all()
        runs.receive("-s2")
        assert [attempt.error_type for attempt in runs.do_all()] == [type(error).__name__] * 2


def test_an_async_handler_is_cancelled_when_its_time_is_over(
    tmp_path: Path, router: Router
) -> None:
    cancelled = threading.Event()

    @router.on_end_of_call(timeout_s=0.02)
    async def hang(call: EndOfCall) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        (attempt,) = runs.do_all()
        assert cancelled.wait(10)
        assert runs.states() == ["failed"]
    assert (attempt.outcome, attempt.error_message) == ("timed_out", "took over 0.02 s")


def test_a_handler_that_never_returns_holds_up_nobody(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    @router.on_end_of_call(timeout_s=0.02)
    def hang(call: EndOfCall) -> None:
        if call.session_id.startswith("-hang"):
            release.wait(10)

    with started(tmp_path, router) as runs:
        runs.receive("-hang1", "-hang2", "-s1")
        assert [each.outcome for each in runs.do_all()] == ["timed_out", "timed_out", "succeeded"]


def test_a_handler_that_is_gone_is_reported_by_name(tmp_path: Path, router: Router) -> None:
    with started(tmp_path, router) as runs:
        runs.receive("-s1", handlers=("old_name",))
        (attempt,) = runs.do_all()
    assert attempt.outcome == "failed"
    assert attempt.error_message == "No end-of-call handler is named 'old_name' any more."


def test_a_body_that_can_no_longer_be_read_fails_its_run(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call
    def see(call: EndOfCall) -> None: ...

    with opened(tmp_path) as database, writing(database) as writer:
        Runs(database, writer, router).receive("-s1")
        writer.run(lambda connection: connection.execute(update(deliveries).values(body=b"{")))
    with started(tmp_path, router) as runs:
        (attempt,) = runs.do_all()
    assert (attempt.outcome, attempt.error_type) == ("failed", "PayloadError")


def test_a_call_that_when_did_not_want_leaves_no_run(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call(when=lambda call: call.session_id == "-wanted")
    def see(call: EndOfCall) -> None: ...

    with started(tmp_path, router) as runs:
        runs.receive("-unwanted", "-wanted")
        assert [attempt.outcome for attempt in runs.do_all()] == ["succeeded"]
        assert runs.states() == ["succeeded"]


def test_no_more_handlers_are_at_work_than_allowed(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    began: list[str] = []

    @router.on_end_of_call
    def wait(call: EndOfCall) -> None:
        began.append(call.session_id)
        release.wait(10)

    with started(tmp_path, router, "-s1", "-s2", "-s3") as runs:
        eventually(lambda: len(began) == 2)
        runs.receive("-s4")  # wakes the runner, which has no room
        assert runs.states() == ["running", "running", "pending", "pending"]
        release.set()
        runs.do_all()
    assert sorted(began) == ["-s1", "-s2", "-s3", "-s4"]


def test_closing_waits_for_the_handlers_at_work_and_takes_no_more(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    began: list[str] = []

    @router.on_end_of_call
    def wait(call: EndOfCall) -> None:
        began.append(call.session_id)
        release.wait(10)

    with started(tmp_path, router, "-s1", "-s2", "-s3") as runs:
        eventually(lambda: len(began) == 2)
        closing = threading.Thread(target=runs.runner.close)
        closing.start()
        eventually(lambda: runs.runner._closing)
        release.set()
        closing.join()
        assert runs.states() == ["succeeded", "succeeded", "pending"]


def test_closing_does_not_wait_for_ever(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    began = threading.Event()

    @router.on_end_of_call
    def hang(call: EndOfCall) -> None:
        began.set()
        release.wait(10)

    with started(tmp_path, router, "-s1") as runs:
        assert began.wait(10)
        runs.runner.close(grace_s=0.01)
        assert runs.states() == ["running"]
        release.set()


def test_a_handler_that_ends_after_the_call_log_closed_does_not_keep_the_runner(
    tmp_path: Path, router: Router, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    @router.on_end_of_call
    def hang(call: EndOfCall) -> None:
        release.wait(10)

    with started(tmp_path, router, "-s1") as runs:
        eventually(lambda: runs.states() == ["running"])
        runs.runner.close(grace_s=0.01)
        runs.writer.close()
        release.set()
        eventually(lambda: not runs.runner._thread.is_alive())
    assert caplog.text.count("runs wait") == 1


def test_a_workbench_that_does_not_run_fails_the_run(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call
    def see(call: EndOfCall) -> None: ...

    with started(tmp_path, router) as runs:
        asyncio.run(runs.workbench.stop())
        runs.receive("-s1")
        (attempt,) = runs.do_all()
    assert attempt.error_message == "The workbench is not running."


def test_runs_outlive_a_failing_call_log(
    tmp_path: Path,
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    release: threading.Event,
) -> None:
    @router.on_end_of_call
    def wait(call: EndOfCall) -> None:
        release.wait(10)

    monkeypatch.setattr("millis_hooks.runs.runner.SWEEP_S", 0.01)
    with started(tmp_path, router, "-s1") as runs:
        eventually(lambda: runs.states() == ["running"])
        rename(runs.writer, "attempts", "gone")
        release.set()
        eventually(lambda: "runs wait: the call log failed" in caplog.text)
        rename(runs.writer, "gone", "attempts")
        assert [attempt.outcome for attempt in runs.do_all()] == ["succeeded"]


def rename(writer: Writer, table: str, to: str) -> None:
    writer.run(lambda connection: connection.execute(text(f"ALTER TABLE {table} RENAME TO {to}")))

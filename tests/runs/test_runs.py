"""Handler runs, on a real call log and a real executor. Handlers wait on events, never on time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row, text, update

from millis_hooks import Backoff, ParkedRun
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.tables import attempts, deliveries, handler_runs
from millis_hooks.call_log.writer import Writer
from millis_hooks.exceptions import StorageError
from millis_hooks.handlers.executor import Executor
from millis_hooks.handlers.routing import Router
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.runs import store
from millis_hooks.runs.concurrency import HungHandlers, Slots
from millis_hooks.runs.processes import coordinator_of
from millis_hooks.runs.runner import Runner
from support.storage import NOW, commits_of, ended, opened, rows, writing
from support.waiting import SOON_S, eventually


class Runs:
    """A runner with all it needs, on a call log that is filled by `receive`."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        router: Router,
        hung: HungHandlers | None = None,
    ) -> None:
        self.database = database
        self.writer = writer
        self.executor = Executor()
        self.router = router
        self.now = NOW
        self.runner = Runner(
            database.reader,
            writer,
            self.executor,
            router,
            coordinator_of(database, writer),
            concurrency=2,
            hung=hung,
            now=lambda: self.now,
        )

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

    def outcomes(self) -> list[str | None]:
        return [attempt.outcome for attempt in rows(self.database, attempts)]

    def until(self, *states: str) -> list[Row[Any]]:
        """Wait until the runs are in these states, and return them."""
        eventually(lambda: self.states() == [*states])
        return rows(self.database, handler_runs)

    def pass_time(self, **amount: float) -> None:
        """Let the runner's clock go on, and wait until it has seen that."""
        self.now += timedelta(**amount)
        commits = commits_of(self.database)
        for turn in (1, 2):  # one may have begun before
            self.runner.wake()
            eventually(lambda turn=turn: len(commits) >= turn)  # type: ignore[misc]


@contextmanager
def started(
    folder: Path, router: Router, *session_ids: str, hung: HungHandlers | None = None
) -> Iterator[Runs]:
    """Runs at work; the calls of `session_ids` were there before."""
    with opened(folder) as database, writing(database) as writer:
        runs = Runs(database, writer, router, hung)
        runs.receive(*session_ids)
        asyncio.run(runs.executor.start())
        runs.runner.start()
        try:
            yield runs
        finally:
            runs.runner.close(grace_s=0)
            asyncio.run(runs.executor.stop())


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


@pytest.mark.both_databases
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


@pytest.mark.both_databases
def test_every_handler_of_a_call_has_a_run_of_its_own(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call
    async def good(call: EndOfCall) -> None: ...

    router.on_end_of_call(name="bad")(failing_with(ValueError("no")))
    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        runs.do_all()
        found = {run.handler: run.state for run in rows(runs.database, handler_runs)}
    assert found == {"good": "succeeded", "bad": "retrying"}


@pytest.mark.both_databases
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
    assert "run 1 of notify, attempt 1: ConnectionError: " in caplog.text
    assert "4f9a8b7c6d5e" not in told
    assert "4155550134" not in told


@pytest.mark.both_databases
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

    @router.on_end_of_call(timeout_s=SOON_S)
    async def hang(call: EndOfCall) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with started(tmp_path, router) as runs:
        runs.receive("-s1")
        (attempt,) = runs.do_all()
        assert cancelled.wait(10)
        assert runs.states() == ["retrying"]
    assert (attempt.outcome, attempt.error_message) == ("timed_out", f"took over {SOON_S} s")


def test_a_handler_that_never_returns_delays_no_other(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    @router.on_end_of_call(timeout_s=SOON_S)
    def hang(call: EndOfCall) -> None:
        if call.session_id.startswith("-hang"):
            release.wait(10)

    with started(tmp_path, router) as runs:
        runs.receive("-hang1", "-hang2", "-s1")
        found = sorted(each.outcome for each in runs.do_all())
    assert found == ["succeeded", "timed_out", "timed_out"]


@pytest.mark.both_databases
def test_a_run_whose_handler_is_gone_waits_for_an_hour_and_is_failed(
    tmp_path: Path, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.runs.runner.SEARCH_EVERY_S", 0)
    with started(tmp_path, router) as runs:
        runs.receive("-s1", handlers=("old_name",))
        runs.pass_time(minutes=59)
        assert runs.states() == ["pending"]
        runs.pass_time(minutes=2)
        (run,) = runs.until("failed")
    assert run.reason == "no handler is named old_name any more"


@pytest.mark.both_databases
def test_runs_of_which_no_one_learned_that_they_were_taken_are_done_anyway(
    tmp_path: Path, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.runs.runner.SEARCH_EVERY_S", 0)
    router.on_end_of_call(name="work")(lambda call: None)
    run = Writer.run
    lost: list[Any] = []

    def lose_once(writer: Writer, work: Callable[[Connection], Any]) -> Any:
        done = run(writer, work)
        if isinstance(done, list) and done and not lost:
            lost.extend(done)
            raise StorageError("nobody knows whether it was committed")
        return done

    monkeypatch.setattr(Writer, "run", lose_once)
    with started(tmp_path, router, "-s1") as runs:
        runs.until("succeeded")
        assert runs.outcomes() == ["interrupted", "succeeded"]


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
        assert sorted(runs.states()) == ["pending", "pending", "running", "running"]
        release.set()
        runs.do_all()
    assert sorted(began) == ["-s1", "-s2", "-s3", "-s4"]


@pytest.mark.both_databases
def test_a_handler_that_fails_is_called_again_when_it_is_due(
    tmp_path: Path, router: Router
) -> None:
    keys: list[str] = []

    @router.on_end_of_call(retry_backoff=Backoff(first_s=60, factor=1, jitter=0))
    def work(call: EndOfCall) -> None:
        keys.append(call.idempotency_key)
        if len(keys) < 3:
            raise ConnectionError

    with started(tmp_path, router, "-s1") as runs:
        runs.until("retrying")
        runs.pass_time(seconds=59)
        assert len(keys) == 1
        runs.pass_time(seconds=2)
        runs.until("retrying")
        runs.pass_time(seconds=61)
        runs.until("succeeded")
        assert runs.outcomes() == ["failed", "failed", "succeeded"]
    assert keys == ["-s1:work"] * 3


def test_an_attempt_may_follow_at_once(tmp_path: Path, router: Router) -> None:
    attempts_at_once = {"max_attempts": 12, "retry_backoff": Backoff(first_s=0, factor=1)}
    router.on_end_of_call(name="work", **attempts_at_once)(failing_with(ValueError()))  # type: ignore[call-overload]
    with started(tmp_path, router, "-s1", "-s2", "-s3") as runs:
        runs.until("failed", "failed", "failed")
        assert runs.outcomes() == ["failed"] * 36


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_is_moved_by_a_day_keeps_no_run_waiting(
    tmp_path: Path, router: Router, days: int
) -> None:
    router.on_end_of_call(name="work", max_attempts=2)(failing_with(ValueError()))
    with started(tmp_path, router, "-s1") as runs:
        runs.until("retrying")
        runs.pass_time(days=days)
        runs.until("failed")


@pytest.mark.both_databases
def test_a_clock_that_was_moved_while_nothing_ran_keeps_no_run_waiting(
    tmp_path: Path, router: Router
) -> None:
    router.on_end_of_call(name="work", max_attempts=2)(failing_with(ValueError()))
    with started(tmp_path, router, "-s1") as runs:
        runs.until("retrying")
        tomorrow = {"state_since": runs.now + timedelta(days=1), "due_at": runs.now + timedelta(2)}
        runs.writer.run(
            lambda connection: connection.execute(update(handler_runs).values(tomorrow))
        )
    with started(tmp_path, router) as runs:
        runs.until("failed")


@pytest.mark.both_databases
def test_who_is_to_hear_of_a_failed_run_hears_of_it_once(tmp_path: Path, router: Router) -> None:
    told: list[ParkedRun] = []
    router.on_end_of_call(name="work", max_attempts=1)(failing_with(ValueError("no")))

    @router.on_parked
    def alert(failed: ParkedRun) -> None:
        told.append(failed)

    with started(tmp_path, router, "-s1") as runs:
        runs.until("failed", "succeeded")
    (failed,) = told
    assert (failed.handler, failed.call.session_id, failed.attempts) == ("work", "-s1", 1)
    assert (failed.error_type, failed.error_message) == ("ValueError", "no")
    assert failed.reason == "1 of 1 attempts failed"


def test_no_one_hears_that_no_one_could_be_told(tmp_path: Path, router: Router) -> None:
    router.on_end_of_call(name="work", max_attempts=1)(failing_with(ValueError()))

    @router.on_parked(max_attempts=1)
    def alert(failed: ParkedRun) -> None:
        raise ConnectionError

    with started(tmp_path, router, "-s1") as runs:
        runs.until("failed", "failed")


@pytest.mark.both_databases
def test_a_run_that_was_at_work_when_the_process_died_is_done_again(
    tmp_path: Path, router: Router
) -> None:
    router.on_end_of_call(name="work")(lambda call: None)
    die_at_work(tmp_path, router, "-s1", times=1)
    with started(tmp_path, router) as runs:
        (run,) = runs.until("succeeded")
        assert (runs.outcomes(), run.spent) == (["interrupted", "succeeded"], 2)


@pytest.mark.both_databases
def test_a_run_that_has_no_attempt_left_is_failed_and_told_of(
    tmp_path: Path, router: Router
) -> None:
    router.on_end_of_call(name="work", max_attempts=2)(lambda call: None)
    router.on_parked(name="alert")(lambda failed: None)
    die_at_work(tmp_path, router, "-s1", times=2)
    with started(tmp_path, router) as runs:
        run, _ = runs.until("failed", "succeeded")
    assert run.reason == "2 of 2 attempts did not end"


@pytest.mark.both_databases
def test_a_backlog_does_not_keep_new_calls_waiting(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    began: list[str] = []

    @router.on_end_of_call
    def work(call: EndOfCall) -> None:
        began.append(call.session_id)
        release.wait(10)

    sessions = [f"-s{number}" for number in range(9)]
    with started(tmp_path, router, *sessions):
        eventually(lambda: len(began) == 2)
        assert set(began) == {"-s0", "-s8"}
        release.set()


@pytest.mark.both_databases
def test_a_slow_handler_does_not_keep_a_quick_one_waiting(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    @router.on_end_of_call
    def slow(call: EndOfCall) -> None:
        release.wait(10)

    @router.on_end_of_call
    def quick(call: EndOfCall) -> None: ...

    with started(tmp_path, router, "-s1", "-s2", "-s3") as runs:
        eventually(lambda: runs.outcomes().count("succeeded") == 3)
        assert runs.states().count("succeeded") == 3
        release.set()


@pytest.mark.both_databases
def test_a_handler_that_is_late_keeps_its_place_until_it_returns(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    began: list[str] = []

    @router.on_end_of_call(timeout_s=SOON_S, concurrency=1, max_attempts=1)
    def hang(call: EndOfCall) -> None:
        began.append(call.session_id)
        release.wait(10)

    with started(tmp_path, router, "-s1", "-s2") as runs:
        eventually(lambda: sorted(runs.states()) == ["failed", "pending"])
        assert (len(began), runs.runner.status.late) == (1, 1)
        release.set()
        eventually(lambda: sorted(began) == ["-s1", "-s2"])
        eventually(lambda: runs.runner.status.late == 0)


@pytest.mark.both_databases
def test_a_redelivery_is_not_handled_again(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    @router.on_end_of_call
    def work(call: EndOfCall) -> None:
        release.wait(10)

    with started(tmp_path, router, "-s1") as runs:
        runs.until("running")
        runs.receive("-s1")
        release.set()
        runs.until("succeeded")
        runs.receive("-s1")
        runs.pass_time(seconds=1)
        assert runs.outcomes() == ["succeeded"]


def test_only_one_of_several_runners_works_and_the_next_takes_over(
    tmp_path: Path, router: Router
) -> None:
    router.on_end_of_call(name="work")(lambda call: None)
    with started(tmp_path, router) as first:
        eventually(lambda: first.runner.status.role == "working")
        with started(tmp_path, router) as second:
            assert second.runner.status.role == "standby"
            first.runner.close()
            assert first.runner.status.role == "stopped"
            second.receive("-s1")
            second.until("succeeded")


def test_a_mistake_of_our_own_does_not_end_the_runner(
    tmp_path: Path,
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    router.on_end_of_call(name="work")(lambda call: None)
    with started(tmp_path, router) as runs, monkeypatch.context() as patch:
        eventually(lambda: runs.runner.status.role == "working")
        patch.setattr("millis_hooks.runs.store.wake_due", None)
        runs.receive("-s1")
        eventually(lambda: "runs are delayed: TypeError" in caplog.text)
        patch.undo()
        runs.until("succeeded")


@pytest.mark.both_databases
def test_closing_gives_handlers_time_and_hands_back_what_does_not_end(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    @router.on_end_of_call
    async def hang(call: EndOfCall) -> None:
        await asyncio.Event().wait()

    with started(tmp_path, router, "-s1") as runs:
        runs.until("running")
        runs.runner.close(grace_s=0)
        (run,) = runs.until("pending")
        assert (runs.outcomes(), run.spent) == (["handed_back"], 0)
    with started(tmp_path, router) as runs:
        runs.until("running")
        assert [attempt.number for attempt in rows(runs.database, attempts)] == [1, 2]


def die_at_work(folder: Path, router: Router, session_id: str, *, times: int) -> None:
    """Leave a run as a process does that is killed so many times while it is at work."""
    with opened(folder) as database, writing(database) as writer:
        runs = Runs(database, writer, router)
        runs.receive(session_id)

        def claim_and_die(connection: Connection) -> None:
            slots = Slots(list(router), 1)
            assert store.claim(
                connection,
                slots,
                runs.now,
                late=(),
                failure_hooks=router.failure_handlers,
                flip=lambda: 0,
            )

        for _ in range(times):
            writer.run(lambda connection: store.take_over(connection, runs.now))
            writer.run(claim_and_die)


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
        eventually(lambda: runs.runner._stop_at is not None)
        release.set()
        closing.join()
        assert sorted(runs.states()) == ["pending", "succeeded", "succeeded"]


def test_a_runner_ends_though_the_call_log_is_closed(
    tmp_path: Path, router: Router, release: threading.Event
) -> None:
    @router.on_end_of_call
    def hang(call: EndOfCall) -> None:
        release.wait(10)

    with started(tmp_path, router, "-s1") as runs:
        runs.until("running")
        runs.writer.close()
        runs.runner.close(grace_s=0)
        assert runs.runner.status.role == "stopped"
        release.set()


def test_an_executor_that_does_not_run_fails_the_run(tmp_path: Path, router: Router) -> None:
    @router.on_end_of_call
    def see(call: EndOfCall) -> None: ...

    with started(tmp_path, router) as runs:
        asyncio.run(runs.executor.stop())
        runs.receive("-s1")
        (attempt,) = runs.do_all()
    assert attempt.error_message == "The executor is not running."


@pytest.mark.both_databases
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

    monkeypatch.setattr("millis_hooks.runs.runner.POLL_S", 0.01)
    with started(tmp_path, router, "-s1") as runs:
        eventually(lambda: runs.states() == ["running"])
        rename(runs.writer, "attempts", "gone")
        release.set()
        eventually(lambda: "runs are delayed: StorageError" in caplog.text)
        rename(runs.writer, "gone", "attempts")
        assert [attempt.outcome for attempt in runs.do_all()] == ["succeeded"]


def rename(writer: Writer, table: str, to: str) -> None:
    writer.run(lambda connection: connection.execute(text(f"ALTER TABLE {table} RENAME TO {to}")))

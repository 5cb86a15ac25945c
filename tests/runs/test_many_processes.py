"""Several runners on one call log in PostgreSQL, as processes have them. Time is passed in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, delete, event, func, select, update

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.tables import attempts, handler_runs, runners
from millis_hooks.call_log.writer import Writer
from millis_hooks.exceptions import StorageError
from millis_hooks.handlers.executor import Executor
from millis_hooks.handlers.routing import Router
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.runs import store
from millis_hooks.runs.outcome import write_handlers
from millis_hooks.runs.processes import DEAD_AFTER_S, Heartbeats, processes_at_work
from millis_hooks.runs.replay import Selection, replay_batch
from millis_hooks.runs.runner import Runner
from support import databases
from support.storage import NOW, ended, opened, rows, writing
from support.waiting import eventually


@pytest.fixture(autouse=True)
def _on_postgresql() -> Iterator[None]:
    with databases.on("postgresql"):
        yield


class Time:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Process:
    """What one process has; several are on the same call log."""

    def __init__(self, database: Database, writer: Writer, router: Router) -> None:
        self.database, self.writer = database, writer
        self.time = Time()
        self.place = Heartbeats(writer, monotonic_s=self.time)
        self.executor = Executor()
        self.router = router
        self.runner = Runner(
            database.reader,
            writer,
            self.executor,
            router,
            self.place,
            concurrency=4,
            now=lambda: NOW,
        )

    def receive(self, *session_ids: str) -> None:
        for session_id in session_ids:
            asyncio.run(self.writer.store(ended(session_id)))
        processor = Processor(
            self.database,
            self.writer,
            runs_for=lambda call: [each.name for each in self.router.matching("end_of_call", call)],
        )
        while processor.process_chunk():
            pass
        self.runner.wake()

    def watch(self, seconds: float) -> None:
        """Let the time pass in which another process is watched."""
        for _ in range(int(seconds)):
            self.time.now_s += 1
            self.place.check_in(NOW)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        asyncio.run(self.executor.start())
        self.runner.start()
        try:
            yield
        finally:
            self.runner.close(grace_s=0)
            asyncio.run(self.executor.stop())

    def states(self) -> list[str]:
        return [run.state for run in rows(self.database, handler_runs)]

    def outcomes(self) -> list[str | None]:
        return [attempt.outcome for attempt in rows(self.database, attempts)]

    def at_the_log(self) -> list[str]:
        with self.database.reader.connect() as connection:
            return processes_at_work(connection)


@contextmanager
def process(folder: Path, router: Router | None = None) -> Iterator[Process]:
    with opened(folder) as database, writing(database) as writer:
        yield Process(database, writer, router or Router())


def test_all_of_them_work_and_each_run_is_done_once(tmp_path: Path) -> None:
    routers, done = (Router(), Router()), ([], [])  # type: tuple[Router, ...], tuple[list[str], ...]
    both_work = threading.Event()
    for router, mine in zip(routers, done, strict=True):

        @router.on_end_of_call(name="work")
        def work(call: EndOfCall, mine: list[str] = mine) -> None:
            mine.append(call.session_id)
            if all(done):
                both_work.set()
            assert both_work.wait(20)  # until then nobody takes more than there are places for

    with process(tmp_path, routers[0]) as one, process(tmp_path, routers[1]) as other:
        sessions = [f"-s{number}" for number in range(20)]
        with one.at_work(), other.at_work():
            one.receive(*sessions)
            eventually(lambda: set(one.states()) == {"succeeded"})
        assert sorted(done[0] + done[1]) == sorted(sessions)
        assert {run.runner for run in rows(one.database, handler_runs)} == {
            one.place.runner,
            other.place.runner,
        }


def test_a_handlers_own_limit_holds_for_all_processes_together(tmp_path: Path) -> None:
    at_once: list[int] = []
    busy: set[str] = set()
    routers = (Router(), Router())
    for router in routers:

        @router.on_end_of_call(name="work", concurrency=1)
        def work(call: EndOfCall) -> None:
            busy.add(call.session_id)
            at_once.append(len(busy))
            busy.discard(call.session_id)

    with (
        process(tmp_path, routers[0]) as one,
        process(tmp_path, routers[1]) as other,
        one.at_work(),
        other.at_work(),
    ):
        one.receive(*(f"-s{number}" for number in range(20)))
        eventually(lambda: one.states() == ["succeeded"] * 20)
    assert at_once == [1] * 20


def test_choosing_runs_of_a_handler_delays_no_other_process(tmp_path: Path) -> None:
    router = Router()
    router.on_end_of_call(name="limited", concurrency=1)(lambda call: None)
    router.on_end_of_call(name="other")(lambda call: None)
    with process(tmp_path, router) as one, one.at_work():
        with one.database.writer.begin() as connection:
            name = "end_of_call limited"
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
            one.receive("-s1")
            eventually(lambda: one.states() == ["pending", "succeeded"])
        eventually(lambda: one.states() == ["succeeded", "succeeded"])


def begin_one(one: Process, release: threading.Event) -> None:
    """Have a process begin a run that lasts until it is released."""

    @one.router.on_end_of_call(name="work", concurrency=1)
    def wait(call: EndOfCall) -> None:
        release.wait(20)

    one.receive("-s1")
    eventually(lambda: one.states() == ["running"])


def test_whose_beat_stands_still_is_taken_for_dead_and_its_runs_are_done_again(
    tmp_path: Path,
) -> None:
    release = threading.Event()
    with process(tmp_path) as frozen, process(tmp_path) as other, frozen.at_work():
        begin_one(frozen, release)
        other.place.check_in(NOW)
        other.watch(DEAD_AFTER_S - 1)
        assert other.states() == ["running"]
        other.watch(1)
        assert (other.states(), other.outcomes()) == (["pending"], ["interrupted"])
        assert other.place.leads
        release.set()  # it was only held up


def test_the_end_of_an_attempt_that_was_taken_for_interrupted_changes_nothing(
    tmp_path: Path,
) -> None:
    release, again = threading.Event(), threading.Event()
    router = Router()

    @router.on_end_of_call(name="work")
    def wait_again(call: EndOfCall) -> None:
        again.wait(20)

    with process(tmp_path) as frozen, process(tmp_path, router) as other, frozen.at_work():
        begin_one(frozen, release)
        other.place.check_in(NOW)
        other.watch(DEAD_AFTER_S)
        with other.at_work():
            eventually(lambda: other.outcomes() == ["interrupted", None])
            release.set()
            eventually(lambda: frozen.runner.status.at_work == 0)
            frozen.runner.close()
            assert other.outcomes() == ["interrupted", None]
            again.set()
            eventually(lambda: other.outcomes() == ["interrupted", "succeeded"])


def test_locks_of_a_stopped_process_delay_no_other(tmp_path: Path) -> None:
    release = threading.Event()
    with process(tmp_path) as frozen, process(tmp_path) as other, frozen.at_work():
        begin_one(frozen, release)
        other.place.check_in(NOW)
        with locked(frozen, select(runners).where(runners.c.name == frozen.place.runner)):
            other.watch(DEAD_AFTER_S)
            assert len(other.at_the_log()) == 2
        with locked(frozen, select(handler_runs)):
            other.watch(1)
            assert other.at_the_log() == [other.place.runner]
            assert other.states() == ["running"]
        other.watch(1)
        assert other.states() == ["pending"]
        release.set()


@contextmanager
def locked(process: Process, chosen: Select[Any]) -> Iterator[None]:
    """Rows that a process has its hands on."""
    with process.database.writer.begin() as connection:
        connection.execute(chosen.with_for_update())
        yield


def test_a_run_that_another_process_is_taking_is_not_failed(tmp_path: Path) -> None:
    router = Router()
    router.on_end_of_call(name="new")(lambda call: None)
    with process(tmp_path, router) as one:
        one.receive("-s1")
        park = partial(
            store.fail_unknown,
            known=(),
            now=NOW,
            waiting_since=NOW,
            failure_hooks=router.failure_handlers,
        )
        with locked(one, select(handler_runs)):
            one.writer.run(park)
        assert one.states() == ["pending"]
        one.writer.run(park)
        assert one.states() == ["failed"]


def test_who_leads_does_not_take_the_clock_of_another_for_one_that_was_set_back(
    tmp_path: Path,
) -> None:
    router = Router()
    router.on_end_of_call(name="work")(lambda call: None)
    with process(tmp_path, router) as one:
        one.place.check_in(NOW)
        one.receive("-s1")
        later = {"state": "retrying", "state_since": NOW + timedelta(minutes=2)}
        one.writer.run(lambda connection: connection.execute(update(handler_runs).values(later)))
        one.watch(2)
        assert one.states() == ["retrying"]


def test_a_runner_that_was_paused_declares_no_other_dead(tmp_path: Path) -> None:
    with process(tmp_path) as one, process(tmp_path) as other:
        one.place.check_in(NOW)
        other.place.check_in(NOW)
        other.watch(DEAD_AFTER_S - 1)
        other.time.now_s += 60  # the server was gone
        other.place.check_in(NOW)
        other.watch(DEAD_AFTER_S - 1)
        assert len(rows(other.database, runners)) == 2
        other.watch(1)
        assert [row.name for row in rows(other.database, runners)] == [other.place.runner]


def test_a_removed_runner_registers_again(tmp_path: Path) -> None:
    with process(tmp_path) as one:
        one.place.check_in(NOW)
        one.writer.run(lambda connection: connection.execute(delete(runners)))
        one.watch(1)
        assert one.at_the_log() == [one.place.runner]


def test_the_one_that_came_first_leads_until_it_leaves(tmp_path: Path) -> None:
    with process(tmp_path) as one, process(tmp_path) as other:
        one.place.check_in(NOW)
        other.place.check_in(NOW)
        assert (one.place.leads, other.place.leads) == (True, False)
        assert one.at_the_log() == [one.place.runner, other.place.runner]
        one.place.leave()
        other.watch(1)
        assert (one.place.leads, other.place.leads) == (False, True)


def test_a_process_that_leaves_while_nothing_can_be_written_is_missed_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process(tmp_path) as one:
        one.place.check_in(NOW)
        with monkeypatch.context() as patch:
            patch.setattr(one.writer, "submit", refuse)
            one.place.leave()
        assert not one.place.is_active
        assert one.at_the_log() == [one.place.runner]


def refuse(_work: object) -> None:
    raise StorageError


def test_only_the_leader_wakes_due_runs(tmp_path: Path) -> None:
    router = Router()
    tries: list[str] = []

    @router.on_end_of_call(name="work", max_attempts=2)
    def fail_once(call: EndOfCall) -> None:
        tries.append(call.session_id)
        if len(tries) == 1:
            raise LookupError

    with process(tmp_path, router) as one, one.at_work():
        one.receive("-s1")
        eventually(lambda: one.states() == ["retrying"])
        one.runner._now = lambda: NOW + timedelta(hours=1)
        one.runner.wake()
        eventually(lambda: one.states() == ["succeeded"])


@contextmanager
def meanwhile(process: Process, statement: str, do: Callable[[], object]) -> Iterator[None]:
    """Have something done by others, once, just before a statement of this process."""
    left = [do]

    def see(_connection: object, _cursor: object, said: str, *_rest: object) -> None:
        if left and said.startswith(statement):
            left.pop()()

    event.listen(process.database.writer, "before_cursor_execute", see)
    yield
    event.remove(process.database.writer, "before_cursor_execute", see)
    assert not left


def one_run(one: Process, state: str) -> None:
    """Have one run in a state, of a handler that a replay knows."""
    one.router.on_end_of_call(name="work")(lambda call: None)
    one.receive("-s1")
    write = partial(write_handlers, registered=one.router, now=NOW, prefetch_budget_s=1)
    one.writer.run(write)
    change(one, state)


def change(process: Process, state: str) -> None:
    changed = update(handler_runs).values(state=state)
    process.writer.run(lambda connection: connection.execute(changed))


def replay_all(process: Process, status: str) -> None:
    wanted = Selection(handler="work", status=status)
    process.writer.run(partial(replay_batch, selection=wanted, now=NOW))


def test_a_run_that_another_process_begins_is_not_brought_forward(tmp_path: Path) -> None:
    with process(tmp_path) as one, process(tmp_path) as other:
        one_run(one, "retrying")
        with meanwhile(one, "UPDATE handler_runs", partial(change, other, "running")):
            replay_all(one, "retrying")
        assert one.states() == ["running"]


def test_what_two_ask_for_in_bulk_at_once_is_done_once(tmp_path: Path) -> None:
    with process(tmp_path) as one, process(tmp_path) as other:
        one_run(one, "failed")
        with meanwhile(one, "UPDATE handler_runs", partial(replay_all, other, "failed")):
            replay_all(one, "failed")
        assert one.states() == ["failed", "pending"]


def test_first_runs_that_two_ask_for_at_once_are_written_once(tmp_path: Path) -> None:
    with process(tmp_path) as one, process(tmp_path) as other:
        one_run(one, "failed")
        one.writer.run(lambda connection: connection.execute(delete(handler_runs)))
        with meanwhile(one, "INSERT INTO handler_runs", partial(replay_all, other, "never")):
            replay_all(one, "never")
        assert one.states() == ["pending"]

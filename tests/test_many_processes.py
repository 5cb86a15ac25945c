"""Several runners on one call log in PostgreSQL, as processes have them. Time is passed in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import databases
import pytest
from sqlalchemy import delete
from storage import NOW, ended, eventually, opened, rows, writing

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.tables import attempts, handler_runs, runners
from millis_hooks.call_log.writer import Writer
from millis_hooks.events import EndOfCall
from millis_hooks.exceptions import StorageError
from millis_hooks.routing import Router
from millis_hooks.runs.many_processes import DEAD_AFTER_S, ManyProcesses, processes_at_work
from millis_hooks.runs.runner import Runner
from millis_hooks.workbench import Workbench


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
        self.place = ManyProcesses(writer, monotonic_s=self.time)
        self.workbench = Workbench()
        self.router = router
        self.runner = Runner(
            database.reader,
            writer,
            self.workbench,
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
        asyncio.run(self.workbench.start())
        self.runner.start()
        try:
            yield
        finally:
            self.runner.close(grace_s=0)
            asyncio.run(self.workbench.stop())

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
    barrier = threading.Barrier(2, timeout=20)
    for router, mine in zip(routers, done, strict=True):

        @router.on_end_of_call(name="work")
        def work(call: EndOfCall, mine: list[str] = mine) -> None:
            if not mine:
                mine.append(call.session_id)
                barrier.wait()
            else:
                mine.append(call.session_id)

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


def begin_one(one: Process, release: threading.Event) -> None:
    """Have a process begin a run that lasts until it is released."""

    @one.router.on_end_of_call(name="work")
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


def test_who_could_not_watch_takes_nobody_for_dead(tmp_path: Path) -> None:
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


def test_who_was_struck_off_puts_itself_on_the_list_again(tmp_path: Path) -> None:
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
        assert not one.place.is_in
        assert one.at_the_log() == [one.place.runner]


def refuse(_work: object) -> None:
    raise StorageError


def test_only_who_leads_wakes_what_is_due(tmp_path: Path) -> None:
    router = Router()
    tries: list[str] = []

    @router.on_end_of_call(name="work", max_attempts=2)
    def fail_once(call: EndOfCall) -> None:
        tries.append(call.session_id)
        if len(tries) == 1:
            raise LookupError

    with process(tmp_path, router) as one, one.at_work():
        one.receive("-s1")
        eventually(lambda: one.states() == ["failed"])
        one.runner._now = lambda: NOW + timedelta(hours=1)
        one.runner.wake()
        eventually(lambda: one.states() == ["succeeded"])

"""Several real processes on one PostgreSQL, under load, while they or their server are ended."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from millis_hooks.call_log.tables import calls, deliveries, handler_runs, runners
from support import databases, postgres_server
from support.app import SECRET
from support.databases import url_in
from support.postgres_server import Server as Postgres
from support.programs import SCRIPT, Program
from support.sites import Site, session_of
from support.storage import opened, rows
from support.waiting import eventually

WORK = """
@hooks.on_end_of_call
def work(call):
    note(call, "began")
    time.sleep(random.random() / 50)
    note(call, "ended")
"""

#: A process that is killed is missed sooner than by default.
HANDLERS = f"""
from millis_hooks.runs import processes
processes.DEAD_AFTER_S = 2.0
{WORK}"""

#: Works until the file `go-on` is there.
PATIENT = """
from millis_hooks.runs import processes
processes.DEAD_AFTER_S = 2.0

@hooks.on_end_of_call
def work(call):
    note(call, "began")
    while not os.path.exists("go-on"):
        time.sleep(0.005)
    note(call, "ended")
"""

WORKER = """
from millis_hooks import MillisHooks

hooks = MillisHooks(secrets=["{secret}"], database_url="{url}", handler_grace_s=0.2)

@hooks.on_end_of_call
def work(call):
    pass
"""


@pytest.fixture(autouse=True)
def _on_postgresql() -> Iterator[None]:
    with databases.on("postgresql"):
        yield


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, HANDLERS)


def check_each_is_handled(site: Site, *, once: bool) -> None:
    """Nothing that was acknowledged is lost, and nothing is done twice without need."""
    sent = set(map(session_of, site.acknowledged))
    with opened(site.folder) as database:
        assert sent <= {row.session_id for row in rows(database, deliveries)}
        assert sent <= {row.session_id for row in rows(database, calls)}
        assert {run.state for run in rows(database, handler_runs)} == {"succeeded"}
    assert sent <= set(site.noted("ended"))
    if once:
        assert set(site.noted("began").values()) == {1}


@pytest.mark.long
def test_replicas_may_start_at_once_on_a_new_database(tmp_path: Path) -> None:
    databases.use(tmp_path, postgres_server.new_database("new"))
    site = Site(tmp_path, WORK)  # nobody dies here, and a busy machine pauses a process for 2 s

    def start_and_stop(_number: int) -> None:
        with site.serving() as server:
            server.deliver(f"-{server.process.pid}")
            server.stop()

    with ThreadPoolExecutor() as threads:
        list(threads.map(start_and_stop, range(3)))
    site.finish()
    check_each_is_handled(site, once=True)


def test_two_replicas_share_the_runs_and_do_each_once(tmp_path: Path) -> None:
    site = Site(tmp_path, WORK)  # as above
    sessions = [f"-{number}" for number in range(30)]
    with site.serving() as one, site.serving() as other:
        for number, session_id in enumerate(sessions):
            (one if number % 2 else other).deliver(session_id)
        eventually(lambda: site.noted("ended").total() == 30)
        one.stop()
        other.stop()
    check_each_is_handled(site, once=True)
    with opened(site.folder) as database:
        assert len({run.runner for run in rows(database, handler_runs)}) == 2
        assert rows(database, runners) == []


def test_when_one_is_killed_the_other_finishes_its_runs(site: Site) -> None:
    with (
        site.serving() as one,
        site.serving() as other,
        one.under_fire(clients=2),
        other.under_fire(clients=2),
    ):
        eventually(lambda: site.has_acknowledged(30) and site.noted("ended"))
        one.kill()
        goal = len(site.acknowledged) + 20
        eventually(lambda: site.has_acknowledged(goal))
        other.stop()
    site.finish()
    check_each_is_handled(site, once=False)


def test_the_run_of_a_killed_replica_is_begun_again_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = Site(tmp_path, PATIENT)
    with site.serving() as one:
        one.deliver("-s1")
        eventually(lambda: site.noted("began"))
        with site.serving() as other:
            one.kill()
            (tmp_path / "go-on").touch()
            eventually(lambda: site.noted("ended"))
            other.stop()
    assert site.noted("began") == Counter({"-s1": 2})


@pytest.mark.long
def test_replicas_that_are_stopped_one_after_the_other_lose_nothing(site: Site) -> None:
    with site.serving() as first, first.under_fire(clients=2), site.serving() as second:
        eventually(lambda: site.has_acknowledged(20))
        with second.under_fire(clients=2):
            first.stop()
            goal = len(site.acknowledged) + 20
            eventually(lambda: site.has_acknowledged(goal))
            second.stop()
    site.finish()
    check_each_is_handled(site, once=False)
    with opened(site.folder) as database:
        assert rows(database, runners) == []


@pytest.mark.long
def test_calls_outlive_a_server_that_is_restarted_under_load(tmp_path: Path) -> None:
    try:
        postgres = Postgres()
    except postgres_server.NoServerError as error:
        pytest.skip(str(error))
    databases.use(tmp_path, postgres.url.render_as_string(hide_password=False))
    site = Site(tmp_path, HANDLERS)
    try:
        with (
            site.serving() as one,
            site.serving() as other,
            one.under_fire(clients=2),
            other.under_fire(clients=2),
        ):
            eventually(lambda: site.has_acknowledged(20))
            postgres.stop("immediate")
            postgres.start()
            goal = len(site.acknowledged) + 20
            eventually(lambda: site.has_acknowledged(goal))
            one.stop()
            other.stop()
        site.finish()
        check_each_is_handled(site, once=False)
    finally:
        postgres.remove()


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """A process that only calls handlers, and is stopped in good order."""
    url = make_url(url_in(folder)).set(drivername="postgresql")
    target = WORKER.format(secret=SECRET, url=url.render_as_string(hide_password=False))
    (folder / "handlers.py").write_text(target)
    command = [SCRIPT, "worker", "handlers.py", "--port", "0"]
    with Program(command, folder=folder) as process:
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_handlers_may_be_called_by_workers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_RUN_HANDLERS", "0")
    site = Site(tmp_path, HANDLERS)
    with site.serving() as server:
        server.deliver("-s1")
        eventually(lambda: site.states() == {"pending"})
        with working(tmp_path):
            eventually(lambda: site.states() == {"succeeded"})
        server.stop()
    assert not site.noted("began")

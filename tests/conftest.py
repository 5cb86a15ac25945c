"""What every test has: an application on a call log of its own, and ways to look in.

No setting of the surroundings reaches a test: neither the environment's nor a `.env` file's.
"""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from argon2 import PasswordHasher
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from millis_hooks import MillisHooks
from millis_hooks.call_log import database as call_log_database
from millis_hooks.call_log.postgres import driver_url
from millis_hooks.call_log.queries import call_list
from millis_hooks.operators import accounts
from support import databases
from support.app import SECRET, MakeHooks, Rows
from support.quick_requests import quick_requests

#: Examples of a property, the same ones each time. Others, and more: --hypothesis-profile long
hypothesis.settings.register_profile(
    "everyday",
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("long", max_examples=500, deadline=None)
hypothesis.settings.load_profile("everyday")


_folders = count(1)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test's own. Pytest's fixture reads the names of all others to name it."""
    folder = tmp_path_factory.getbasetemp() / str(next(_folders))
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("MILLIS_HOOKS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `both_databases` on each of them."""
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    if "both_databases" in marks and "sqlite_only" not in marks:
        metafunc.parametrize("database_kind", databases.KINDS, indirect=True, scope="module")


#: What takes longest or waits most is begun first, so that no process is alone with it at the end.
FIRST = (
    "tests/browser/",
    "tests/processes/",
    "tests/project/",
    "tests/testing/",
    "tests/runs/",
    "tests/webhooks/",
    "tests/server/",
    "tests/sandbox/",
    "tests/cli/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort folders: those of many short files come last."""

    def place(item: pytest.Item) -> int:
        return next((n for n, each in enumerate(FIRST) if item.nodeid.startswith(each)), len(FIRST))

    items.sort(key=place)


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """One process runs a file, and one all tests with the browser: they share it and a server."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "tests/browser" if file.startswith("tests/browser/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Have one process more than processors: many tests wait for something."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Let the collector leave alone what is there before the first test, and come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a report be told to another process, whatever was logged: surrogates cannot."""
    report = yield
    report.sections = [
        (name, content.encode(errors="backslashreplace").decode())
        for name, content in report.sections
    ]
    return report


@pytest.fixture(autouse=True, scope="session")
def real_hasher() -> Iterator[Callable[[], PasswordHasher]]:
    """Hash passwords as quickly as argon2 can: each sign-in would else take 25 ms and 19 MiB."""
    real, quick = accounts._hasher, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_hasher", lambda: quick)
        yield real


@pytest.fixture(autouse=True, scope="session")
def real_pragmas() -> Iterator[tuple[str, ...]]:
    """Let no commit in a file wait for the disk; those of programs that are started do."""
    real = call_log_database._PRAGMAS
    with pytest.MonkeyPatch.context() as patch:
        quick = tuple(pragma.replace("=FULL", "=OFF") for pragma in real)
        patch.setattr(call_log_database, "_PRAGMAS", quick)
        yield real


@pytest.fixture(autouse=True, scope="session")
def _shared_statements() -> Iterator[None]:
    """Share compiled statements: each engine, and so each test, would compile all of them anew."""
    statements: LRUCache[Any, Any] = LRUCache(5000)
    shared = property(lambda _: statements, lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_compiled_cache", shared, raising=False)
        # Statements are remembered by their dialect, of which each engine has one.
        patch.setattr(DefaultDialect, "__hash__", lambda dialect: hash(type(dialect)))
        patch.setattr(DefaultDialect, "__eq__", lambda dialect, other: type(dialect) is type(other))
        yield


@pytest.fixture(autouse=True, scope="session")
def _patient_counts() -> Iterator[None]:
    """Let a list of calls count to the end, however busy this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_list, "COUNT_S", 60.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _quick_requests() -> Iterator[None]:
    with quick_requests():
        yield


@pytest.fixture(autouse=True, scope="module")
def database_kind(request: pytest.FixtureRequest) -> Iterator[databases.Kind]:
    """What a test is run on. A fixture of a module that makes a call log has to ask for it."""
    kind: databases.Kind = getattr(request, "param", "sqlite")
    with databases.on(kind):
        yield kind


@pytest.fixture(autouse=True)
def _freed_databases() -> Iterator[None]:
    with databases.freed():
        yield


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The test's own call log, empty."""
    return Path(shutil.copy(databases.empty_file(), tmp_path / "calls.db"))


@pytest.fixture
def call_log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the test's own call log is."""
    if databases.current() == "postgresql":
        return databases.url_in(tmp_path)
    return f"sqlite:///{request.getfixturevalue('database')}"


@pytest.fixture
def make_hooks(call_log_url: str) -> MakeHooks:
    """Makes applications on the test's database, closed by SECRET unless told otherwise."""

    def make(*arguments: Any, **settings: Any) -> MillisHooks:
        defaults = {"secrets": SECRET, "database_url": call_log_url}
        return MillisHooks(*arguments, **(defaults | settings))

    return make


@pytest.fixture
def hooks(make_hooks: MakeHooks) -> MillisHooks:
    return make_hooks()


@pytest.fixture
def rows(request: pytest.FixtureRequest, call_log_url: str) -> Rows:
    """Reads the database as anybody may."""

    def read_server(sql: str, *values: object) -> list[dict[str, Any]]:
        engine = create_engine(driver_url(call_log_url), poolclass=NullPool)
        with engine.connect() as connection:
            found = connection.exec_driver_sql(sql.replace("?", "%s"), values)
            return [dict(row) for row in found.mappings()]

    if databases.current() == "postgresql":
        return read_server
    database = request.getfixturevalue("database")

    def read(sql: str, *values: object) -> list[dict[str, Any]]:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, values)]
        finally:
            connection.close()

    return read


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """What a handler that hangs waits for: set at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()

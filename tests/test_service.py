from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from millis_hooks.call_log.tables import handler_runs
from millis_hooks.exceptions import StorageError
from millis_hooks.handlers.routing import Router
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.runs.runner import Runner
from millis_hooks.service import Service
from millis_hooks.settings import Settings
from support.databases import url_in
from support.storage import ended, opened, rows, writing
from support.waiting import eventually

pytestmark = pytest.mark.both_databases


def settings_in(folder: Path) -> Settings:
    return Settings.load(database_url=url_in(folder), insecure=True)


@pytest.mark.sqlite_only
def test_a_start_that_fails_leaves_the_lifespan_it_entered(tmp_path: Path) -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        steps.append("entered")
        yield
        steps.append("left")

    with pytest.raises(StorageError, match="cannot be opened"):
        asyncio.run(Service.start(settings_in(tmp_path / "nowhere"), Router(), lifespan))
    assert steps == ["entered", "left"]


def test_a_start_that_fails_late_leaves_no_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StorageError("gone")

    monkeypatch.setattr("millis_hooks.service.NearMisses", fail)
    before = set(threading.enumerate())
    with pytest.raises(StorageError, match="gone"):
        asyncio.run(Service.start(settings_in(tmp_path), Router(), None))
    eventually(lambda: not set(threading.enumerate()) - before)


def test_calls_an_earlier_process_left_may_be_processed_before_there_is_a_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class LateRunner(Runner):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            with opened(tmp_path) as database:
                eventually(lambda: rows(database, handler_runs))
            super().__init__(*arguments, **options)

    monkeypatch.setattr("millis_hooks.service.Runner", LateRunner)
    router = Router()

    @router.on_end_of_call
    def see(call: EndOfCall) -> None: ...

    with opened(tmp_path) as database, writing(database) as writer:
        asyncio.run(writer.store(ended("-s1")))
        asyncio.run(start_and_stop(tmp_path, router))
        assert [run.state for run in rows(database, handler_runs)] == ["succeeded"]
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert [each for each in warnings if not each.startswith("insecure is set")] == []


async def start_and_stop(folder: Path, router: Router) -> None:
    service = await Service.start(settings_in(folder), router, None)
    service.check_storage()
    with opened(folder) as database:
        eventually(lambda: {run.state for run in rows(database, handler_runs)} == {"succeeded"})
    await service.stop()

"""Reconciling: what never arrived is fetched, filled in once, and handled once."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Row
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner, Result

from millis_hooks import EndOfCall, MillisHooks
from millis_hooks.call_log import missing_ends
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.redaction import redact
from millis_hooks.call_log.tables import (
    calls,
    deliveries,
    forgotten,
    handler_runs,
    outbound_calls,
    reconciled,
)
from millis_hooks.call_log.upkeep.removal import find_session, forget
from millis_hooks.call_log.writer import Writer
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import (
    ConfigError,
    MillisBusyError,
    MillisKeyError,
    MillisNotFoundError,
    MillisUnreachableError,
)
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.millis_api import MillisApi, transport
from millis_hooks.millis_api import reconcile as reconciling
from millis_hooks.millis_api.reconcile import (
    FIRST_LOOK,
    OVERLAP,
    Reconciled,
    Reconciliation,
    reconciler,
)
from millis_hooks.protocol.samples import end_of_call_body
from support.app import END_OF_CALL, SECRET, MakeHooks, serving
from support.databases import url_in
from support.fake_millis import BASE, KEY, FakeMillis, served
from support.storage import NOW, ended, opened, prefetched, rows, writing
from support.waiting import eventually

HOUR_AGO = NOW - timedelta(hours=1)
DAY_AGO = NOW - timedelta(days=1)
OURS, THEIRS = "+14155550199", "+14155550134"
#: A number that nobody in the sandbox reaches.
BUSY = "+15005550003"


class Log:
    """A call log, and looks into Millis' call logs for it."""

    def __init__(self, database: Database, writer: Writer, millis: FakeMillis) -> None:
        self.database = database
        self.writer = writer
        self.millis = millis
        self.rests: list[float] = []
        self.processor = Processor(database, writer, runs_for=lambda call: ["notify"])

    def reconciliation(
        self, *, at: datetime = NOW, api: MillisApi | None = None, **options: Any
    ) -> Reconciliation:
        async def rest(seconds: float) -> None:
            self.rests.append(seconds)

        return Reconciliation(
            api or self.millis.client(),
            self.database.reader,
            self.writer.run,
            now=lambda: at,
            rest=rest,
            **options,
        )

    def look(self, since: datetime | None = None, **options: Any) -> Reconciled:
        """Look once, and process what was filled in."""
        reconciliation = self.reconciliation(**options)
        found = asyncio.run(reconciliation.look(since or reconciliation.since()))
        self.process()
        return found

    def receive(self, *batch: Delivery) -> None:
        self.writer.run(lambda connection: insert_deliveries(connection, batch))
        self.process()

    def process(self) -> None:
        while self.processor.process_chunk():
            pass

    def call(self, session_id: str) -> Row[Any]:
        (found,) = (row for row in rows(self.database, calls) if row.session_id == session_id)
        return found

    def ends(self) -> list[tuple[str, str | None]]:
        """The ends that are stored: whose, and from where."""
        found = rows(self.database, deliveries)
        return [(row.session_id, row.source) for row in found if row.kind == "end_of_call"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with opened(tmp_path) as database, writing(database) as writer:
        yield Log(database, writer, FakeMillis())


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.0)


@pytest.mark.both_databases
def test_a_call_missed_during_downtime_is_filled_in(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO, duration=60)
    assert log.look(DAY_AGO) == Reconciled(listed=1, filled=1)
    call = log.call("-s1")
    assert (call.source, call.call_status) == ("millis_api", "user-ended")
    assert call.received_at == call.ended_at == HOUR_AGO + timedelta(seconds=60)
    (delivery,) = rows(log.database, deliveries)
    assert delivery.reason == "from Millis' call log"


@pytest.mark.both_databases
def test_it_is_handled_once_however_often_is_looked(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO)
    assert [log.look(DAY_AGO).filled for _ in range(3)] == [1, 0, 0]
    assert [run.handler for run in rows(log.database, handler_runs)] == ["notify"]


def test_a_prefetch_gets_the_end_it_waited_for(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO))
    log.millis.add("-s1", at=HOUR_AGO, call_status="no-answer", duration=None, chat=None)
    log.look(DAY_AGO)
    call = log.call("-s1")
    assert (call.outcome, call.prefetch_outcome, call.source) == (
        "unreached",
        "fresh",
        "millis_api",
    )
    assert call.received_at == HOUR_AGO


@pytest.mark.both_databases
def test_an_end_that_was_received_stays(log: Log) -> None:
    body = end_of_call_body(session_id="-s1", call_status="busy")
    log.receive(ended("-s1", body, at=HOUR_AGO))
    log.millis.add("-s1", at=HOUR_AGO, call_status="failed")
    assert log.look(DAY_AGO).filled == 0
    assert log.ends() == [("-s1", None)]


@pytest.mark.parametrize("is_listed", [True, False])
def test_an_end_of_a_call_under_way_is_followed_by_what_became_of_it(
    log: Log, is_listed: bool
) -> None:
    sent = b'{"session_id": "-s1", "call_status": "ringing", "chat": []}'
    log.receive(ended("-s1", sent, at=HOUR_AGO))
    log.millis.add("-s1", at=HOUR_AGO if is_listed else DAY_AGO, call_status="agent-ended")
    assert [log.look(NOW - timedelta(hours=2)).filled for _ in range(3)] == [1, 0, 0]
    assert log.call("-s1").call_status == "agent-ended"
    assert log.call("-s1").turns
    assert [run.handler for run in rows(log.database, handler_runs)] == ["notify"]


@pytest.mark.both_databases
def test_an_end_that_is_stored_and_not_processed_yet_stays_too(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO)
    log.writer.run(lambda connection: insert_deliveries(connection, [ended("-s1")]))
    assert log.look(DAY_AGO).filled == 0


def test_an_end_that_arrives_while_it_is_fetched_stays_as_well(log: Log) -> None:
    fetched = ended("-s1", source=missing_ends.SOURCE)
    log.receive(ended("-s1"))
    assert log.writer.run(partial(missing_ends.fill_in, fetched=[fetched])) == 0


def test_a_webhook_that_comes_after_all_is_a_redelivery(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO)
    log.look(DAY_AGO)
    log.receive(ended("-s1"))
    assert log.ends() == [("-s1", "millis_api"), ("-s1", None)]
    assert (log.call("-s1").repeated, log.call("-s1").source) == (True, "millis_api")
    assert len(rows(log.database, handler_runs)) == 1


def test_an_end_that_came_broken_is_fetched(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO), ended("-s1", b"{", outcome="unparsed"))
    log.millis.add("-s1", at=HOUR_AGO)
    assert log.look(DAY_AGO).filled == 1
    assert log.call("-s1").outcome == "completed"


def test_a_call_under_way_is_left_alone(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO))
    log.millis.add("-s1", at=HOUR_AGO, call_status="in-progress", duration=None)
    assert log.look(DAY_AGO) == Reconciled(listed=1)
    assert log.millis.paths == ["/call-logs"]


def test_a_webhook_has_time_to_arrive(log: Log) -> None:
    log.millis.add("-s1", at=NOW - timedelta(minutes=6), duration=90)
    assert log.look(DAY_AGO).filled == 0
    assert log.look(DAY_AGO, at=NOW + timedelta(minutes=1)).filled == 1


def test_a_call_that_is_in_no_list_is_fetched_by_itself(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO), prefetched("-gone", at=HOUR_AGO))
    log.millis.add("-s1", at=DAY_AGO - timedelta(hours=1))
    assert log.look(DAY_AGO) == Reconciled(filled=1, unknown=1)
    assert log.millis.paths == ["/call-logs", "/call-logs/-gone", "/call-logs/-s1"]


@pytest.mark.both_databases
def test_a_call_that_was_started_is_followed_to_its_end(log: Log) -> None:
    started = partial(missing_ends.remember_started, session_id="-s1", now=HOUR_AGO)
    log.writer.run(started)
    log.writer.run(started)
    log.millis.add("-s1", at=DAY_AGO - timedelta(hours=1), call_status="busy")
    assert log.look(DAY_AGO).filled == 1
    assert log.call("-s1").outcome == "unreached"
    assert log.look(DAY_AGO).filled == 0
    assert log.millis.paths.count("/call-logs/-s1") == 1


@pytest.mark.both_databases
def test_what_is_remembered_of_started_calls_is_not_kept_for_ever(log: Log) -> None:
    log.writer.run(partial(missing_ends.remember_started, session_id="-old", now=DAY_AGO))
    log.writer.run(partial(missing_ends.remember_started, session_id="-new", now=HOUR_AGO))
    log.look(HOUR_AGO)
    assert [row.session_id for row in rows(log.database, outbound_calls)] == ["-new"]


def test_sandbox_calls_are_not_looked_up_at_millis(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO, source="sandbox"))
    assert log.look(DAY_AGO) == Reconciled()


def test_sandbox_calls_stay_sandbox_calls(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO, source="sandbox", dry_run=True))
    log.millis.add("-s1", at=HOUR_AGO)
    log.look(DAY_AGO)
    end = rows(log.database, deliveries)[-1]
    assert (end.kind, end.source, end.dry_run) == ("end_of_call", "sandbox", True)


def test_calls_of_an_emulator_are_sandbox_calls(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO)
    asgi = httpx2.ASGITransport(app=log.millis.app)
    api = MillisApi(KEY, base_url="http://127.0.0.1:8000", transport=asgi)
    log.look(DAY_AGO, api=api)
    assert log.call("-s1").source == "sandbox"


@pytest.mark.both_databases
def test_what_was_forgotten_is_not_fetched_again(log: Log) -> None:
    log.receive(ended("-s1", at=HOUR_AGO))
    log.writer.run(lambda connection: connection.execute(handler_runs.delete()))
    log.millis.add("-s1", at=HOUR_AGO)
    list(forget(log.writer.run, find_session(log.database.reader, "-s1")))
    assert log.look(DAY_AGO).filled == 0
    assert b"-s1" not in b"".join(row.session_hash for row in rows(log.database, forgotten))


def test_a_list_that_leaves_out_what_was_said_is_completed(log: Log) -> None:
    entry = log.millis.add("-s1", at=HOUR_AGO)
    short = JSONResponse({"histories": [entry | {"chat": None}], "next_cursor": None})
    log.millis.troubles = [short]
    log.look(DAY_AGO)
    assert log.call("-s1").turns > 0
    assert log.millis.paths == ["/call-logs", "/call-logs/-s1"]


def test_one_call_that_cannot_be_fetched_stops_no_other(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO), prefetched("-s2", at=HOUR_AGO))
    log.millis.add("-s2", at=DAY_AGO - timedelta(hours=1))
    nothing = JSONResponse({"histories": [], "next_cursor": None})
    log.millis.troubles = [nothing, *[JSONResponse({}, 500)] * 4]
    assert log.look(DAY_AGO) == Reconciled(filled=1, unreadable=1)
    assert "answered 500" in caplog.text


@pytest.mark.parametrize(
    ("troubles", "error"),
    [
        ([JSONResponse({}, 401)], MillisKeyError),
        ([httpx2.ConnectError("refused")] * 4, MillisUnreachableError),
        ([JSONResponse({}, 429, {"Retry-After": "60"})], MillisBusyError),
    ],
)
def test_a_failed_reconciliation_does_not_count(
    log: Log, troubles: list[Any], error: type[Exception]
) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO))
    nothing = JSONResponse({"histories": [], "next_cursor": None})
    log.millis.troubles = [nothing, *troubles]
    with pytest.raises(error):
        log.look(DAY_AGO)
    assert rows(log.database, reconciled) == []


@pytest.mark.both_databases
def test_an_interrupted_look_starts_again(log: Log) -> None:
    for number in range(5):
        log.millis.add(f"-s{number}", at=HOUR_AGO - timedelta(minutes=number))
    page = JSONResponse({"histories": log.millis.entries[:2], "next_cursor": 1})
    log.millis.troubles = [page, JSONResponse({}, 401)]
    with pytest.raises(MillisKeyError):
        log.look(DAY_AGO)
    assert len(log.ends()) == 2
    assert log.look(DAY_AGO) == Reconciled(listed=5, filled=3)


@pytest.mark.both_databases
def test_the_next_look_begins_before_the_end_of_the_last(log: Log) -> None:
    log.receive(prefetched("-s1", at=HOUR_AGO))
    assert log.reconciliation().since() == HOUR_AGO
    log.look()
    assert log.reconciliation(at=NOW + timedelta(days=3)).since() == NOW - OVERLAP


def test_the_first_look_goes_back_a_day(log: Log) -> None:
    assert log.reconciliation().since() == NOW
    log.receive(prefetched("-s1", at=NOW - timedelta(days=9)))
    assert log.reconciliation().since() == NOW - FIRST_LOOK


def test_a_look_that_leaves_a_gap_is_not_the_last(log: Log) -> None:
    log.look(DAY_AGO, at=NOW - timedelta(hours=5))
    log.look(NOW - timedelta(hours=1))
    (row,) = rows(log.database, reconciled)
    assert (row.api, row.until) == (BASE, NOW - timedelta(hours=5))


def test_a_trial_stores_nothing(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO)
    assert log.look(DAY_AGO, is_trial=True) == Reconciled(listed=1, filled=1)
    assert rows(log.database, deliveries) == rows(log.database, reconciled) == []


def test_requests_to_millis_are_paced(log: Log) -> None:
    for number in range(5):
        log.millis.add(f"-s{number}", at=HOUR_AGO - timedelta(minutes=number))
    log.look(DAY_AGO)
    assert log.rests == [0.5] * 3


def test_a_look_reports_its_progress(log: Log) -> None:
    for number in range(3):
        log.millis.add(f"-s{number}", at=HOUR_AGO - timedelta(minutes=number))
    told: list[int] = []
    log.look(DAY_AGO, tell=lambda so_far: told.append(so_far.listed))
    assert told[-1] == 3
    assert sorted(told) == told


def test_ends_are_redacted_before_they_are_stored(log: Log) -> None:
    log.millis.add("-s1", at=HOUR_AGO)
    hide = partial(redact, mask=MaskPolicy(numbers="full", words="full"))
    log.look(DAY_AGO, redact=hide)
    (delivery,) = rows(log.database, deliveries)
    assert (delivery.redacted, THEIRS.encode() in delivery.body) == (True, False)


@pytest.mark.parametrize(
    "odd",
    [
        {"chat": 7, "ts": "never", "duration": -1, "voip": "x", "cost_breakdown": {"a": 1}},
        {"ts": 1e300, "duration": 1e300},
        {"ts": 95617584000, "duration": None, "metadata": {"k": "\ud800\0"}},
        {"call_status": "<script>alert(1)</script>", "agent_id": "a" * 10_000},
    ],
)
def test_odd_entries_are_kept_and_stop_nothing(log: Log, odd: dict[str, Any]) -> None:
    entry = log.millis.add("-odd", at=HOUR_AGO) | odd
    fine = log.millis.add("-fine", at=HOUR_AGO)
    body = json.dumps({"histories": [entry, fine]}).encode()
    log.millis.troubles = [Response(body)]
    assert log.look(DAY_AGO).filled == 2
    assert {row.session_id for row in rows(log.database, calls)} == {"-odd", "-fine"}


class Looks:
    """A reconciler of a call log, and what it did."""

    def __init__(self, log: Log, *, is_ours: Callable[[], bool] = lambda: True) -> None:
        self.filled = threading.Event()
        self.reconciler = reconciler(
            log.reconciliation, every_s=0.01, is_ours=is_ours, on_filled=self.filled.set
        )


def test_the_service_looks_by_itself_and_stops_at_once(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "FIRST_S", 0.0)
    log.receive(prefetched("-s1", at=HOUR_AGO))
    log.millis.add("-s1", at=HOUR_AGO)
    looks = Looks(log)
    looks.reconciler.start()
    eventually(looks.filled.is_set)
    eventually(lambda: log.millis.paths.count("/call-logs") > 2)
    looks.reconciler.close()
    assert log.ends() == [("-s1", "millis_api")]


def test_a_failed_look_is_logged_and_repeated(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconciling, "FIRST_S", 0.0)
    log.millis.troubles = [JSONResponse({"detail": "Invalid key"}, 401), ValueError("a bug")]
    looks = Looks(log)
    looks.reconciler.start()
    eventually(lambda: log.millis.paths.count("/call-logs") > 2)
    looks.reconciler.close()
    told = [record.levelno for record in caplog.records if record.name.startswith("millis_hooks")]
    assert told == [logging.WARNING, logging.ERROR]
    assert "Invalid key" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.both_databases
def test_only_one_process_of_several_looks(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "FIRST_S", 0.0)
    asked = threading.Event()

    def is_ours() -> bool:
        asked.set()
        return False

    looks = Looks(log, is_ours=is_ours)
    looks.reconciler.start()
    eventually(asked.is_set)
    looks.reconciler.close()
    assert log.millis.asked == []


def test_a_stop_waits_for_no_answer(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "FIRST_S", 0.0)
    asked = threading.Event()

    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    api = MillisApi(KEY, base_url=BASE, transport=Silent())
    looks = reconciler(lambda: log.reconciliation(api=api), every_s=60, is_ours=lambda: True)
    looks.start()
    eventually(asked.is_set)
    looks.close()


def test_a_service_with_a_key_fills_in_and_handles(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "FIRST_S", 0.01)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    log.receive(prefetched("-s1", at=an_hour_ago))
    log.millis.add("-s1", at=an_hour_ago, call_status="no-answer")
    seen: list[tuple[str, str | None]] = []
    with served(log.millis) as address:
        hooks = MillisHooks(
            secrets=SECRET, database_url=url_in(tmp_path), api_key=KEY, api_url=address
        )

        @hooks.on_end_of_call(outcome="unreached")
        async def call_back(call: EndOfCall) -> None:
            started = await hooks.millis.start_outbound_call(OURS, str(call.customer_phone))
            seen.append((call.session_id, started.session_id))

        with serving(hooks) as client:
            eventually(lambda: [row.state for row in rows(log.database, handler_runs)])
            eventually(lambda: rows(log.database, handler_runs)[0].state == "succeeded")
            real = end_of_call_body(session_id="-s2", call_status="busy")
            client.post("/millis/end-of-call", content=real)
            eventually(lambda: [row.state for row in rows(log.database, handler_runs)][1:])
            eventually(lambda: rows(log.database, handler_runs)[1].state == "succeeded")
    (first, _), (second, started) = seen
    assert (first, second) == ("-s1", "-s2")
    # A stand-in on this machine knows of rehearsals alone, and those are not followed.
    assert [row.session_id for row in rows(log.database, outbound_calls)] == [started]


def test_a_run_that_may_have_called_is_not_repeated(
    log: Log, make_hooks: MakeHooks, tmp_path: Path
) -> None:
    hooks, api = make_hooks(database_url=url_in(tmp_path)), log.millis.client()
    log.millis.troubles = [Response("", 502)]

    @hooks.on_end_of_call
    async def call_back(call: EndOfCall) -> None:
        await api.start_outbound_call(OURS, call.customer_phone)

    with serving(hooks) as client:
        client.post(END_OF_CALL, content=end_of_call_body())
        eventually(lambda: any(run.reason for run in rows(log.database, handler_runs)))
    (run,) = rows(log.database, handler_runs)
    assert (run.state, run.reason) == ("failed", "Millis answered 502. The call may have begun.")
    assert log.millis.paths == ["/start_outbound_call"]


def test_a_service_without_a_key_does_not_reconcile(hooks: MillisHooks) -> None:
    with serving(hooks):
        assert "millis-hooks-reconcile" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConfigError, match="MILLIS_HOOKS_API_KEY"):
        _ = hooks.millis


def test_an_invalid_api_key_stops_the_start(make_hooks: MakeHooks) -> None:
    with pytest.raises(ConfigError, match="cannot be sent"):
        asyncio.run(make_hooks(api_key="Bearer key")._start())


@pytest.fixture
def reconcile(log: Log) -> Iterator[Callable[..., Result]]:
    """Run the command on the log, against Millis on this machine."""
    with served(log.millis) as address:
        settings = {"API_KEY": KEY, "API_URL": address, "DATABASE_URL": str(log.database.url)}
        env = {f"MILLIS_HOOKS_{name}": value for name, value in settings.items()}
        yield lambda *args, **more: CliRunner().invoke(app, ["reconcile", *args], env=env | more)


def test_the_command_fills_in_and_says_so(log: Log, reconcile: Callable[..., Result]) -> None:
    log.millis.add("-s1", at=datetime.now(UTC) - timedelta(hours=1))
    told = reconcile("--since", "2020-01-01", "--dry-run")
    assert told.stdout == "Nothing was stored. Calls in Millis' call logs: 1; filled in: 1.\n"
    assert log.ends() == []
    told = reconcile("--since", "2020-01-01")
    assert told.stdout == "Calls in Millis' call logs: 1; filled in: 1.\n"
    assert "calls the handlers for them when it starts" in told.stderr
    assert log.ends() == [("-s1", "sandbox")]


def test_the_command_reports_errors(log: Log, reconcile: Callable[..., Result]) -> None:
    assert reconcile(MILLIS_HOOKS_API_KEY="").exit_code == 2
    refused = reconcile(MILLIS_HOOKS_API_URL="http://127.0.0.1:1")
    assert (refused.exit_code, "cannot be reached" in refused.stderr) == (2, True)
    assert reconcile("--since", "yesterday").exit_code == 2


def test_ends_may_be_fetched_at_once(log: Log) -> None:
    log.millis.add("-s1", at=NOW - timedelta(seconds=60), duration=59)
    assert log.look(NOW - timedelta(hours=1)) == Reconciled(listed=1)
    filled = log.look(NOW - timedelta(hours=1), settles_in=timedelta())
    assert filled == Reconciled(listed=1, filled=1)


def test_the_sandbox_is_reconciled_with_like_millis(log: Log, make_hooks: MakeHooks) -> None:
    hooks = make_hooks(database_url=str(log.database.url), sandbox=True, sandbox_key=KEY)
    asgi = httpx2.ASGITransport(app=hooks)
    api = MillisApi(KEY, base_url="http://127.0.0.1/sandbox/api", transport=asgi)

    @hooks.on_end_of_call(outcome="unreached")
    def call_back(call: EndOfCall) -> None:
        assert call.sandbox

    async def call_and_look() -> Reconciled:
        async with hooks.running():
            started = await api.start_outbound_call(OURS, BUSY, metadata={"tier": "gold"})
            while not await is_over(api, str(started.session_id)):
                continue
            ten_minutes_later = datetime.now(UTC) + timedelta(minutes=10)
            look = log.reconciliation(api=api, at=ten_minutes_later)
            result = await look.look(ten_minutes_later - timedelta(hours=1))
            hooks.service.call_log.processor.wake()
            await asyncio.to_thread(eventually, partial(is_succeeded, log))
            return result

    assert asyncio.run(call_and_look()) == Reconciled(listed=1, filled=1)
    (call,) = rows(log.database, calls)
    assert (call.call_status, call.source, call.to_phone) == ("busy", "sandbox", BUSY)


async def is_over(api: MillisApi, session_id: str) -> bool:
    try:
        return (await api.call_log(session_id)).is_over
    except MillisNotFoundError:  # it is not under way yet
        return False


def is_succeeded(log: Log) -> bool:
    return [run.state for run in rows(log.database, handler_runs)] == ["succeeded"]


def test_an_entry_that_cannot_be_had_in_full_is_kept_as_it_was_listed(log: Log) -> None:
    entry = log.millis.add("-s1", at=HOUR_AGO) | {"chat": None}
    listed = JSONResponse({"histories": [entry], "next_cursor": None})
    log.millis.troubles = [listed, JSONResponse({}, 404)]
    assert log.look(DAY_AGO).filled == 1
    assert log.call("-s1").turns == 0


def test_the_result_of_a_look_in_words() -> None:
    assert str(Reconciled(listed=1200, filled=3, unknown=2, unreadable=1)) == (
        "Calls in Millis' call logs: 1,200; filled in: 3. Not in them, and without an end here: 2. "
        "Could not be read: 1."
    )


def test_a_command_that_is_stopped_says_how_far_it_came(
    log: Log, reconcile: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reconciliation, "look", stop)
    told = reconcile()
    assert (told.exit_code, "Run the command again to continue." in told.stderr) == (130, True)

"""`/metrics`: who may read it, and that what it says is what has happened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from millis_hooks import ConfigError, MillisHooks, PrefetchRequest
from millis_hooks.call_log.call_rows import pending_run
from millis_hooks.call_log.health import read_backlog
from millis_hooks.call_log.tables import calls, handler_runs
from millis_hooks.observability.metrics import LoopLag
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import end_of_call_body
from millis_hooks.protocol.test_marks import mark_header
from support.app import AUTHORIZED, END_OF_CALL, PREFETCH, SECRET, MakeHooks, serving
from support.storage import NOW, ended, opened, writing
from support.waiting import eventually

TOKEN = "a-token-for-the-tests-of-metrics"
PASSWORD = "a password for tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}

Labels = dict[str, str]


def read(client: TestClient) -> dict[str, list[tuple[Labels, float]]]:
    """Everything that is told, by the name of the metric."""
    answer = client.get("/metrics", headers=BEARER)
    assert answer.status_code == 200
    told: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            told.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return told


def value(client: TestClient, name: str, **labels: str) -> float:
    found = read(client).get(f"millis_hooks_{name}", [])
    return sum(number for under, number in found if labels.items() <= under.items())


@pytest.fixture
def hooks(make_hooks: MakeHooks) -> MillisHooks:
    return make_hooks(metrics_token=TOKEN)


@pytest.fixture
def client(hooks: MillisHooks) -> Iterator[TestClient]:
    with serving(hooks) as client:
        yield client


def test_deliveries_are_counted_by_outcome(client: TestClient) -> None:
    client.get(PREFETCH)
    client.get(PREFETCH, headers={"Authorization": "Bearer wrong"})
    client.post(END_OF_CALL, content=end_of_call_body())
    client.post(END_OF_CALL, content=b"{")
    assert value(client, "deliveries_total", kind="prefetch", outcome="fresh") == 1
    assert value(client, "deliveries_total", kind="prefetch", outcome="rejected") == 1
    assert value(client, "deliveries_total", kind="end_of_call", outcome="stored") == 1
    assert value(client, "deliveries_total", kind="end_of_call", outcome="unparsed") == 1


def test_what_has_not_happened_yet_is_reported_as_zero_so_that_the_first_time_shows(
    client: TestClient,
) -> None:
    told = read(client)["millis_hooks_deliveries_total"]
    assert ({"kind": "end_of_call", "outcome": "not_stored"}, 0.0) in told


def test_a_missed_budget_is_counted_for_its_handler(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(metrics_token=TOKEN, prefetch_budget_s=0.02)

    @hooks.on_prefetch
    async def slow(call: PrefetchRequest) -> None:
        await asyncio.sleep(60)

    with serving(hooks) as client:
        client.get(PREFETCH)
        assert value(client, "prefetch_budget_misses_total", handler="slow") == 1
        assert value(client, "deliveries_total", kind="prefetch", outcome="late") == 1


def test_durations_and_batches_are_counted(client: TestClient) -> None:
    client.get(PREFETCH)
    client.post(END_OF_CALL, content=end_of_call_body())
    assert value(client, "prefetch_duration_seconds_count") == 1
    assert value(client, "store_duration_seconds_count") == 1
    assert value(client, "batch_deliveries_sum") == 2
    assert value(client, "commit_duration_seconds_count") >= 1


@pytest.mark.both_databases
def test_attempts_and_open_runs_are_reported_by_handler(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(metrics_token=TOKEN)

    @hooks.on_end_of_call(max_attempts=1)
    def book(call: EndOfCall) -> None:
        raise RuntimeError

    with serving(hooks) as client:
        client.post(END_OF_CALL, content=end_of_call_body())
        eventually(lambda: value(client, "runs", handler="book", state="failed") == 1)
        assert value(client, "attempts_total", handler="book", outcome="failed") == 1
        assert value(client, "attempt_duration_seconds_count") == 1


def test_attempts_for_calls_that_are_made_up_are_not_counted(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(metrics_token=TOKEN)
    handled: list[str] = []
    hooks.on_end_of_call(name="book")(lambda call: handled.append(call.session_id))
    with serving(hooks) as client:
        made_up = end_of_call_body(session_id="-Made-up")
        client.post(END_OF_CALL, content=made_up, headers=mark_header(SECRET, "-Made-up", "test"))
        eventually(lambda: handled == ["-Made-up"])
        client.post(END_OF_CALL, content=end_of_call_body())
        eventually(
            lambda: value(client, "attempts_total", handler="book", outcome="succeeded") == 1
        )
        assert value(client, "attempt_duration_seconds_count") == 1


def test_the_loops_are_measured(client: TestClient) -> None:
    loops = {labels["loop"] for labels, _ in read(client)["millis_hooks_loop_stalled_seconds"]}
    assert loops == {"serving", "handlers"}


def test_a_loop_that_serves_and_handles_is_measured_once(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(metrics_token=TOKEN, isolate_handlers=False)) as client:
        told = read(client)["millis_hooks_loop_stalled_seconds"]
    assert [labels["loop"] for labels, _ in told] == ["serving"]


@pytest.mark.both_databases
def test_errors_of_the_database_are_counted(hooks: MillisHooks, client: TestClient) -> None:
    engine = hooks.service.call_log.database.reader
    with engine.connect() as connection, pytest.raises(Exception, match="nowhere"):
        connection.exec_driver_sql("SELECT * FROM nowhere")
    assert value(client, "database_errors_total", operation="read") == 1
    assert value(client, "database_errors_total", operation="write") == 0


def test_openmetrics_is_sent_on_request(client: TestClient) -> None:
    headers = BEARER | {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = client.get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_a_strange_name_of_a_handler_stays_a_label(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(metrics_token=TOKEN)
    name = 'x"} 1 \\'
    hooks.on_end_of_call(name=name)(lambda call: None)
    with serving(hooks) as client:
        assert value(client, "attempts_total", handler=name, outcome="succeeded") == 0
        assert {"hook", "handler", "outcome"} == {
            *read(client)["millis_hooks_attempts_total"][0][0]
        }


@pytest.mark.parametrize(
    "headers",
    [{}, AUTHORIZED, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer "}],
    ids=["nothing", "the webhooks' secret", "another scheme", "an empty token"],
)
def test_metrics_require_a_token_or_sign_in(hooks: MillisHooks, headers: dict[str, str]) -> None:
    with serving(hooks, headers=headers) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 401
    assert "millis_hooks_deliveries" not in answer.text
    assert answer.headers["www-authenticate"] == "Bearer"


def test_without_a_token_an_empty_one_does_not_do(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(), headers={"Authorization": "Bearer "}) as client:
        assert client.get("/metrics").status_code == 401


def test_a_signed_in_operator_may_read_metrics(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(dashboard_password=PASSWORD), headers={}) as client:
        form = {"username": "admin", "password": PASSWORD}
        origin = {"Origin": "http://testserver"}
        client.post("/login", data=form, headers=origin, follow_redirects=False)
        assert "millis_hooks_deliveries_total" in client.get("/metrics").text


def test_they_are_open_where_that_was_chosen(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(metrics_open=True), headers={}) as client:
        assert client.get("/metrics").status_code == 200
        assert client.post("/metrics").status_code == 405


def test_a_token_that_can_be_guessed_is_refused(make_hooks: MakeHooks) -> None:
    with pytest.raises(ConfigError, match="metrics_token"):
        make_hooks(metrics_token="short")


def test_a_loop_that_is_blocked_is_overdue_until_it_comes_back() -> None:
    now = 0.0

    async def measure() -> None:
        nonlocal now
        loop, lags = asyncio.get_running_loop(), list[float]()
        lag = LoopLag(loop, lags.append, every_s=0.001, monotonic=lambda: now)
        lag.start()
        await asyncio.sleep(0)
        now = 3.001
        assert lag.overdue_s == pytest.approx(3)
        await asyncio.sleep(0.01)  # what is due by then has been called
        assert sum(lags) == pytest.approx(3)
        assert lag.overdue_s == 0
        lag.stop()

    asyncio.run(measure())


@pytest.mark.both_databases
def test_runs_whose_place_a_replay_has_taken_wait_for_nothing(tmp_path: Path) -> None:
    call = {"id": 1, "session_id": "-s1", "received_at": NOW}
    old = pending_run(1, "book", NOW - timedelta(hours=1)) | {"state": "failed"}
    with opened(tmp_path) as database:
        with database.writer.begin() as connection:
            connection.execute(calls.insert(), call)
            connection.execute(handler_runs.insert(), old | {"is_latest": False})
            connection.execute(handler_runs.insert(), pending_run(1, "book", NOW))
        with database.reader.connect() as connection:
            backlog = read_backlog(connection)
    assert [(runs.state, runs.number) for runs in backlog.runs] == [("pending", 1)]
    assert (backlog.pending, backlog.pending_since) == (1, NOW)


@pytest.mark.both_databases
def test_deliveries_that_are_not_processed_are_reported(tmp_path: Path) -> None:
    with opened(tmp_path) as database, writing(database) as writer:
        asyncio.run(writer.store(ended("-s1")))
        with database.reader.connect() as connection:
            backlog = read_backlog(connection)
    assert (backlog.unprocessed, backlog.unprocessed_since) == (1, NOW)

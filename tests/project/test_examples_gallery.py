"""What the examples do with a call that has ended, everything out there being `Outside`."""

from __future__ import annotations

import base64
import csv
import hmac
import importlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from millis_hooks import ConfigError
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import MillisUnreachableError
from millis_hooks.handlers.made_up_calls import Answers, all_went_well
from millis_hooks.protocol.reading import Json
from millis_hooks.protocol.samples import CUSTOMER_PHONE, OWN_PHONE, CallContent, end_of_call_body
from millis_hooks.runs.replay import replay_call
from millis_hooks.sandbox import Answer
from millis_hooks.sandbox.simulator import HandledCall
from millis_hooks.testing import HooksClient, MillisRequest
from support import databases
from support.outside import Outside
from support.paths import ROOT
from support.waiting import eventually

EXAMPLES = ROOT / "examples"
BOOKING = EXAMPLES / "tested_handlers/scenarios/booking.toml"
OPT_OUT = CallContent(extra_fields={"call_analysis": {"opt_out_detection": True}})
ALLOW = CallContent(function_calls=[{"name": "allow_calls", "params": {}}])

Load = Callable[..., Any]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Outside:
    return Outside(monkeypatch)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import an example anew, under these variables."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str, **variables: str) -> Any:
        monkeypatch.setenv("MILLIS_HOOKS_OWN_NUMBERS", OWN_PHONE)
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        return importlib.import_module(name)

    yield load
    for name in {path.stem for path in EXAMPLES.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def follow_up(load: Load) -> Any:
    return load("follow_up", **_calling(after_s="0"))


def _calling(after_s: str) -> dict[str, str]:
    return {"FOLLOW_UP_AFTER_S": after_s}


def unreached(
    example: Any, answers: Answers = all_went_well, **call: Any
) -> tuple[HandledCall, list[MillisRequest]]:
    """An outbound call that reached nobody, once it is handled, and what Millis was asked."""
    call = {"call_status": "no-answer", "from_phone": OWN_PHONE, "to_phone": CUSTOMER_PHONE} | call
    with HooksClient(example.hooks) as client:
        client.millis_answers = answers
        return client.end_of_call(**call), client.millis_requests


@pytest.mark.parametrize("call_status", ["no-answer", "busy", "voicemail-message"])
def test_whom_we_did_not_reach_is_called_again(follow_up: Any, call_status: str) -> None:
    about = {"appointment": "Tuesday"}
    call, [asked] = unreached(follow_up, call_status=call_status, metadata=about)
    assert call.run("follow_up").state == "succeeded"
    told = asked.body or {}
    assert (told["from_phone"], told["to_phone"]) == (OWN_PHONE, CUSTOMER_PHONE)
    assert told["metadata"] == {"appointment": "Tuesday", "follows": call.call.session_id}


@pytest.mark.parametrize(
    "call",
    [
        {"metadata": {"follows": "-an-earlier-one"}},
        {"call_status": "user-ended"},
        {"from_phone": CUSTOMER_PHONE, "to_phone": OWN_PHONE},
    ],
    ids=["a follow-up", "somebody spoke", "they called us"],
)
def test_other_calls_are_not_followed_up(follow_up: Any, call: dict[str, Any]) -> None:
    handled, asked = unreached(follow_up, **call)
    assert (handled.runs, asked) == ((), [])


def test_a_caller_who_opted_out_is_not_called(follow_up: Any) -> None:
    follow_up.people.note(CUSTOMER_PHONE, may_call=False, said_at=datetime.now(UTC))
    call, asked = unreached(follow_up)
    assert (call.run("follow_up").state, asked) == ("succeeded", [])


def test_no_call_is_placed_before_its_time(load: Load) -> None:
    call, asked = unreached(load("follow_up", **_calling(after_s="3600")))
    run = call.run("follow_up")
    assert (run.state, asked) == ("retrying", [])
    assert "not yet" in (run.attempts[0].error_message or "")


def test_a_dry_run_places_no_call(follow_up: Any) -> None:
    call, asked = unreached(follow_up, dry_run=True)
    assert (call.run("follow_up").state, asked) == ("succeeded", [])
    assert follow_up.claims.claim(call.call.session_id)


def test_a_call_that_may_have_begun_is_left_to_a_person(follow_up: Any) -> None:
    async def break_off(request: MillisRequest) -> tuple[int, bytes]:
        raise MillisUnreachableError("the line is dead", may_be_done=True)

    call, asked = unreached(follow_up, break_off)
    assert (call.run("follow_up").state, len(asked)) == ("failed", 1)
    assert not follow_up.claims.claim(call.call.session_id)


def test_a_call_that_did_not_begin_is_tried_again(follow_up: Any) -> None:
    async def be_busy(request: MillisRequest) -> tuple[int, bytes]:
        return 429, b""

    call, _ = unreached(follow_up, be_busy)
    assert call.run("follow_up").state == "retrying"
    assert follow_up.claims.claim(call.call.session_id)


def test_after_a_crash_no_call_is_placed_twice(follow_up: Any) -> None:
    follow_up.claims.claim("-crashed")
    call, asked = unreached(follow_up, session_id="-crashed")
    assert (call.run("follow_up").state, asked) == ("failed", [])


def test_follow_ups_want_to_know_our_numbers(load: Load) -> None:
    settings = _calling(after_s="0") | {"MILLIS_HOOKS_OWN_NUMBERS": ""}
    hooks = load("follow_up", **settings).hooks
    with pytest.raises(ConfigError, match="OWN_NUMBERS"), HooksClient(hooks):
        pass


def test_an_opt_out_lasts_until_it_is_withdrawn(load: Load) -> None:
    with HooksClient(load("do_not_call").hooks) as client:
        client.end_of_call(content=OPT_OUT, vintage="v2-extras")
        assert client.prefetch().metadata == {"may_be_called": False}
        client.end_of_call(content=ALLOW)
        assert client.prefetch().body == {}


def test_a_wish_that_comes_late_does_not_undo_a_later_one(load: Load, tmp_path: Path) -> None:
    people = load("do_not_call").DoNotCallList(str(tmp_path / "list.db"))
    now = datetime.now(UTC)
    people.note("+1 415 555 0134", may_call=False, said_at=now)
    people.note("+14155550134", may_call=True, said_at=now - timedelta(hours=1))
    assert people.forbids("+1 (415) 555-0134")


def test_a_dry_run_adds_no_opt_out(load: Load) -> None:
    with HooksClient(load("do_not_call").hooks) as client:
        client.end_of_call(content=OPT_OUT, vintage="v2-extras", dry_run=True)
        assert client.prefetch().body == {}


def test_a_wish_without_a_known_number_is_left_to_a_person(load: Load) -> None:
    with HooksClient(load("do_not_call").hooks, own_numbers=()) as client:
        call = client.end_of_call(content=OPT_OUT, vintage="v2-extras")
    assert call.run("note_wish").state == "failed"


@pytest.mark.parametrize(
    ("status", "path"), [("booked", "/confirmations"), ("taken", "/callbacks")]
)
def test_a_booking_is_settled(load: Load, outside: Outside, status: str, path: str) -> None:
    answer = Answer(200, f'{{"status": "{status}", "slot": "10:30"}}'.encode())
    with HooksClient(load("booking_results").hooks) as client:
        call = client.simulate(BOOKING, function_answers={"book_slot": answer}).handled
    assert call
    assert call.run("settle").state == "succeeded"
    assert (outside.paths, outside.told) == ([path], [{"phone": CUSTOMER_PHONE, "slot": "10:30"}])
    assert outside.asked[0].headers["idempotency-key"] == f"{call.call.session_id}:settle"


@pytest.mark.parametrize("result", [None, "Sorry", {"status": "perhaps", "slot": "10:30"}])
def test_an_answer_that_says_nothing_is_left_to_a_person(load: Load, result: Any) -> None:
    booked = CallContent(function_calls=[{"name": "book_slot", "params": {}, "result": result}])
    with HooksClient(load("booking_results").hooks) as client:
        assert (
            client.end_of_call(content=booked, vintage="v2-extras").run("settle").state == "failed"
        )


def test_an_office_that_is_down_is_reported_later(load: Load, outside: Outside) -> None:
    outside.answers = [httpx2.Response(503)]
    result: dict[str, Json] = {"status": "booked", "slot": "10:30"}
    booked = CallContent(function_calls=[{"name": "book_slot", "result": result}])
    with HooksClient(load("booking_results").hooks) as client:
        call = client.end_of_call(content=booked, vintage="v2-extras")
        assert call.run("settle").state == "retrying"


def test_a_crm_that_wakes_up_slowly_is_asked_again(load: Load) -> None:
    with HooksClient(load("unsteady_crm").hooks) as client:
        run = client.end_of_call().run("sync_crm")
        assert (run.state, run.max_attempts) == ("retrying", 4)
        assert client.end_of_call(call_status="busy").run("call_back").state == "succeeded"


N8N = {"N8N_WEBHOOK_URL": "https://n8n.example/webhook/secret", "N8N_SECRET": "0123456789abcdef"}


def test_n8n_gets_each_call_signed_as_standard_webhooks(load: Load, outside: Outside) -> None:
    outside.answers = [httpx2.Response(503), httpx2.Response(200)]
    with HooksClient(load("forward_to_n8n", **N8N).hooks) as client:
        first = client.end_of_call()
    assert first.run("n8n").state == "retrying"
    assert "n8n.example/webhook" not in repr(first)
    [request] = outside.asked
    id_, timestamp = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    signed = f"{id_}.{timestamp}.".encode() + request.content
    key = N8N["N8N_SECRET"].encode()
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert request.headers["webhook-signature"] == f"v1,{signature}"
    [told] = outside.told
    assert (told["type"], told["data"]["session_id"]) == ("call.ended", first.call.session_id)


@pytest.mark.skipif(shutil.which("node") is None, reason="n8n runs on Node.js")
@pytest.mark.parametrize(("change", "is_taken"), [("", True), (" ", False)])
def test_the_code_for_n8n_takes_what_is_signed_alone(
    load: Load, outside: Outside, change: str, is_taken: bool
) -> None:
    with HooksClient(load("forward_to_n8n", **N8N).hooks) as client:
        client.end_of_call()
    [request] = outside.asked
    page = (ROOT / "docs/how-to/n8n.md").read_text()
    code = page.partition("```javascript\n")[2].partition("```")[0]
    around = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const $env = {N8N_SECRET: given.secret}, $input = {first: () => ({json: given})};
const helpers = {getBinaryDataBuffer: async () => Buffer.from(given.body)};
(async function () { %s }).call({helpers}).then(() => {}, () => process.exit(1));"""
    given = {
        "secret": N8N["N8N_SECRET"],
        "headers": dict(request.headers),
        "body": request.content.decode() + change,
    }
    done = subprocess.run(
        ["node", "-e", around % code], input=json.dumps(given), text=True, check=False
    )
    assert (done.returncode == 0) is is_taken


def test_a_call_is_logged_in_hubspot_with_its_contact(load: Load, outside: Outside) -> None:
    outside.answers = [
        httpx2.Response(200, json={"results": [{"id": "51"}]}),
        httpx2.Response(201, json={"id": "901"}),
    ]
    with HooksClient(load("hubspot_calls", HUBSPOT_TOKEN="pat-1").hooks) as client:
        run = client.end_of_call(duration_s=61.5).run("log_in_hubspot")
    assert run.result == {"hubspot_call": "901", "hubspot_contact": "51"}
    search, created = outside.told
    assert search["filterGroups"][0]["filters"][0]["value"] == CUSTOMER_PHONE
    assert created["properties"]["hs_call_duration"] == 61500
    assert created["associations"][0]["to"] == {"id": "51"}
    assert {request.headers["authorization"] for request in outside.asked} == {"Bearer pat-1"}


@pytest.mark.parametrize(
    ("status", "state"), [(429, "retrying"), (503, "retrying"), (401, "failed")]
)
def test_what_hubspot_refuses_is_tried_again_if_that_may_help(
    load: Load, outside: Outside, status: int, state: str
) -> None:
    outside.answers = [httpx2.Response(status)]
    with HooksClient(load("hubspot_calls", HUBSPOT_TOKEN="pat-1").hooks) as client:
        assert client.end_of_call().run("log_in_hubspot").state == state
    with HooksClient(load("hubspot_calls").hooks) as client:
        assert client.end_of_call(dry_run=True).run("log_in_hubspot").state == "succeeded"
    assert len(outside.asked) == 1


def test_slack_hears_of_a_failed_run(load: Load, outside: Outside) -> None:
    variables = {"SLACK_WEBHOOK_URL": "https://slack.example/T0/secret"}
    variables["MILLIS_HOOKS_PUBLIC_URL"] = "https://hooks.example.com"
    with HooksClient(load("slack_alert", **variables).hooks) as client:
        call = client.end_of_call(session_id="-S<1>")
    assert call.run("tell_slack").state == "succeeded"
    assert outside.told[0]["text"] == (
        "*sync_crm* gave up on <https://hooks.example.com/calls/-S%3C1%3E|-S&lt;1&gt;> "
        "after 1 attempts: ConnectionError: the CRM does not answer"
    )


@pytest.mark.parametrize("status", [404, 429])
def test_slack_is_reported_later_and_its_address_stays_out_of_logs(
    load: Load, outside: Outside, status: int
) -> None:
    outside.answers = [httpx2.Response(status, headers={"retry-after": "60"})]
    address = "https://slack.example/T0/secret"
    with HooksClient(load("slack_alert", SLACK_WEBHOOK_URL=address).hooks) as client:
        run = client.end_of_call().run("tell_slack")
    assert run.state == "retrying"
    assert "slack.example" not in repr(run)


def test_without_slack_the_log_has_the_message(
    load: Load, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    with HooksClient(load("slack_alert").hooks) as client:
        client.end_of_call()
    assert "*sync_crm* gave up on" in caplog.text
    assert outside.asked == []


def test_a_day_is_summed_up(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_INSECURE", "1")
    with TestClient(load("quickstart").hooks) as client:
        for status in ("user-ended", "agent-ended", "voicemail-message"):
            body = end_of_call_body(call_status=status, duration_s=120)
            client.post("/millis/end-of-call", content=body)
        eventually(lambda: len(exported()) == 3)  # what is not processed waits for the next start
    text = load("daily_summary").summary_of(exported())
    assert text.startswith("Calls: 3, 6 minutes, 0.0")
    assert text.endswith("dollars\n- completed: 2\n- voicemail: 1")


def test_simulated_calls_are_not_summed_up(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = load("quickstart").hooks
    with HooksClient(hooks, database_url="sqlite:///millis_hooks.db") as client:
        client.end_of_call()
    assert load("daily_summary").summary_of(exported()) == "Calls: 0, 0 minutes, 0.00 dollars"


def test_the_summary_goes_to_slack_too(
    load: Load,
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("source,ended_at,outcome\r\n"))
    load("daily_summary", SLACK_WEBHOOK_URL="https://slack.example/T0/secret").main()
    assert outside.told == [{"text": capsys.readouterr().out.rstrip("\n")}]


def test_a_summary_that_slack_refuses_fails_aloud(
    load: Load, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.answers = [httpx2.Response(500)]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit, match="Slack"):
        load("daily_summary", SLACK_WEBHOOK_URL="https://slack.example/T0/secret").main()


@contextmanager
def shop(kind: databases.Kind, folder: Path) -> Iterator[Engine]:
    """An empty database of the team's own."""
    with databases.on(kind):
        engine = create_engine(databases.url_in(folder), poolclass=NullPool)
        yield engine
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE customers"))
            connection.execute(text("DROP TABLE handled"))


@pytest.mark.parametrize(
    ("example", "kind"),
    [
        ("own_database", "postgresql"),
        ("own_database_sync", "postgresql"),
        ("own_database_sync", "sqlite"),
    ],
)
def test_a_call_is_counted_once_in_a_database_of_the_team(
    load: Load, example: str, kind: databases.Kind, tmp_path: Path
) -> None:
    with shop(kind, tmp_path) as engine:
        url = engine.url.render_as_string(hide_password=False)
        with HooksClient(load(example, SHOP_DATABASE_URL=url).hooks) as client:
            client.end_of_call(dry_run=True)
            client.end_of_call()
            session_id = client.end_of_call().call.session_id
            again = partial(replay_call, session_id=session_id, now=datetime.now(UTC))
            client.hooks.service.call_log.writer.run(again)
            assert len(client.wait_for(session_id).runs) == 2
        with engine.connect() as connection:
            counted = connection.execute(text("SELECT phone, calls FROM customers")).all()
        assert counted == [(CUSTOMER_PHONE, 2)]


class Queue:
    """Celery, as far as a sender of tasks needs it."""

    def __init__(self, **_: object) -> None:
        self.conf = SimpleNamespace()
        self.sent: list[tuple[Any, ...]] = []

    def send_task(self, name: str, args: list[Any], **options: Any) -> None:
        if options["task_id"].startswith("-down"):
            raise ConnectionError("the broker does not answer")
        self.sent.append((name, args, options["task_id"]))


def test_a_call_is_handed_to_celery(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "celery", SimpleNamespace(Celery=Queue))
    example = load("hand_to_celery")
    with HooksClient(example.hooks) as client:
        client.end_of_call(session_id="-S")
        client.end_of_call(session_id="-dry", dry_run=True)
        down = client.end_of_call(session_id="-down")
    [(name, [task], task_id)] = example.queue.sent
    assert (name, task_id, task["key"]) == ("calls.summarize", "-S:hand_over", "-S:hand_over")
    assert json.loads(json.dumps(task))["chat"][0]["role"] == "assistant"
    assert down.run("hand_over").state == "retrying"


def exported() -> list[dict[str, str]]:
    """What `millis-hooks export` says of the call log in this folder."""
    result = CliRunner().invoke(app, ["export"])
    return list(csv.DictReader(io.StringIO(result.stdout, newline="")))

"""The sandbox's page: a call is begun, held by typing, ended, and seen for what it was."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse
from millis_hooks.dashboard.sandbox.form import Draft
from millis_hooks.operators import accounts
from millis_hooks.operators.accounts import hash_password
from millis_hooks.sandbox.emulator.store import Store
from support.app import SECRET, MakeHooks
from support.dashboard_site import HOSTILE, Page
from support.databases import Kind, made_in
from support.emulator import API, KEY, OUTBOUND
from support.stored_calls import NOW
from support.waiting import eventually

PASSWORD = "a password of the tests"
DRAFT = {
    "way": "websocket",
    "agent": "-agent",
    "prompt": "You know {name} and {nobody}.",
    "first": "Hello {name}!",
    "key1": "plan",
    "value1": "silver",
}


class Sandbox:
    """A browser at the page of an application that runs."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.session = ""

    def sign_in(self) -> None:
        form = {"username": "admin", "password": PASSWORD}
        assert self.client.post("/login", data=form).status_code == 303

    def post(self, form: str, **fields: str) -> httpx2.Response:
        return self.client.post(f"/sandbox/{form}", data={"session": self.session} | fields)

    def start(self, **fields: str) -> dict[str, Any]:
        """Begin a call by the form, and return it as the page then shows it."""
        led_to = self.post("start", **(DRAFT | fields)).headers["location"]
        self.session = parse_qs(urlsplit(led_to).query)["session"][0]
        return self.call()

    def end(self, **fields: str) -> dict[str, Any]:
        """Hang up, and return the call once nothing more is to come."""
        form = {"status": "user-ended", "vintage": "v2", "times": "once"} | fields
        assert self.post("end", **form).status_code == 303
        return self.settled()

    def call(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.view(f"session={self.session}")["call"]
        return shown

    def settled(self) -> dict[str, Any]:
        def over() -> dict[str, Any] | None:
            call = self.call()
            states = {run["state"] for run in call["runs"]}
            is_read = call["is_stored"] or not any(end["answered"] for end in call["ends"])
            is_done = call["stage"] == "over" and is_read and not states & {"pending", "running"}
            return call if is_done else None

        seen = eventually(over)
        assert seen is not None
        return seen

    def view(self, query: str = "") -> dict[str, Any]:
        view: dict[str, Any] = self.client.get(f"/sandbox.json?{query}").json()
        return view

    def page(self) -> Page:
        response = self.client.get(f"/sandbox?session={self.session}")
        assert response.status_code == 200
        return Page(response)


def with_handlers(hooks: MillisHooks) -> MillisHooks:
    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> PrefetchResponse:
        if "boom" in call.metadata:
            raise RuntimeError("no CRM today")
        return PrefetchResponse(metadata={"plan": "gold", "name": "Ada"}, extra_prompt="Be kind.")

    @hooks.on_end_of_call(max_attempts=1)
    def book(call: EndOfCall) -> None:
        if "boom" in call.metadata:
            raise ValueError("nothing to book")

    return hooks


@contextmanager
def at_the_page(hooks: MillisHooks, **options: Any) -> Iterator[Sandbox]:
    """A browser of an operator who has signed in."""
    with TestClient(hooks, follow_redirects=False, **options) as client:
        sandbox = Sandbox(client)
        sandbox.sign_in()
        yield sandbox


@pytest.fixture
def hooks(make_hooks: MakeHooks) -> MillisHooks:
    return with_handlers(make_hooks(sandbox=True, dashboard_password=PASSWORD))


@pytest.fixture(scope="module")
def page(database_kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """The page of an application that all tests share which change no more than their call."""
    url = made_in(tmp_path_factory.mktemp("sandbox"))
    hooks = MillisHooks(secrets=SECRET, database_url=url, sandbox=True, dashboard_password=PASSWORD)
    with at_the_page(with_handlers(hooks)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(page: Sandbox) -> Sandbox:
    return Sandbox(page.client)


def test_the_sandbox_page_requires_the_operate_role(hooks: MillisHooks) -> None:
    with TestClient(hooks, follow_redirects=False) as client:
        add = partial(
            accounts.add, name="eve", role="view", password_hash=hash_password(PASSWORD), now=NOW
        )
        hooks.service.call_log.writer.run(add)
        client.post("/login", data={"username": "eve", "password": PASSWORD})
        for path in ("/sandbox", "/sandbox.json", "/sandbox/call"):
            assert client.get(path).status_code == 403
        assert client.post("/sandbox/start", data=DRAFT).status_code == 403
        assert "/sandbox" not in Page(client.get("/calls")).links()


def test_the_sandbox_page_is_absent_in_production(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(dashboard_password=PASSWORD)
    with at_the_page(hooks) as sandbox:
        client = sandbox.client
        assert client.get("/sandbox").status_code == 404
        assert client.post("/sandbox/start", data=DRAFT).status_code in {404, 405}
        assert "/sandbox" not in Page(client.get("/setup")).links()


def test_the_sandbox_page_requires_sign_in(hooks: MillisHooks) -> None:
    with TestClient(hooks, follow_redirects=False) as client:
        assert client.get("/sandbox").headers["location"].startswith("/login")
        assert client.post("/sandbox/start", data=DRAFT).headers["location"].startswith("/login")


def test_a_call_gets_what_its_prefetch_answers(sandbox: Sandbox) -> None:
    call = sandbox.start()
    assert call["stage"] == "talking"
    assert call["prefetch"]["sent"]["url"].endswith("&plan=silver")
    assert call["answer"]["extra_prompt"] == "Be kind."
    changes = [(entry["key"], entry["before"], entry["change"]) for entry in call["metadata"]]
    assert changes == [("plan", "silver", "changed"), ("name", None, "added")]
    assert call["rendered"]["first_message"] == call["lines"][0]["text"] == "Hello Ada!"


def test_the_prompt_shows_what_was_filled_in_and_what_is_missing(sandbox: Sandbox) -> None:
    call = sandbox.start()
    parts = {part["kind"]: part["text"] for part in call["parts"] if part["kind"] != "plain"}
    assert parts == {"filled": "Ada", "missing": "{nobody}", "extra": "Be kind."}
    assert call["missing"] == ["nobody"]
    assert "Millis does not say" in sandbox.page().text


def test_metadata_in_the_prompt_follows_what_was_written(sandbox: Sandbox) -> None:
    call = sandbox.start(include="1")
    assert "".join(part["text"] for part in call["parts"]) == call["rendered"]["prompt"]
    assert '"plan": "gold"' in call["rendered"]["prompt"]


def test_no_secret_of_the_webhook_reaches_the_page(sandbox: Sandbox) -> None:
    sandbox.start()
    sandbox.end()
    for path in ("/sandbox", "/sandbox.json", "/sandbox/call"):
        shown = sandbox.client.get(f"{path}?session={sandbox.session}").text
        assert "a-secret-for-tests" not in shown


def test_the_operator_is_the_caller_and_an_echo_answers(sandbox: Sandbox) -> None:
    sandbox.start()
    sandbox.post("say", text="Twice charged")
    sandbox.post("say", text="One moment", role="assistant")
    said = [(line["kind"], line["text"]) for line in sandbox.call()["lines"][1:]]
    assert said == [
        ("user", "Twice charged"),
        ("assistant", "You said: Twice charged"),
        ("assistant", "One moment"),
    ]


def test_a_call_that_cannot_be_stored_continues(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_call", refuse)
        sandbox.start()
        sandbox.post("say", text="Twice charged")
        assert sandbox.call()["lines"][-1]["text"] == "You said: Twice charged"
    assert sandbox.end()["stage"] == "over"


def test_a_scenarios_agent_says_its_lines_before_it_echoes(sandbox: Sandbox) -> None:
    sandbox.start(scenario="tool-calls")
    sandbox.post("say", text="Is there a table?")
    assert "half past ten" in sandbox.call()["lines"][-1]["text"]


def test_a_function_is_called(sandbox: Sandbox) -> None:
    call = sandbox.start(scenario="tool-calls")
    assert "find_slot" in call["tools"]
    sandbox.post("function", name="find_slot", params='{"day": "tuesday"}')
    tool = sandbox.call()["lines"][-1]["tool"]
    assert (tool["name"], tool["params"]["day"]) == ("find_slot", "tuesday")
    assert "10:30" in json.dumps(tool["result"])


@pytest.mark.parametrize("params", ["[1]", "{", "1"])
def test_function_parameters_must_be_an_object(sandbox: Sandbox, params: str) -> None:
    sandbox.start()
    led_to = sandbox.post("function", name="find_slot", params=params).headers["location"]
    assert "not a JSON object" in Page(sandbox.client.get(led_to)).text


def test_the_end_reaches_the_handlers_and_the_call_is_in_the_dashboard(sandbox: Sandbox) -> None:
    sandbox.start()
    sandbox.post("say", text="Bye")
    call = sandbox.end()
    assert (call["ends"][0]["answered"]["status_code"], call["ends"][0]["failure"]) == (200, None)
    assert [(run["handler"], run["state"]) for run in call["runs"]] == [("book", "succeeded")]
    assert f"/calls/{sandbox.session}" in sandbox.page().links()
    kept = sandbox.client.get(f"/calls/{sandbox.session}.json").json()
    assert kept["call"]["source"] == "sandbox"
    assert kept["conversation"]["lines"][-1]["text"] == "You said: Bye"


def test_calls_of_the_sandbox_stay_out_of_the_analytics(sandbox: Sandbox) -> None:
    sandbox.start()
    sandbox.end()
    assert "No calls" in Page(sandbox.client.get("/analytics")).text


@pytest.mark.parametrize("status", ["user-ended", "no-answer", "error"])
def test_a_call_ends_with_the_chosen_status(sandbox: Sandbox, status: str) -> None:
    sandbox.start()
    assert sandbox.end(status=status, message="why")["hung_up"]["call_status"] == status


@pytest.mark.parametrize("vintage", ["v1a", "v1b", "v2-extras", "hostile"])
def test_the_end_comes_in_any_format(sandbox: Sandbox, vintage: str) -> None:
    sandbox.start()
    end = sandbox.end(vintage=vintage)["ends"][0]
    assert (end["vintage"], end["failure"]) == (vintage, None)


def test_the_end_comes_twice_or_late_or_never(sandbox: Sandbox) -> None:
    sandbox.start()
    assert len(sandbox.end(times="twice")["ends"]) == 2
    sandbox.start()
    assert sandbox.end(times="never")["ends"][0]["sent"] is None
    sandbox.start(**{"policy.late_by_s": "0.01"})
    assert "late, on purpose" in sandbox.end(times="late")["ends"][0]["notes"][0]


@pytest.mark.parametrize(
    ("fields", "failure"),
    [
        ({"fault": "error"}, "answered with status 500"),
        ({"fault": "bad-json"}, "no JSON"),
        ({"fault": "unreachable"}, "could not be reached"),
        ({"fault": "slow", "slow_s": "9", "policy.prefetch_timeout_s": "0.01"}, "no answer within"),
    ],
)
def test_a_prefetch_fails_on_purpose_and_the_call_continues(
    sandbox: Sandbox, fields: dict[str, str], failure: str
) -> None:
    call = sandbox.start(**fields)
    assert failure in call["prefetch"]["failure"]
    assert (call["stage"], call["missing"]) == ("talking", ["name", "nobody"])


def test_the_policy_is_obeyed(sandbox: Sandbox) -> None:
    sandbox.start(fault="error", **{"policy.on_prefetch_failure": "end-call"})
    assert sandbox.settled()["hung_up"]["call_status"] == "error"


def test_a_handler_that_raises_has_its_traceback_in_place(sandbox: Sandbox) -> None:
    call = sandbox.start(key1="boom", value1="1")
    assert call["stage"] == "talking"
    reason = eventually(lambda: sandbox.call()["prefetch_reason"])
    assert "RuntimeError: no CRM today" in reason
    assert "Traceback" in reason
    (run,) = sandbox.end()["runs"]
    assert run["state"] == "failed"
    assert "ValueError: nothing to book" in run["attempts"][0]["traceback"]
    assert "nothing to book" in sandbox.page().text


def test_handlers_see_that_a_call_is_a_dry_run(hooks: MillisHooks) -> None:
    flags: list[tuple[bool, bool]] = []

    @hooks.on_end_of_call
    def note(call: EndOfCall) -> None:
        flags.append((call.sandbox, call.dry_run))

    with at_the_page(hooks) as sandbox:
        sandbox.start(dry="1")
        assert sandbox.end()["is_dry_run"]
    assert flags == [(True, True)]


def test_two_tabs_are_two_calls(sandbox: Sandbox) -> None:
    sandbox.start()
    first = sandbox.session
    sandbox.start()
    sandbox.post("say", text="only here")
    assert sandbox.session != first
    sandbox.session = first
    assert "only here" not in json.dumps(sandbox.call())


def test_a_call_outlives_a_restart_as_far_as_it_went(hooks: MillisHooks) -> None:
    with at_the_page(hooks) as before:
        before.start()
        before.post("say", text="still there?")
    with at_the_page(hooks) as after:
        after.session = before.session
        call = after.call()
        assert (call["stage"], call["lines"][-2]["text"]) == ("cut", "still there?")
        assert after.view(f"session={after.session}")["draft"]["prompt"] == DRAFT["prompt"]
        led_to = after.post("say", text="hello?").headers["location"]
        assert "not at that point" in Page(after.client.get(led_to)).text


def test_a_call_that_is_over_takes_no_more_words(sandbox: Sandbox) -> None:
    sandbox.start()
    sandbox.end()
    form = {"status": "error", "vintage": "v2", "times": "once"}
    for name, fields in (("say", {"text": "hm"}), ("function", {"name": "f"}), ("end", form)):
        assert "refused=gone" in sandbox.post(name, **fields).headers["location"]


def test_an_unknown_sandbox_call_is_reported(sandbox: Sandbox) -> None:
    sandbox.session = "-nobody"
    assert "is not known here" in sandbox.page().text


@pytest.mark.parametrize("choice", [{"status": "x"}, {"vintage": "x"}, {"times": "x"}, {}])
def test_an_invalid_ending_is_refused(sandbox: Sandbox, choice: dict[str, str]) -> None:
    sandbox.start()
    assert sandbox.post("end", **choice).status_code == 400


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"value1": "{", "json1": "1"}, "'plan' is not JSON. Put text into double quotes"),
        ({"way": "outbound", "from_phone": "12", "to_phone": "+14155550134"}, "from_phone"),
        ({"slow_s": "nan"}, "seconds"),
        ({"policy.prefetch_timeout_s": "1e9"}, "prefetch_timeout_s"),
        ({"policy.merge": "sideways"}, "merge"),
        ({"policy.end_of_call_attempts": "999"}, "end_of_call_attempts"),
    ],
)
def test_a_draft_with_problems_is_shown_again_with_them(
    sandbox: Sandbox, fields: dict[str, str], problem: str
) -> None:
    answer = sandbox.post("start", **(DRAFT | fields))
    assert answer.status_code == 422
    page = Page(answer)
    assert problem in page.text
    assert page.all("input", name="key1", value="plan")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"value1": "{", "json1": "1"}, "value1"),
        ({"way": "outbound", "from_phone": "12", "to_phone": "+14155550134"}, "from_phone"),
        ({"slow_s": "nan"}, "slow_s"),
        ({"policy.end_of_call_attempts": "999"}, "policy.end_of_call_attempts"),
    ],
)
def test_a_problem_stands_at_its_field(
    sandbox: Sandbox, fields: dict[str, str], field: str
) -> None:
    page = Page(sandbox.post("start", **(DRAFT | fields)))
    assert [each["name"] for each in page.all("input") if each.get("aria-invalid")] == [field]
    assert page.all("p", id=f"{field}-error")


@pytest.mark.parametrize("path", ["start", "say", "function", "end"])
def test_the_address_of_a_form_leads_to_the_page(sandbox: Sandbox, path: str) -> None:
    answer = sandbox.client.get(f"/sandbox/{path}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sandbox")


def test_a_new_draft_says_no_variable_that_has_no_value(hooks: MillisHooks) -> None:
    with at_the_page(hooks) as sandbox:
        draft = sandbox.view()["draft"]
        assert "{" not in draft["first"]
        sandbox.start(**draft, value1="C-1", key2="customer_tier", value2="gold")
        greeting = "Hi {name}, how may I help?"
        eventually(lambda: sandbox.view()["draft"]["first"] == greeting)  # the record is queued
        call = sandbox.start(first=greeting, prompt=sandbox.view()["draft"]["prompt"])
        assert call["rendered"]["first_message"] == "Hi Ada, how may I help?"


def test_an_inbound_call_comes_from_the_customer(sandbox: Sandbox) -> None:
    out, back = (sandbox.view(f"way={way}")["draft"] for way in ("outbound", "inbound"))
    assert (out["from_phone"], out["to_phone"]) == (back["to_phone"], back["from_phone"])
    typed = sandbox.view("way=inbound&from_phone=%2B49301234567")["draft"]
    assert typed["from_phone"] == "+49301234567"


def test_a_draft_survives_a_sign_in_without_its_secrets(hooks: MillisHooks) -> None:
    with at_the_page(hooks) as sandbox:
        sandbox.client.cookies.clear()
        draft = DRAFT | {"prompt": "Be {mood} & kind.", "key2": "api_key", "value2": "s3cret-x"}
        page = Page(sandbox.client.get(sandbox.post("start", **draft).headers["location"]))
        assert "You were signed out; nothing was started." in page.text
        back = page.all("input", name="next")[0]["value"] or ""
        assert "s3cret-x" not in back
        sandbox.sign_in()
        filled = sandbox.client.get(back)
        assert "Be {mood} &amp; kind." in filled.text


def test_a_call_that_is_over_can_be_run_again(sandbox: Sandbox) -> None:
    sandbox.start()
    assert "Start another" in sandbox.page().text
    sandbox.end()
    page = sandbox.page()
    assert "Run again" in page.text
    assert page.all("details", **{"class": "draft"}) == [{"class": "draft"}]
    assert page.all("input", name="key1", value="plan")


def test_each_way_has_its_equivalent(sandbox: Sandbox) -> None:
    shown = {
        way: sandbox.view(f"way={way}&agent=-a&key1=plan&value1=gold")["snippet"]["text"]
        for way in ("widget", "web-sdk", "websocket", "outbound")
    }
    assert shown["widget"].startswith("https://app.millis.ai/agents/embedded?plan=gold&id=-a&k=")
    assert "msClient.start(" in shown["web-sdk"]
    assert json.loads(shown["websocket"])["data"]["metadata"] == {"plan": "gold"}
    assert "/start_outbound_call" in shown["outbound"]


@pytest.mark.parametrize("way", ["widget", "web-sdk", "websocket", "inbound"])
def test_a_call_is_begun_in_each_way(sandbox: Sandbox, way: str) -> None:
    call = sandbox.start(way=way, value1='{"a": [1]}', json1="1")
    assert call["way"] == way
    assert "plan=%7B%22a%22%3A%20%5B1%5D%7D" in call["prefetch"]["sent"]["url"]


def test_an_outbound_call_has_its_numbers(sandbox: Sandbox) -> None:
    numbers = {"from_phone": "+14155550199", "to_phone": "+14155550134"}
    call = sandbox.start(way="outbound", prompt="{FromPhone} calls {ToPhone}", **numbers)
    assert call["rendered"]["prompt"].startswith("+14155550199 calls +14155550134")
    assert "from=%2B14155550199" in call["prefetch"]["sent"]["url"]


def test_a_call_of_the_api_is_shown_too(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True, dashboard_password=PASSWORD, sandbox_pace=1000)
    at_home = {"base_url": "http://127.0.0.1", "client": ("127.0.0.1", 5000)}
    with at_the_page(hooks, **at_home) as sandbox:
        answer = sandbox.client.post(f"{API}/start_outbound_call", json=OUTBOUND, headers=KEY)
        sandbox.session = answer.json()["session_id"]
        call = sandbox.settled()
        assert (call["way"], call["hung_up"]["call_status"]) == ("outbound", "agent-ended")
        assert not sandbox.page().all("form", id="say-form")


def test_a_metadata_key_that_millis_uses_itself_has_a_warning(sandbox: Sandbox) -> None:
    query = "way=websocket&key1=session_id&value1=x&key2=plan&value2=gold"
    reserved, other, *_ = sandbox.view(query)["rows"]
    assert "of this name itself" in reserved["warning"]
    assert other["warning"] is None


def test_a_link_has_the_draft_and_no_secret(sandbox: Sandbox) -> None:
    query = "way=web-sdk&key1=api_key&value1=hush&key2=plan&value2=gold&include=1"
    params = sandbox.view(query)["params"]
    assert "hush" not in params.values()
    assert (params["key1"], params["value2"], params["include"]) == ("api_key", "gold", "1")


@pytest.mark.parametrize("name", ["inbound", "tool-calls", "hostile"])
def test_a_shipped_scenario_is_loaded_and_begins(sandbox: Sandbox, name: str) -> None:
    view = sandbox.view(f"scenario={name}")
    assert (view["draft"]["scenario"], view["problems"]) == (name, [])
    call = sandbox.start(**{"key1": "", **view["params"]})
    assert call["stage"] in {"talking", "beginning"}
    assert sandbox.end(status=view["ending"]["status"])["stage"] == "over"


@pytest.mark.parametrize("name", ["../inbound", "/etc/passwd", "nothing", ""])
def test_no_other_file_is_a_scenario(name: str) -> None:
    assert Draft({"scenario": name}).scenario is None


def test_markup_in_what_is_typed_is_text(sandbox: Sandbox) -> None:
    sandbox.start(key1=HOSTILE, value1=HOSTILE, prompt=HOSTILE, first=HOSTILE, agent=HOSTILE)
    sandbox.post("say", text=HOSTILE)
    sandbox.post("function", name=HOSTILE, params=json.dumps({HOSTILE: HOSTILE}))
    sandbox.end(message=HOSTILE, status="error")
    page = sandbox.page()
    assert not page.all("img")
    assert HOSTILE.split("\u202e")[0].strip() in page.text


def test_numbers_and_words_are_masked_as_on_every_page(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(
        sandbox=True, dashboard_password=PASSWORD, mask_numbers="partial", mask_text="full"
    )
    with at_the_page(hooks) as sandbox:
        numbers = {"from_phone": "+14155550199", "to_phone": "+14155550134"}
        call = sandbox.start(way="outbound", **numbers)
        sandbox.post("say", text="my words")
        assert "5550134" not in json.dumps(call)
        assert "my words" not in json.dumps(sandbox.end())


def test_a_service_without_handlers_says_how_to_write_one(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True, dashboard_password=PASSWORD)
    with at_the_page(hooks) as sandbox:
        assert "@hooks.on_prefetch" in Page(sandbox.client.get("/sandbox")).text


def test_a_call_that_no_one_touches_ends_by_itself(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.sandbox.emulator.sessions.ABANDONED_S", 0.01)
    sandbox.start()
    assert sandbox.settled()["hung_up"]["call_status"] == "timeout"

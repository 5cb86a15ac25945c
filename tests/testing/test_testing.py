"""What teams test their handlers with, and the example suite that they can copy."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.exceptions import ConfigError
from millis_hooks.protocol.samples import CallContent
from millis_hooks.sandbox.scenario import Scenario, Script, SessionSpec
from millis_hooks.testing import HooksClient
from support.paths import ROOT
from support.programs import pytest_in

EXAMPLE = ROOT / "examples" / "tested_handlers"
RESTAURANT = ROOT / "examples" / "restaurant"


@pytest.fixture
def hooks(tmp_path: Path) -> MillisHooks:
    """An application as a team has it, without a secret."""
    hooks = MillisHooks(database_url=f"sqlite:///{tmp_path}/of_the_team.db")

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> PrefetchResponse:
        if call.metadata.get("fail"):
            raise RuntimeError("no CRM")
        return PrefetchResponse(metadata={"name": "Ada"}, extra_prompt="Be kind.")

    @hooks.on_end_of_call
    def book(call: EndOfCall) -> None:
        if not call.chat:
            raise RuntimeError("nobody spoke")

    return hooks


@pytest.fixture
def client(hooks: MillisHooks) -> Iterator[HooksClient]:
    with HooksClient(hooks) as client:
        yield client


def test_a_prefetch_is_answered_and_recorded(client: HooksClient) -> None:
    reply = client.prefetch(metadata={"plan": "gold"})
    assert (reply.status_code, reply.metadata, reply.extra_prompt) == (
        200, {"name": "Ada"}, "Be kind.",
    )  # fmt: skip
    assert reply.delivery is not None
    assert reply.delivery.outcome == "fresh"


def test_a_prefetch_that_fails_says_why(client: HooksClient) -> None:
    reply = client.prefetch(metadata={"fail": "1"})
    assert (reply.metadata, reply.extra_prompt) == ({}, None)
    assert reply.delivery is not None
    assert "no CRM" in (reply.delivery.reason or "")


def test_the_handlers_of_an_ended_call_are_waited_for(client: HooksClient) -> None:
    call = client.end_of_call(metadata={"plan": "gold"}, call_status="agent-ended")
    assert (call.call.outcome, call.run("book").state) == ("completed", "succeeded")
    assert [one.kind for one in call.deliveries] == ["end_of_call"]


def test_a_handler_that_fails_shows_its_traceback(client: HooksClient) -> None:
    run = client.end_of_call(content=CallContent()).run("book")
    assert (run.state, run.attempts[0].error_message) == ("retrying", "nobody spoke")
    assert 'RuntimeError("nobody spoke")' in (run.attempts[0].traceback or "")


def test_the_results_of_a_handler_are_kept_with_its_run(
    hooks: MillisHooks, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.on_end_of_call
    def score(call: EndOfCall) -> dict[str, object]:
        return {"score": 4, "resolved": True, "tags": ["late"]}

    @hooks.on_end_of_call  # type: ignore[type-var]
    async def tell(call: EndOfCall) -> str:
        return "told"

    with HooksClient(hooks) as client:
        call = client.end_of_call(content=CallContent())
        client.end_of_call()
        assert call.run("score").result == {"score": 4, "resolved": True}
        assert "tags was left out" in (call.run("score").reason or "")
        assert (call.run("tell").result, call.run("tell").state) == ({}, "succeeded")
    lines = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert sum("tags was left out" in line for line in lines) == 2
    assert sum("not a mapping" in line for line in lines) == 1


def test_a_handler_that_was_not_called_raises_with_those_that_were(client: HooksClient) -> None:
    with pytest.raises(LookupError, match="Called: book"):
        client.end_of_call().run("sync")


def test_a_handler_that_takes_too_long_is_named(hooks: MillisHooks) -> None:
    begun, released = threading.Event(), threading.Event()

    @hooks.on_end_of_call
    def slow(call: EndOfCall) -> None:
        begun.set()
        released.wait()

    with HooksClient(hooks, wait_s=0, handler_grace_s=0) as client:
        with pytest.raises(TimeoutError):
            client.end_of_call(session_id="-slow")
        assert begun.wait(60)
        with pytest.raises(TimeoutError, match=r"still at work: .*\bslow"):
            client.wait_for("-slow")
        released.set()


def test_waiting_for_an_unknown_call_times_out(hooks: MillisHooks) -> None:
    with (
        HooksClient(hooks, wait_s=0.01) as client,
        pytest.raises(TimeoutError, match="No call -gone"),
    ):
        client.wait_for("-gone")


def test_a_shipped_scenario_is_run(client: HooksClient) -> None:
    call = client.simulate("inbound")
    assert call.unmet == []
    assert call.metadata["name"] == "Ada"
    assert call.prompt.endswith('"name": "Ada"\n}')
    assert (call.first_message or "").endswith("How may I help?")


def test_a_scenario_may_be_made_and_changed_in_the_test(client: HooksClient) -> None:
    scenario = Scenario(name="quiet", title="", spec=SessionSpec(), script=Script())
    call = client.simulate(scenario, metadata={"plan": "gold"}, vintage="v1b")
    assert call.metadata == {"plan": "gold", "name": "Ada"}
    assert call.handled is not None
    assert call.handled.run("book").state == "retrying"


def test_simulated_calls_stay_out_of_the_team_s_own_log(
    client: HooksClient, tmp_path: Path
) -> None:
    client.simulate("web")
    assert client.log.today(now=datetime.now(UTC)).calls == 0
    assert not (tmp_path / "of_the_team.db").exists()


def test_settings_of_the_application_hold_unless_others_are_given(hooks: MillisHooks) -> None:
    strict = hooks.under(own_numbers="+14155550199", extra_prompt_max_chars=3)
    with HooksClient(strict, prefix="/other") as client:
        assert client.prefetch().extra_prompt == "Be "
        assert client.hooks.settings.own_numbers == {"+14155550199"}
        assert client.hooks.settings.prefix == "/other"


def test_two_tests_do_not_see_each_other_s_calls(hooks: MillisHooks) -> None:
    with HooksClient(hooks) as first:
        first.end_of_call(session_id="-S")
    with HooksClient(hooks) as second:
        assert second.log.call("-S") is None


def test_handlers_see_a_real_call_unless_the_test_says_otherwise(hooks: MillisHooks) -> None:
    seen: list[tuple[bool, bool]] = []

    @hooks.on_end_of_call
    def note(call: EndOfCall) -> None:
        seen.append((call.sandbox, call.dry_run))

    @hooks.on_prefetch
    def note_first(call: PrefetchRequest) -> None:
        seen.append((call.sandbox, call.dry_run))

    with HooksClient(hooks) as client:
        for ask in (client.prefetch, client.end_of_call):
            ask()
            ask(sandbox=True)
            ask(dry_run=True)
        client.simulate("web")
        client.simulate("web", sandbox=True)
        assert client.log.today(now=datetime.now(UTC)).calls == 0
        sources = {
            call.call.source
            for call in client.log.ask(
                list_calls, CallFilter(source="all"), now=datetime.now(UTC)
            ).rows
        }
    real, rehearsed, dry = (False, False), (True, False), (True, True)
    assert seen == [real, rehearsed, dry] * 2 + [real] * 2 + [rehearsed] * 2
    assert sources == {"as_real", "sandbox"}


def test_an_end_that_another_receiver_takes_is_not_waited_for(
    hooks: MillisHooks,
) -> None:
    with answering(200) as url, HooksClient(hooks, wait_s=3600) as client:
        call = client.simulate("web", agent_config={"session_data_webhook": f"{url}/ends"})
    assert (call.handled, call.elsewhere) == (None, f"{url}/ends")


def test_a_client_that_is_not_started_says_so(hooks: MillisHooks) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        HooksClient(hooks).prefetch()


def test_wrong_settings_are_refused(hooks: MillisHooks) -> None:
    with pytest.raises(ConfigError), HooksClient(hooks, prefix="no path"):
        pass


@contextmanager
def answering(status_code: int) -> Iterator[str]:
    """Another receiver, which answers everything so; yields its address."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status_code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("example", "passed"), [(EXAMPLE, 11), (RESTAURANT, 7)])
def test_the_example_suites_pass(tmp_path: Path, example: Path, passed: int) -> None:
    suite = shutil.copytree(example, tmp_path / "suite")
    result = pytest_in(suite)
    assert re.search(rf"\b{passed} passed in", result.stdout), result.stdout
    assert result.returncode == 0


def test_a_fixture_names_the_application_or_the_plugin_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "test_unnamed.py").write_text("def test_it(simulate_call): pass\n")
    (tmp_path / "test_named.py").write_text(
        "import pytest\nfrom millis_hooks import MillisHooks\n"
        "@pytest.fixture(scope='session')\ndef millis_hooks_app(): return MillisHooks()\n"
        "def test_it(hooks_client): assert hooks_client.prefetch().body == {}\n"
    )
    result = pytest_in(tmp_path, "-W", "error")
    assert "1 passed, 1 error" in result.stdout
    assert 'Write `millis_hooks_app = "app.py"`' in result.stdout


def test_the_plugin_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(hooks_client): pass\n")
    result = pytest_in(tmp_path, "-p", "no:millis_hooks", every_plugin=True)
    assert "fixture 'hooks_client' not found" in result.stdout


def test_the_plugin_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    heavy = (
        "{'sqlalchemy', 'pydantic', 'starlette', 'httpx2', 'jinja2', 'millis_hooks.testing.client'}"
    )
    (tmp_path / "test_it.py").write_text(
        f"import sys\ndef test_it(): assert not {heavy} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
    tried = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 passed" in tried.stdout

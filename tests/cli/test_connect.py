"""`connect`: an agent at Millis gets webhooks and functions of this service, and loses nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

from millis_hooks import MillisApi
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import MillisApiError
from millis_hooks.millis_api import Agent
from millis_hooks.millis_api.connection import Connected, changes_of, write
from millis_hooks.protocol.reading import Json
from support.app import MakeHooks
from support.emulator import KEY, VOICE, client_of, rehearsing
from support.fake_millis import FakeMillis, served

AGENT = "-Ox1reception"
SECRET, THEIRS = "9f3c1be07a5d42c68e11d0b7f4a26c93", "their-secret-0123456789"
URL = "https://hooks.example.com"
CODE = """
from datetime import date
from millis_hooks import MillisHooks

hooks = MillisHooks()

@hooks.function
async def free_tables(day: date) -> str:
    "Find free tables."
    return "none"
"""
CONFIG: dict[str, Any] = {
    "prompt": "You take bookings.",
    "extra_prompt_webhook": f"https://old.example/{THEIRS}/prefetch?key={THEIRS}",
    "tools": [{"name": "weather", "webhook": "https://weather.example", "header": {"X": THEIRS}}],
}


@pytest.fixture
def millis() -> FakeMillis:
    millis = FakeMillis()
    millis.agents = [{"id": AGENT, "name": "Reception", "config": deepcopy(CONFIG)}]
    return millis


@pytest.fixture
def address(millis: FakeMillis) -> Iterator[str]:
    with served(millis) as address:
        yield address


@pytest.fixture
def connect(address: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "connected", raising=False)
    (tmp_path / "connected.py").write_text(CODE)
    environment = {"SECRETS": SECRET, "API_KEY": "a-key-of-millis", "API_URL": address}
    for name, value in environment.items():
        monkeypatch.setenv(f"MILLIS_HOOKS_{name}", value)

    def run(*options: str) -> Result:
        return CliRunner().invoke(app, ["connect", AGENT, "connected.py", "--url", URL, *options])

    return run


def test_both_webhooks_and_the_functions_are_written_and_nothing_else(
    connect: Any, millis: FakeMillis
) -> None:
    result = connect("--yes")
    assert result.exit_code == 0, result.output
    config = millis.agents[0]["config"]
    assert config["prompt"] == CONFIG["prompt"]
    assert config["extra_prompt_webhook"] == {
        "url": f"{URL}/millis/prefetch",
        "headers": {"Authorization": f"Bearer {SECRET}"},
    }
    weather, tables = config["tools"]
    assert weather == CONFIG["tools"][0]
    assert tables["webhook"] == f"{URL}/millis/functions/free_tables"
    assert "session_data_webhook: nothing -> https://hooks.example.com/millis" in result.output
    assert "https://old.example/•/prefetch?• ->" in result.output
    assert "Millis now has:" in result.output
    assert SECRET not in result.output
    assert THEIRS not in result.output
    assert "Nothing to change" in connect("--yes").output


def test_a_dry_run_and_a_command_that_no_one_can_answer_write_nothing(
    connect: Any, millis: FakeMillis
) -> None:
    assert "+ free_tables" in connect("--dry-run").output
    assert connect().exit_code == 2
    assert millis.agents[0]["config"] == CONFIG


def test_what_millis_replaced_is_put_back(connect: Any, millis: FakeMillis) -> None:
    millis.replaces = True
    result = connect("--yes")
    assert result.exit_code == 1
    assert "lost: prompt. The old configuration was put back" in " ".join(result.output.split())
    assert millis.agents[0]["config"] == CONFIG


def written(*answers: dict[str, Any]) -> tuple[Connected, list[Any]]:
    """Write a tool into an agent that has these configurations afterwards, one after another."""
    later, sent = list(answers), []

    def millis(request: httpx2.Request) -> httpx2.Response:
        if request.method == "PUT":
            sent.append(json.loads(request.content)["config"])
            return httpx2.Response(200, json={"success": True})
        if not later:
            return httpx2.Response(404)
        body = {"id": AGENT, "name": "Reception", "config": later.pop(0)}
        return httpx2.Response(200, json=body)

    async def run() -> Connected:
        api = MillisApi("key", transport=httpx2.MockTransport(millis))
        agent = Agent(AGENT, "Reception", CONFIG)
        return await write(api, agent, changes_of(agent, {"tools": [{"name": "free_tables"}]}))

    return asyncio.run(run()), sent


def test_a_tool_of_others_that_millis_lost_is_put_back() -> None:
    result, sent = written(CONFIG | {"tools": [{"name": "free_tables"}]}, CONFIG)
    assert (result.lost, result.is_put_back) == (("the tool weather",), True)
    assert sent[-1] == CONFIG


def test_what_was_written_and_cannot_be_read_again_is_reported_so() -> None:
    with pytest.raises(MillisApiError, match="was sent, but could not be read again: Millis"):
        written()


def test_an_unknown_agent_is_an_error(connect: Any, millis: FakeMillis) -> None:
    millis.agents = []
    result = connect("--yes")
    assert result.exit_code == 2
    assert "Agent not found" in result.output


def test_an_agent_of_the_sandbox_is_connected(make_hooks: MakeHooks) -> None:
    hooks = rehearsing(make_hooks, [])
    wanted: dict[str, Json] = {"session_data_webhook": {"url": f"{URL}/millis/end-of-call"}}

    async def connect_it(agent_id: str) -> dict[str, Json]:
        transport = httpx2.ASGITransport(app=hooks)
        base = "http://127.0.0.1/sandbox/api"
        async with MillisApi("key", base_url=base, transport=transport) as api:
            agent = await api.agent(agent_id)
            connected = await write(api, agent, changes_of(agent, wanted))
            assert (connected.lost, connected.not_taken) == ((), ())
            return connected.agent.config

    with client_of(hooks) as client:
        body = {"name": "Reception", "config": {"prompt": "Hello", "voice": VOICE}}
        made = client.post("/sandbox/api/agents", json=body, headers=KEY).json()
        config = asyncio.run(connect_it(made["id"]))
    assert config == made["config"] | wanted

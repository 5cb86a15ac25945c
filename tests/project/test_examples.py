"""Each example, served as `millis-hooks run` serves it, hears a call begin and end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.queries import Queries
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from millis_hooks.server.app_loader import load_target
from support.outside import Outside
from support.paths import ROOT

EXAMPLES = ROOT / "examples"
SECRET = "an-example-secret-of-32-characters"
BEARER = {"authorization": f"Bearer {SECRET}"}

Serve = Callable[[str], Any]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve an example under settings of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("MILLIS_HOOKS_SECRETS", SECRET)

    @contextmanager
    def served(name: str) -> Iterator[TestClient]:
        module = name.partition(".")[0]
        monkeypatch.delitem(sys.modules, module, raising=False)
        with TestClient(load_target(f"{EXAMPLES}/{name}").app, headers=BEARER) as client:
            yield client
        sys.modules.pop(module)

    return served


@pytest.fixture
def crm(monkeypatch: pytest.MonkeyPatch) -> Outside:
    """A CRM that knows whom it is asked about."""
    outside = Outside(monkeypatch)
    outside.answers = [httpx2.Response(200, json={"name": "Ada", "tier": "gold"})]
    return outside


def prefetch(client: TestClient, path: str = "/millis/prefetch", **call: Any) -> Any:
    response = client.get(f"{path}?{prefetch_query(**call)}")
    assert response.status_code == 200
    return response.json()


def outcomes_in(folder: Path) -> list[str | None]:
    log = CallLog(f"sqlite:///{folder}/millis_hooks.db")
    while log.processor.process_chunk():
        pass
    record = Queries(log.database.reader).call("-S")
    log.close()
    return [record.call.outcome] if record else []


def test_quickstart_greets_the_caller(serve: Serve) -> None:
    with serve("quickstart.py") as client:
        assert prefetch(client)["metadata"] == {"first_name": "Ada"}


def test_quickstart_keeps_the_call(serve: Serve, tmp_path: Path) -> None:
    with serve("quickstart.py") as client:
        client.post("/millis/end-of-call", content=end_of_call_body(session_id="-S"))
    assert outcomes_in(tmp_path) == ["completed"]


def test_the_crm_names_a_customer(serve: Serve, crm: Outside) -> None:
    with serve("crm_lookup.py") as client:
        assert prefetch(client)["metadata"] == {"customer_name": "Ada", "customer_tier": "gold"}
    assert crm.asked[0].url.params["phone"] == "+14155550134"


def test_the_crm_does_not_know_a_stranger(serve: Serve, crm: Outside) -> None:
    crm.answers = [httpx2.Response(404)]
    with serve("crm_lookup.py") as client:
        assert prefetch(client) == {}


@pytest.mark.parametrize("trouble", [httpx2.ConnectError("down"), httpx2.Response(500)])
def test_a_crm_that_is_down_stops_no_call(serve: Serve, crm: Outside, trouble: Any) -> None:
    crm.answers = [trouble]
    with serve("crm_lookup.py") as client:
        assert prefetch(client) == {}


@pytest.mark.parametrize(
    ("agent_id", "prompt"),
    [
        ("-Ox1bookingsAgent001", "Tables are free on Tuesday from six."),
        ("-Ox1supportAgent0001", "The web shop is down since noon; apologise for it."),
        ("-Ox1anotherAgent0001", None),
    ],
)
def test_each_agent_has_its_own_handlers(serve: Serve, agent_id: str, prompt: str | None) -> None:
    with serve("several_agents.py") as client:
        assert prefetch(client, agent_id=agent_id).get("extra_prompt") == prompt


def test_the_mounted_example_answers_below_its_path(serve: Serve) -> None:
    with serve("mounted_in_fastapi.py:app") as client:
        assert prefetch(client, "/hooks/millis/prefetch")["metadata"] == {"channel": "phone"}
        assert client.get("/").json() == {"shop": "open"}

"""Read tokens: what they open, and what they do not."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import httpx2 as httpx
import pytest

from millis_hooks.dashboard.call_filters import _ACTIVE
from millis_hooks.dashboard.openapi import PARAMETERS
from millis_hooks.operators import accounts
from support.dashboard_site import Site
from support.stored_calls import NOW


@pytest.fixture
def token(anonymous: Site) -> str:
    token = anonymous.stored.write(partial(accounts.add_token, name="reports", now=NOW))
    assert token is not None
    return token


def ask(site: Site, path: str, token: str, method: str = "GET") -> httpx.Response:
    return site.browser.request(method, path, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize(
    "path",
    [
        "/calls.json",
        "/calls/-call.json",
        "/deliveries.json",
        "/analytics.json",
        "/setup.json",
        "/openapi.json",
        "/calls/export.csv",
        "/calls/export.jsonl",
        "/analytics/calls.csv",
    ],
)
def test_a_token_opens_the_json_of_pages_and_exports(
    anonymous: Site, token: str, path: str
) -> None:
    anonymous.add_ended_call()
    assert ask(anonymous, path, token).status_code == 200
    assert anonymous.get(path).status_code == 401


@pytest.mark.parametrize("signs_in", [False, True])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/calls"),
        ("GET", "/calls/-call"),
        ("GET", "/operators"),
        ("GET", "/forget.json"),
        ("POST", "/replay"),
        ("POST", "/forget"),
        ("POST", "/setup/reveal"),
        ("POST", "/operators/sign-out"),
    ],
)
def test_a_token_opens_no_page_and_no_action_even_in_a_session(
    anonymous: Site, token: str, method: str, path: str, signs_in: bool
) -> None:
    anonymous.add_ended_call()
    if signs_in:
        anonymous.sign_in()
    refused = ask(anonymous, path, token, method)
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    assert "read token opens" in refused.json()["error"]


def test_a_wrong_or_revoked_token_is_refused_and_guessing_is_slowed_down(
    anonymous: Site, token: str
) -> None:
    refused = ask(anonymous, "/calls.json", "mht_wrong")
    assert refused.status_code == 401
    assert 'error="invalid_token"' in refused.headers["www-authenticate"]
    answers = [ask(anonymous, "/calls.json", f"mht_{number}") for number in range(10)]
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert ask(anonymous, "/calls.json", token).status_code == 200
    anonymous.stored.write(partial(accounts.revoke_token, name="reports"))
    anonymous.now += timedelta(minutes=5)
    assert ask(anonymous, "/calls.json", token).status_code == 401


def test_a_token_is_stored_hashed_and_its_use_is_noted(anonymous: Site, token: str) -> None:
    ask(anonymous, "/calls/export.csv?number=%2B14155550134", token)
    anonymous.sign_in()
    twin = anonymous.get("/operators.json")
    assert token not in twin.text
    [listed] = twin.json()["tokens"]
    assert listed["name"] == "reports"
    assert listed["last_used_at"] == NOW.isoformat()
    exported = [each["entry"] for each in twin.json()["audit_log"]][-1]
    assert (exported["operator"], exported["action"]) == ("token reports", "export")
    assert "reports" in anonymous.page("/operators").text


def test_the_description_has_what_a_token_opens(anonymous: Site, token: str) -> None:
    document = ask(anonymous, "/openapi.json", token).json()
    assert document["openapi"].startswith("3.1")
    call = document["paths"]["/calls/{session_id}.json"]["get"]
    assert call["parameters"][0]["in"] == "path"
    schema = document["components"]["schemas"]["Call"]["properties"]
    assert {"session_id", "agent_id", "agent_name", "cost_total"} <= schema.keys()
    assert "/calls/export.csv" in document["paths"]
    assert "/forget.json" not in document["paths"]
    assert _ACTIVE.keys() <= PARAMETERS["calls"].keys()

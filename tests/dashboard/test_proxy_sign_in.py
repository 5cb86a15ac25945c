"""Operators whom a proxy has signed in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from millis_hooks.dashboard.security import ProxySignIn
from millis_hooks.settings import Settings
from support.app import SECRET
from support.dashboard_site import Page, Site

PROXY, OTHER = "10.1.0.7", "192.0.2.9"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    settings = Settings.load(
        secrets=SECRET,
        sign_in_header="X-Forwarded-User",
        sign_in_role_header="X-Role",
        sign_in_proxies="10.1.0.0/16",
    )
    site = Site(tmp_path, proxy=ProxySignIn(settings))
    yield site
    site.stored.database.close()


def ask(
    site: Site, path: str, headers: dict[str, str], peer: str = PROXY, method: str = "GET"
) -> httpx.Response:
    browser = TestClient(site.app, client=(peer, 1), follow_redirects=False)
    return browser.request(method, path, headers=headers)


def test_the_proxy_names_operator_and_role(site: Site) -> None:
    anna = {"X-Forwarded-User": "Anna@Example.com"}
    page = Page(ask(site, "/operators", anna))
    assert "You are anna@example.com ." in page.text
    assert ask(site, "/forget?session_id=-x", anna).status_code == 403
    assert ask(site, "/setup/reveal", anna, method="POST").status_code == 403
    operates = anna | {"X-Role": "operate"}
    assert ask(site, "/setup/reveal", operates, method="POST").status_code == 200


@pytest.mark.parametrize("path", ["/calls", "/calls.json", "/live"])
def test_the_header_from_elsewhere_is_refused_and_without_it_sign_in_is_asked_for(
    site: Site, path: str
) -> None:
    refused = ask(site, path, {"X-Forwarded-User": "anna"}, peer=OTHER)
    assert refused.status_code == 403
    assert f"comes from {OTHER}" in refused.text or path == "/live"
    assert ask(site, path, {}, peer=OTHER).status_code in (303, 401)
    assert ask(site, path, {}).status_code in (303, 401)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-User": "two words"},
        {"X-Forwarded-User": "anna", "X-Role": "root"},
        {"X-Role": "operate"},
    ],
)
def test_what_is_no_name_or_role_is_refused(site: Site, headers: dict[str, str]) -> None:
    assert ask(site, "/calls", headers).status_code == 403


def test_a_name_that_is_there_twice_is_refused(site: Site) -> None:
    browser = TestClient(site.app, client=(PROXY, 1))
    twice = [("X-Forwarded-User", "anna"), ("X-Forwarded-User", "ben")]
    assert browser.get("/calls", headers=twice).status_code == 403


def test_the_address_counts_that_the_server_saw_and_not_what_a_proxy_says(site: Site) -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        scope["extensions"] = {"millis_hooks.peer": OTHER}  # type: ignore[index]
        await site.app(scope, receive, send)  # type: ignore[arg-type]

    browser = TestClient(app, client=(PROXY, 1))
    assert browser.get("/calls", headers={"X-Forwarded-User": "anna"}).status_code == 403

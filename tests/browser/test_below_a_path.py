"""The dashboard behind a proxy that removes the path of the public address."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from support.proxies import in_front
from support.sites import Server, Site

from .conftest import DEFAULTS, sign_in
from .watched import Watched, watched


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MILLIS_HOOKS_PUBLIC_URL", "https://example.com/voice")
    monkeypatch.setenv("MILLIS_HOOKS_SANDBOX", "1")
    with Site(tmp_path, "").serving() as server:
        server.deliver("-first")
        yield server


@pytest.mark.parametrize(
    "file",
    # What both hand on, tests/project/test_deploy.py compares without a browser.
    ["below-a-path.nginx.conf", pytest.param("below-a-path.Caddyfile", marks=pytest.mark.long)],
)
def test_no_link_form_or_update_leaves_the_path(
    chromium: Browser, service: Server, file: str, tmp_path: Path
) -> None:
    port = urlsplit(service.address).port or 0
    with (
        in_front(file, port, tmp_path) as address,
        chromium.new_context(ignore_https_errors=True, **DEFAULTS) as context,
        watched(context, f"{address}/voice") as tab,
    ):
        assert tab.open("/calls?range=24h") == HTTPStatus.OK
        sign_in(tab)
        tab.page.locator("a.row").first.click()
        expect(tab.page).to_have_url(f"{address}/voice/calls/-first?in=range%3D24h")
        _ask_for_every_link_of_the_header(tab)
        tab.page.locator("header.top a[href*='/calls']").first.click()
        service.deliver("-second")
        expect(tab.page.locator("#news")).to_contain_text("1 new call")
        tab.page.locator("form[action$='/logout'] button").evaluate("button => button.click()")
        expect(tab.page).to_have_url(f"{address}/voice/login")


def _ask_for_every_link_of_the_header(tab: Watched) -> None:
    anchors = tab.page.locator("header.top a[href]")
    links = anchors.evaluate_all("all => all.map((each) => each.href)")
    assert len(links) >= 4
    for link in links:
        assert link.startswith(f"{tab.address}/")
        assert tab.page.request.get(link).ok

"""Scripts are a convenience: every page works without them."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from support.sites import Server

from .conftest import sign_in
from .watched import watched


def test_a_call_is_looked_up_and_replayed_from_signing_in_to_signing_out(
    chromium: Browser, server: Server
) -> None:
    with (
        chromium.new_context(java_script_enabled=False) as context,
        watched(context, server.address) as tab,
    ):
        tab.open("/calls")
        sign_in(tab)
        expect(tab.page).to_have_url(f"{server.address}/calls")
        _turn_pages(tab.page)
        _search(tab.page, "-ordinary-07")
        expect(tab.page.locator("#chat")).to_contain_text("Is there a table for two")
        expect(tab.page.locator("audio[controls]")).to_be_visible()
        _replay(tab.page)
        tab.page.get_by_role("button", name="Sign out").click()
        tab.open("/calls")
        expect(tab.page).to_have_url(re.compile("/login"))


def _turn_pages(page: Page) -> None:
    page.get_by_role("navigation", name="Outcome").get_by_role("link", name="Completed").click()
    expect(page).to_have_url(re.compile("outcome=completed"))
    page.get_by_role("link", name="All").first.click()
    page.get_by_role("group", name="Calls on a page").get_by_role("link", name="25").click()
    page.get_by_role("link", name="Older").click()
    expect(page).to_have_url(re.compile("before="))


def _search(page: Page, session_id: str) -> None:
    page.get_by_label("Search calls").fill(session_id)
    page.get_by_role("button", name="Search").click()
    page.locator("a.row").click()
    expect(page).to_have_url(re.compile(f"/calls/{session_id}"))


def _replay(page: Page) -> None:
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("button", name="Replay handlers").click()
    expect(page.locator("#replay-call")).to_contain_text("sync_crm failed")
    expect(page.get_by_label("count is done")).not_to_be_checked()
    page.get_by_role("button", name="Replay chosen").click()
    expect(page.get_by_role("main").get_by_role("status")).to_contain_text("sync_crm")
    expect(page).to_have_url(re.compile("#run-"))

"""Scripts are a convenience: every page works without them."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from .conftest import sign_in
from .watched import Watched


def test_a_call_is_looked_up_and_replayed_from_signing_in_to_signing_out(
    scriptless: Watched,
) -> None:
    page = scriptless.page
    page.context.clear_cookies()
    scriptless.open("/calls")
    sign_in(scriptless)
    expect(page).to_have_url(f"{scriptless.address}/calls")
    _turn_pages(page)
    _search(page, "-ordinary-07")
    expect(page.locator("#chat")).to_contain_text("Is there a table for two")
    expect(page.locator("audio[controls]")).to_be_visible()
    _replay(page)
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile("/login"))


def _turn_pages(page: Page) -> None:
    page.get_by_role("navigation", name="Outcome").get_by_role("link", name="Completed").click()
    expect(page).to_have_url(re.compile("outcome=completed"))
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

"""The daily job: find what failed, see why, run it again, look up the caller, in few clicks."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from .watched import Watched


def test_a_failed_run_is_understood_and_retried_and_its_caller_looked_up_in_three_clicks(
    tab: Watched,
) -> None:
    page = tab.page
    tab.open("/calls?handler=failed")
    page.locator("a.row[href*='-ordinary-']").first.click()
    expect(page.locator("#runs .trace b").first).to_contain_text("ValueError")
    expect(page.locator("#runs")).to_contain_text("frames of millis_hooks")
    page.locator("#alerts").get_by_role("button", name="Retry sync_crm").click()
    expect(page).to_have_url(re.compile("#run-"))
    expect(page.locator("#runs")).to_contain_text("Superseded by replay")
    page.get_by_role("link", name=re.compile("other call")).first.click()
    expect(page).to_have_url(re.compile("range=all&number="))
    expect(page.locator("a.row[href*='-ordinary-']").first).to_be_visible()

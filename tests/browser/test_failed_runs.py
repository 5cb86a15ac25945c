"""The daily job: find what failed, see why, run it again, look up the caller, in few clicks."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from .watched import Watched


class Clicks:
    """Clicks, and how many there were."""

    def __init__(self) -> None:
        self.count = 0

    def on(self, target: Locator) -> None:
        self.count += 1
        target.click()


def test_a_failed_run_is_found_understood_and_retried_in_four_clicks(tab: Watched) -> None:
    page, clicks = tab.page, Clicks()
    tab.open("/calls?handler=failed")
    clicks.on(page.locator("a.row[href*='-ordinary-']").first)
    expect(page.locator("#runs .trace b").first).to_contain_text("ValueError")
    expect(page.locator("#runs")).to_contain_text("frames of millis_hooks")
    assert clicks.count <= 3
    clicks.on(page.locator("#alerts").get_by_role("button", name="Retry sync_crm"))
    expect(page).to_have_url(re.compile("#run-"))
    expect(page.locator("#runs")).to_contain_text("Superseded by replay")
    assert clicks.count <= 4


def test_the_history_of_a_caller_is_one_click_away(tab: Watched) -> None:
    tab.open("/calls/-ordinary-03")
    tab.page.get_by_role("link", name=re.compile("other call")).first.click()
    expect(tab.page).to_have_url(re.compile("range=all&number="))
    expect(tab.page.locator("a.row[href*='-ordinary-']").first).to_be_visible()

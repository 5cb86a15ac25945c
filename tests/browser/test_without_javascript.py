"""What scripts do is a comfort: every page is used without them too."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, expect

from support.sites import Server

from .conftest import OpenTab, sign_in
from .watched import watched


def test_signing_in_leads_on_and_signing_out_ends_it(chromium: Browser, server: Server) -> None:
    context = chromium.new_context(java_script_enabled=False)
    with watched(context, server.address) as tab:
        tab.open("/drift")
        sign_in(tab)
        expect(tab.page).to_have_url(f"{server.address}/drift")
        tab.page.get_by_role("button", name="Sign out").click()
        expect(tab.page).to_have_url(re.compile("/login"))
        tab.open("/drift")
        expect(tab.page).to_have_url(re.compile("/login"))
    context.close()


def test_a_call_is_searched_for_and_opened(open_tab: OpenTab) -> None:
    with open_tab(java_script_enabled=False) as tab:
        tab.open("/calls")
        tab.page.get_by_label("Search calls").fill("-ordinary-05")
        tab.page.get_by_role("button", name="Search").click()
        tab.page.locator("a.row").click()
        expect(tab.page).to_have_url(re.compile("/calls/-ordinary-05"))
        expect(tab.page.locator("#chat")).to_contain_text("Is there a table for two")


def test_the_list_is_filtered_and_its_pages_are_turned(open_tab: OpenTab) -> None:
    with open_tab(java_script_enabled=False) as tab:
        tab.open("/calls?size=25")
        tab.page.get_by_role("link", name="Older").click()
        expect(tab.page).to_have_url(re.compile("before="))
        tab.open("/calls")
        tab.page.get_by_role("navigation", name="Outcome").get_by_role(
            "link", name="Completed"
        ).click()
        expect(tab.page).to_have_url(re.compile("outcome=completed"))


def test_a_handler_is_replayed_after_its_side_effects_are_named(open_tab: OpenTab) -> None:
    with open_tab(java_script_enabled=False) as tab:
        tab.open("/calls/-ordinary-07")
        tab.page.get_by_role("button", name="Replay handlers").click()
        expect(tab.page.locator("#replay-call")).to_contain_text("sync_crm")
        tab.page.locator("#replay-call form").get_by_role("button").click()
        expect(tab.page.get_by_role("main").get_by_role("status")).to_contain_text("Queued: 2.")


def test_a_recording_has_the_browsers_own_player(open_tab: OpenTab) -> None:
    with open_tab(java_script_enabled=False) as tab:
        tab.open("/calls/-ordinary-01")
        expect(tab.page.locator("audio[controls]")).to_be_visible()

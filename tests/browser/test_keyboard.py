"""Frequent actions have keyboard shortcuts, which can be turned off."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from .conftest import OpenTab
from .watched import Watched


def test_a_slash_goes_to_the_search(tab: Watched) -> None:
    tab.open("/calls")
    tab.page.keyboard.press("/")
    expect(tab.page.locator("#q")).to_be_focused()
    tab.page.keyboard.type("-ordinary-03")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("a.row")).to_have_count(1)


def test_j_and_k_walk_through_the_rows_and_enter_opens_one(tab: Watched) -> None:
    tab.open("/calls?q=ordinary")
    rows = tab.page.locator("a.row")
    for key in "jjk":
        tab.page.keyboard.press(key)
    expect(rows.first).to_be_focused()
    tab.page.keyboard.press("Enter")
    expect(tab.page).to_have_url(re.compile(r"/calls/-ordinary-"))


def test_brackets_turn_the_pages_of_the_list(tab: Watched) -> None:
    tab.open("/calls?size=25")
    first = tab.page.locator("a.row").first.get_attribute("href")
    tab.page.keyboard.press("]")
    tab.page.wait_for_url(re.compile("before="))
    tab.page.keyboard.press("[")
    tab.page.wait_for_url(re.compile("after="))
    assert tab.page.locator("a.row").first.get_attribute("href") == first


def test_g_and_a_letter_go_to_each_page_of_the_navigation(tab: Watched) -> None:
    tab.open("/deliveries/drift")
    places = {
        link.get_attribute("data-go"): link.get_attribute("href")
        for link in tab.page.locator("[data-go]").all()
    }
    assert {"c", "a", "d", "u"} <= places.keys()
    for letter, href in places.items():
        tab.page.keyboard.press("g")
        tab.page.keyboard.press(str(letter))
        # Keys are heard once the scripts of the new page have run.
        tab.page.wait_for_url(tab.address + str(href), wait_until="load")


def test_the_list_of_shortcuts_has_their_off_switch(open_tab: OpenTab) -> None:
    with open_tab() as tab:
        tab.open("/calls")
        tab.page.keyboard.press("?")
        switch = tab.page.locator("[data-keys-toggle]")
        expect(switch).to_be_visible()
        switch.uncheck()
        tab.page.keyboard.press("Escape")
        tab.open("/deliveries/drift")
        for key in "/jgc?":
            tab.page.keyboard.press(key)
        expect(tab.page).to_have_url(re.compile("/drift$"))
        expect(tab.page.locator("#keys")).not_to_be_visible()
        tab.page.locator("[data-keys-open]").click()
        expect(switch).not_to_be_checked()


def test_the_first_tab_stop_skips_to_the_content(tab: Watched) -> None:
    tab.open("/calls")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#main")).to_be_focused()

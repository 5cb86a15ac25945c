"""Frequent actions have keyboard shortcuts, which can be turned off."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from .watched import Watched

_BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"


def test_keys_skip_the_navigation_and_turn_the_pages_of_the_list(tab: Watched) -> None:
    tab.open("/calls?size=25")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#main")).to_be_focused()
    first = tab.page.locator("a.row").first.get_attribute("href")
    tab.page.keyboard.press("]")
    tab.page.wait_for_url(re.compile("before="))
    tab.page.keyboard.press("[")
    tab.page.wait_for_url(re.compile("after="))
    assert tab.page.locator("a.row").first.get_attribute("href") == first


def test_keys_search_walk_through_the_rows_open_one_and_go_elsewhere(tab: Watched) -> None:
    tab.open("/calls")
    tab.page.keyboard.press("/")
    expect(tab.page.locator("#q")).to_be_focused()
    tab.page.keyboard.type("-ordinary-1")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url(re.compile("q=-ordinary-1"))
    rows = tab.page.locator("a.row")
    expect(rows).to_have_count(10)
    for key in "jjk":
        tab.page.keyboard.press(key)
    expect(rows.first).to_be_focused()
    tab.page.keyboard.press("Enter")
    # Keys are heard once the scripts of the new page have run.
    tab.page.wait_for_url(re.compile(r"/calls/-ordinary-1"))
    tab.page.keyboard.press("g")
    tab.page.keyboard.press("d")
    tab.page.wait_for_url(tab.address + "/deliveries")


def test_the_theme_and_the_off_switch_of_the_shortcuts_are_kept(tab: Watched) -> None:
    page = tab.page
    tab.open("/calls")
    page.keyboard.press("t")
    page.keyboard.press("?")
    switch = page.locator("[data-keys-toggle]")
    expect(switch).to_be_visible()
    switch.uncheck()
    page.keyboard.press("Escape")
    tab.open("/deliveries/drift")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    for key in "/jtgc?":
        page.keyboard.press(key)
    expect(page).to_have_url(re.compile("/drift$"))
    expect(page.locator("#keys")).not_to_be_visible()
    dark = page.evaluate(_BACKGROUND)
    page.locator("[data-theme-toggle]").click()
    assert page.evaluate(_BACKGROUND) != dark
    page.locator("[data-keys-open]").click()
    expect(switch).not_to_be_checked()

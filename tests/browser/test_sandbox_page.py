"""The sandbox in a browser: a call is held in place, and without scripts as well."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect

from support.sites import Server

from .conftest import sign_in
from .hostile import MARKUP
from .watched import NARROWEST_PX, SIZES, Watched, watched


@contextmanager
def at_sandbox(browser: Browser, server: Server, **options: object) -> Iterator[Watched]:
    context = browser.new_context(**options)  # type: ignore[arg-type]
    try:
        with watched(context, server.address) as tab:
            tab.open("/sandbox")
            sign_in(tab)
            yield tab
    finally:
        context.close()


def hold_a_call(tab: Watched, said: str = "Twice charged") -> None:
    tab.page.get_by_role("button", name="Start call").click()
    tab.page.get_by_label("What is said").fill(said)
    tab.page.get_by_role("button", name="Send").click()
    expect(tab.page.get_by_role("log")).to_contain_text(f"You said: {said}")


def end_it(tab: Watched) -> None:
    tab.page.get_by_role("button", name="End call").click()
    expect(tab.page.locator("#talk")).to_contain_text("User ended")


@pytest.mark.parametrize("scripts", [True, False])
def test_a_call_is_held_and_followed_into_the_dashboard(
    chromium: Browser, rehearsing: Server, scripts: bool
) -> None:
    with at_sandbox(chromium, rehearsing, java_script_enabled=scripts) as tab:
        hold_a_call(tab)
        expect(tab.page.locator("#inspect")).to_contain_text("Maria")
        end_it(tab)
        if not scripts:
            tab.page.reload()
        expect(tab.page.locator("#inspect")).to_contain_text("ValueError: nothing to book")
        tab.page.get_by_role("link", name="Open the call").click()
        expect(tab.page.locator("#chat")).to_contain_text("You said: Twice charged")
        expect(tab.page.get_by_role("main")).to_contain_text("Sandbox")


def test_the_conversation_outlives_a_reload(chromium: Browser, rehearsing: Server) -> None:
    with at_sandbox(chromium, rehearsing) as tab:
        hold_a_call(tab)
        tab.page.reload()
        expect(tab.page.get_by_role("log")).to_contain_text("You said: Twice charged")
        expect(tab.page.get_by_label("What is said")).to_be_visible()


def test_the_equivalent_follows_the_choice(chromium: Browser, rehearsing: Server) -> None:
    with at_sandbox(chromium, rehearsing) as tab:
        expect(tab.page.locator("#snippet")).to_contain_text("initiate")
        expect(tab.page.get_by_label("From", exact=True)).to_be_hidden()
        tab.page.get_by_label("Outbound API").check()
        expect(tab.page.locator("#snippet")).to_contain_text("/start_outbound_call")
        expect(tab.page.get_by_label("From", exact=True)).to_be_visible()


def test_keys_are_added_up_to_the_limit(chromium: Browser, rehearsing: Server) -> None:
    with at_sandbox(chromium, rehearsing) as tab:
        for _ in range(25):
            tab.page.get_by_role("button", name="Add key").click()
        expect(tab.page.locator("[data-row]")).to_have_count(20)
        tab.page.get_by_label("Key 20", exact=True).fill("last")
        hold_a_call(tab)
        expect(tab.page.locator("#inspect")).to_contain_text("last")


def test_what_is_wrong_is_said_where_it_was_typed(chromium: Browser, rehearsing: Server) -> None:
    with at_sandbox(chromium, rehearsing) as tab:
        tab.page.get_by_label("Value 1 is JSON").check()
        tab.page.get_by_role("button", name="Start call").click()
        expect(tab.page.get_by_role("alert")).to_contain_text("not JSON")
        assert any("422" in fault for fault in tab.faults())


def test_the_link_brings_the_draft_to_another_tab(chromium: Browser, rehearsing: Server) -> None:
    with at_sandbox(chromium, rehearsing) as tab:
        tab.page.get_by_label("Prompt", exact=True).fill("Be {mood}.")
        tab.page.get_by_label("Key 1", exact=True).fill("api_key")
        address = tab.page.evaluate("draftAddress(document.querySelector('#start'))")
        assert "C-20931" not in address
        tab.page.goto(address)
        expect(tab.page.get_by_label("Prompt", exact=True)).to_have_value("Be {mood}.")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_holds_up_over_a_hostile_call(
    chromium: Browser, rehearsing: Server, theme: str
) -> None:
    with at_sandbox(chromium, rehearsing, color_scheme=theme) as tab:
        found = [*_faults(tab)]
        for label in ("Key 1", "Value 1", "Prompt", "First message", "Agent ID"):
            tab.page.get_by_label(label, exact=True).fill(MARKUP + "x" * 300)
        hold_a_call(tab, said="y" * 400)
        found += _faults(tab)
        end_it(tab)
        expect(tab.page.locator("#inspect")).to_contain_text("Open the call")
        found += _faults(tab)
    assert not found, "\n".join(found)


def test_a_phone_has_room_for_it(chromium: Browser, rehearsing: Server) -> None:
    with at_sandbox(chromium, rehearsing, viewport={"width": 390, "height": 844}) as tab:
        hold_a_call(tab)
        expect(tab.page.get_by_role("button", name="End call")).to_be_visible()
        assert re.search(r"session=", tab.page.url)


def _faults(tab: Watched) -> Iterator[str]:
    for width, height in SIZES:
        tab.page.set_viewport_size({"width": width, "height": height})
        if over := tab.overflow_px():
            yield f"{width} px: {over} px too wide"
        yield from (f"{width} px: {barrier}" for barrier in tab.barriers())
        yield from (f"{width} px: {fault}" for fault in tab.faults())
    tab.page.set_viewport_size({"width": NARROWEST_PX, "height": 640})
    if over := tab.overflow_px():
        yield f"{NARROWEST_PX} px: {over} px too wide"
    tab.page.set_viewport_size({"width": 1440, "height": 900})

"""The sandbox in a browser: a call is held in place, and without scripts as well."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from .conftest import OpenTab
from .hostile import MARKUP
from .watched import Watched, too_wide


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
    open_sandbox: OpenTab, scripts: bool
) -> None:
    with open_sandbox(java_script_enabled=scripts) as tab:
        tab.open("/sandbox")
        hold_a_call(tab)
        expect(tab.page.locator("#inspect")).to_contain_text("Maria")
        end_it(tab)
        if not scripts:
            tab.page.reload()
        expect(tab.page.locator("#inspect")).to_contain_text("ValueError: nothing to book")
        tab.page.get_by_role("link", name="Open the call").click()
        expect(tab.page.locator("#chat")).to_contain_text("You said: Twice charged")
        expect(tab.page.get_by_role("main")).to_contain_text("Sandbox")


def test_the_equivalent_follows_the_choice(sandbox: Watched) -> None:
    expect(sandbox.page.locator("#snippet")).to_contain_text("initiate")
    expect(sandbox.page.get_by_label("From", exact=True)).to_be_hidden()
    sandbox.page.get_by_label("Outbound API").check()
    expect(sandbox.page.locator("#snippet")).to_contain_text("/start_outbound_call")
    expect(sandbox.page.get_by_label("From", exact=True)).to_be_visible()


def test_keys_are_added_up_to_the_limit_and_a_call_survives_a_reload(sandbox: Watched) -> None:
    for _ in range(25):
        sandbox.page.get_by_role("button", name="Add key").click()
    expect(sandbox.page.locator("[data-row]")).to_have_count(20)
    sandbox.page.get_by_label("Key 20", exact=True).fill("last")
    hold_a_call(sandbox)
    expect(sandbox.page.locator("#inspect")).to_contain_text("last")
    sandbox.page.reload()
    expect(sandbox.page.get_by_role("log")).to_contain_text("You said: Twice charged")
    expect(sandbox.page.get_by_label("What is said")).to_be_visible()


def test_an_error_is_shown_at_its_field(sandbox: Watched) -> None:
    sandbox.page.get_by_label("Value 1 is JSON").check()
    sandbox.page.get_by_role("button", name="Start call").click()
    expect(sandbox.page.get_by_role("alert")).to_contain_text("not JSON")
    expect(sandbox.page.get_by_label("Value 1", exact=True)).to_be_focused()
    assert sandbox.page.url.endswith("/sandbox")
    assert any("422" in fault for fault in sandbox.faults())


def test_the_link_brings_the_draft_to_another_tab(sandbox: Watched) -> None:
    sandbox.page.get_by_label("Prompt", exact=True).fill("Be {mood}.")
    sandbox.page.get_by_label("Key 1", exact=True).fill("api_key")
    address = sandbox.page.evaluate("draftAddress(document.querySelector('#start'))")
    assert "C-20931" not in address
    sandbox.page.goto(address)
    expect(sandbox.page.get_by_label("Prompt", exact=True)).to_have_value("Be {mood}.")


def test_the_page_has_no_faults_over_a_hostile_call(sandbox: Watched) -> None:
    faults = [*too_wide(sandbox)]
    for label in ("Key 1", "Value 1", "Prompt", "First message", "Agent ID"):
        sandbox.page.get_by_label(label, exact=True).fill(MARKUP + "x" * 300)
    hold_a_call(sandbox, said="y" * 400)
    faults += too_wide(sandbox)
    faults += sandbox.barriers()
    end_it(sandbox)
    expect(sandbox.page.locator("#inspect")).to_contain_text("Open the call")
    faults += too_wide(sandbox)
    sandbox.page.set_viewport_size({"width": 1440, "height": 900})
    faults += sandbox.barriers()
    faults += sandbox.faults()
    sandbox.page.emulate_media(color_scheme="dark")
    faults += sandbox.barriers("color-contrast")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("size", [(1440, 900), (390, 844)])
def test_a_call_is_started_held_and_run_again_in_sight(
    sandbox: Watched, size: tuple[int, int]
) -> None:
    sandbox.page.set_viewport_size({"width": size[0], "height": size[1]})
    expect(sandbox.page.get_by_role("button", name="Start call")).to_be_in_viewport(ratio=1)
    hold_a_call(sandbox)
    expect(sandbox.page.get_by_role("heading", name="Conversation")).to_be_in_viewport()
    expect(sandbox.page.get_by_role("button", name="End call")).to_be_visible()
    assert re.search(r"session=", sandbox.page.url)
    end_it(sandbox)
    sandbox.page.get_by_role("button", name="Run again").click()
    expect(sandbox.page.get_by_label("What is said")).to_be_in_viewport()

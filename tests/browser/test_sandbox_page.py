"""The sandbox in a browser: a call is held in place, and without scripts as well."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from support.sites import Server

from .conftest import be_signed_in
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


def test_a_call_is_held_over_a_reload_and_followed_into_the_dashboard(sandbox: Watched) -> None:
    page = sandbox.page
    expect(page.get_by_role("button", name="Start call")).to_be_in_viewport(ratio=1)
    press = "button => { for (let each = 0; each < 25; each++) button.click(); }"
    page.get_by_role("button", name="Add key").evaluate(press)
    expect(page.locator("[data-row]")).to_have_count(20)
    page.get_by_label("Key 20", exact=True).fill("last")
    hold_a_call(sandbox)
    expect(page.get_by_role("heading", name="Conversation")).to_be_in_viewport()
    expect(page.get_by_role("button", name="End call")).to_be_visible()
    expect(page.locator("#inspect")).to_contain_text("last")
    expect(page.locator("#inspect")).to_contain_text("Maria")
    assert re.search(r"session=", page.url)
    page.reload()
    expect(page.get_by_role("log")).to_contain_text("You said: Twice charged")
    expect(page.get_by_label("What is said")).to_be_visible()
    end_it(sandbox)
    expect(page.locator("#inspect")).to_contain_text("ValueError: nothing to book")
    page.get_by_role("link", name="Open the call").click()
    expect(page.locator("#chat")).to_contain_text("You said: Twice charged")
    expect(page.get_by_role("main")).to_contain_text("Sandbox")


def test_a_call_is_started_and_run_again_in_sight_on_a_telephone(sandbox: Watched) -> None:
    page = sandbox.page
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.get_by_role("button", name="Start call")).to_be_in_viewport(ratio=1)
    hold_a_call(sandbox)
    expect(page.get_by_role("heading", name="Conversation")).to_be_in_viewport()
    expect(page.get_by_role("button", name="End call")).to_be_visible()
    end_it(sandbox)
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_label("What is said")).to_be_in_viewport()


def test_a_call_is_held_without_scripts(scriptless: Watched, server: Server) -> None:
    be_signed_in(scriptless.page.context, server, scriptless.address)
    scriptless.open("/sandbox")
    hold_a_call(scriptless)
    expect(scriptless.page.locator("#inspect")).to_contain_text("Maria")
    end_it(scriptless)
    scriptless.page.reload()
    expect(scriptless.page.locator("#inspect")).to_contain_text("ValueError: nothing to book")


def test_the_form_follows_the_choice_and_its_link_brings_the_draft_to_another_tab(
    sandbox: Watched,
) -> None:
    page = sandbox.page
    expect(page.locator("#snippet")).to_contain_text("initiate")
    expect(page.get_by_label("From", exact=True)).to_be_hidden()
    page.get_by_label("Outbound API").check()
    expect(page.locator("#snippet")).to_contain_text("/start_outbound_call")
    expect(page.get_by_label("From", exact=True)).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("Be {mood}.")
    page.get_by_label("Key 1", exact=True).fill("api_key")
    address = page.evaluate("draftAddress(document.querySelector('#start'))")
    assert "C-20931" not in address
    page.goto(address)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("Be {mood}.")


def test_an_error_is_shown_at_its_field(sandbox: Watched) -> None:
    sandbox.page.get_by_label("Value 1 is JSON").check()
    sandbox.page.get_by_role("button", name="Start call").click()
    expect(sandbox.page.get_by_role("alert")).to_contain_text("not JSON")
    expect(sandbox.page.get_by_label("Value 1", exact=True)).to_be_focused()
    assert sandbox.page.url.endswith("/sandbox")
    assert any("422" in fault for fault in sandbox.faults())


def test_the_page_has_no_faults_over_a_hostile_call(sandbox: Watched) -> None:
    for label in ("Key 1", "Value 1", "Prompt", "First message", "Agent ID"):
        sandbox.page.get_by_label(label, exact=True).fill(MARKUP + "x" * 300)
    hold_a_call(sandbox, said="y" * 400)
    faults = [*too_wide(sandbox)]
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

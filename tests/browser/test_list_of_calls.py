"""Tasks of the day on the list of calls, with the clicks they may take."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from playwright.sync_api import expect

from millis_hooks.protocol.samples import end_of_call_body
from support.app import SECRET
from support.waiting import eventually

from .watched import Watched


def test_the_voicemail_of_an_agent_is_a_csv_file_after_five_clicks(tab: Watched) -> None:
    page, agent_id = tab.page, "-OxVoicemailAgent"
    end = end_of_call_body(
        session_id="-voicemail", agent_id=agent_id, call_status="voicemail-message"
    )
    headers = {"Authorization": f"Bearer {SECRET}"}
    page.request.post(f"{tab.address}/millis/end-of-call", data=end, headers=headers)
    eventually(lambda: page.request.get(f"{tab.address}/calls/-voicemail.json").ok)
    tab.open("/calls")
    page.get_by_role("button", name="All agents").click()
    page.locator(f"#f-agents [title={agent_id}]").get_by_role("link").click()
    page.get_by_role("navigation", name="Outcome").get_by_role("link", name="Voicemail").click()
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV", exact=True).click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["session_id"], row["outcome"]) for row in rows] == [("-voicemail", "voicemail")]


@pytest.mark.long  # tests/dashboard/test_operators_page.py follows the same links and forms
def test_six_calls_of_a_number_are_erased_in_four_clicks(tab: Watched) -> None:
    number, headers = "+14155550166", {"Authorization": f"Bearer {SECRET}"}
    page = tab.page
    for each in range(6):
        end = end_of_call_body(session_id=f"-erase-{each}", from_phone=number)
        page.request.post(f"{tab.address}/millis/end-of-call", data=end, headers=headers)
    eventually(lambda: _is_settled(tab, "-erase-5"))
    tab.open("/calls")
    page.locator("a.row[href*='-erase-']").first.click()
    page.get_by_role("button", name="More actions").click()
    page.get_by_role("link", name="Erase this number").click()
    expect(page.get_by_role("main")).to_contain_text("6 calls")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Erased")).to_be_visible()
    page.get_by_role("link", name="Back to the calls").click()
    expect(page.locator("a.row[href*='-erase-']")).to_have_count(0)


def _is_settled(tab: Watched, session_id: str) -> bool:
    """Tell whether the handlers of a call are done."""
    call = tab.page.request.get(f"{tab.address}/calls/{session_id}.json")
    return call.ok and {run["state"] for run in call.json()["runs"]} == {"succeeded", "failed"}


def test_the_sheet_of_filters_gives_the_focus_back_and_forgets_what_was_not_applied(
    tab: Watched,
) -> None:
    tab.open("/calls")
    button = tab.page.get_by_role("button", name="More filters")
    button.click()
    tab.page.get_by_label("Busy").check()
    tab.page.get_by_label("Phone number").fill("0129")
    tab.page.keyboard.press("Escape")
    expect(button).to_be_focused()
    button.click()
    expect(tab.page.get_by_label("Busy")).not_to_be_checked()
    tab.page.get_by_label("Phone number").fill("0129")
    tab.page.get_by_role("button", name="Apply").last.click()
    expect(tab.page).to_have_url(tab.address + "/calls?number=0129")
    expect(tab.page.get_by_role("button", name="More filters 1")).to_be_visible()

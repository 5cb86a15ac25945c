"""The conversation on the page of a call."""

from __future__ import annotations

from support.dashboard_site import Page, Site


def test_a_transcript_shows_who_spoke_and_what_was_called(site: Site) -> None:
    call = {"id": "1", "function": {"name": "find_slot", "arguments": '{"day": "tue"}'}}
    site.add_ended_call(
        chat=[
            {"role": "user", "content": "Tuesday please"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "10:30 free"},
            {"role": "supervisor", "content": "Well done"},
        ]
    )
    lines = site.get("/calls/-call.json").json()["conversation"]["lines"]
    assert [line["kind"] for line in lines] == ["user", "assistant", "tool", "other"]
    assert lines[2]["tool"] == {
        "name": "find_slot",
        "params": {"day": "tue"},
        "result": "10:30 free",
        "ours": None,
    }
    assert "supervisor: Well done" in site.page("/calls/-call").text


def test_function_calls_are_listed_apart_when_the_transcript_has_none(site: Site) -> None:
    site.add_ended_call(
        chat='[{"role": "user", "content": "Hi"}]',
        function_calls=[{"name": "find_slot", "params": {"day": "tue"}, "result": "free"}],
    )
    assert "Millis sends no times for them find_slot" in site.page("/calls/-call").text


def test_a_function_that_only_we_know_of_is_counted_with_the_others(site: Site) -> None:
    site.add_ended_call(chat='[{"role": "user", "content": "Hi"}]')
    site.stored.add_delivery("function", session_id="-call", function="find_slot", body=b"{}")
    text = site.page("/calls/-call").text
    assert "Function calls 1" in text
    assert "Function calls answered here find_slot" in text


def test_a_call_that_a_function_began_tells_of_no_prefetch(site: Site) -> None:
    site.stored.add_unended_call("-call", minutes_ago=1)
    site.stored.add_delivery("function", session_id="-call", function="find_slot", body=b"{}")
    text = site.page("/calls/-call").text
    assert "No prefetch received" in text
    assert "UTC, first request" in text
    assert "prefetch seen" not in text


def test_a_very_long_transcript_is_shown_in_part(site: Site) -> None:
    site.add_ended_call(
        chat=[{"role": "user", "content": "word " * 200_000}]
        + [{"role": "assistant", "content": "yes"}] * 3000
    )
    response = site.get("/calls/-call")
    assert "more in the JSON" in Page(response).text
    assert len(response.content) < 3_000_000


def test_very_many_tools_are_shown_in_part(site: Site) -> None:
    site.add_ended_call(function_calls=[{"name": "look_up", "params": {}}] * 3000)
    page = site.page("/calls/-call")
    assert len(page.all("details", **{"class": "tool"})) == 1000
    assert "function_calls: a list of 3,000 items; the first 1,000 are read" in page.text

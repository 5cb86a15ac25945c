"""What a call's page hands on: Markdown, and a draft of its rehearsal."""

from __future__ import annotations

from typing import Any

import pytest

from support.dashboard_site import HOSTILE, Site


def view(site: Site, path: str = "/calls/-call") -> dict[str, Any]:
    data: dict[str, Any] = site.get(f"{path}.json").json()
    return data


def test_markdown_says_who_when_and_what_failed(site: Site) -> None:
    site.stored.add_handler("sync_crm")
    call_id = site.stored.add_call(
        "-call", call_status="user-ended", duration_s=41.0, from_phone="+14155550134"
    )
    run_id = site.stored.add_run(call_id, "sync_crm", "failed", spent=2)
    site.stored.add_attempt(
        run_id, 2, outcome="failed", error_type="ValueError", error_message="no `such` customer"
    )
    markdown = view(site)["markdown"]
    assert markdown.startswith("**+1 415 555 0134**\nNov 21 2026, 14:10:00 UTC · 0:41 · User ended")
    assert "<http://testserver/calls/-call>" in markdown
    assert (
        "**`sync_crm` failed after 2 attempts**\n```\nValueError: no `such` customer\n```"
        in markdown
    )


def test_hostile_text_stays_text_in_markdown(site: Site) -> None:
    site.stored.add_call("-call", from_phone="*a* [b](c) <img>", error_message="```\n# x")
    markdown = view(site)["markdown"]
    assert r"**\*a\* \[b\](c) \<img\>**" in markdown
    assert r"Millis reported: \`\`\` \# x" in markdown


def test_a_call_is_simulated_as_it_began(site: Site) -> None:
    site.add_prefetch("tier=silver&password=hunter2", metadata={"tier": "gold", "name": "Ada"})
    site.add_ended_call(metadata={"tier": "gold", "name": "Ada", "password": "hunter2"})
    rehearsal = view(site)["rehearsal"]
    rows = {rehearsal[f"key{n}"]: rehearsal[f"value{n}"] for n in (1, 2)}
    assert rows == {"tier": "silver", "password": ""}
    assert "key3" not in rehearsal


@pytest.mark.parametrize(
    ("columns", "way"),
    [
        ({"channel": "phone", "direction": "outbound"}, "outbound"),
        ({"channel": "phone", "direction": None}, "inbound"),
        ({"channel": "web"}, "web-sdk"),
        ({"channel": "chat"}, "websocket"),
    ],
)
def test_the_way_of_a_simulated_call_is_that_of_the_call(
    site: Site, columns: dict[str, Any], way: str
) -> None:
    site.stored.add_call("-call", **columns)
    assert view(site)["rehearsal"]["way"] == way


def test_an_address_of_a_simulated_call_has_an_end(site: Site) -> None:
    metadata = {f"key{n}": "x" * 900 for n in range(50)} | {"long": "y" * 5000, "<b>": HOSTILE}
    site.add_ended_call(metadata=metadata)
    assert len(str(view(site)["rehearsal"])) < 6000


def test_the_other_calls_of_a_number_are_counted_and_linked(site: Site) -> None:
    for number in range(3):
        columns: dict[str, Any] = {"direction": "inbound", "customer_phone": "+14155550134"}
        site.stored.add_call(f"-{number}", from_phone="+14155550134", **columns)
    site.stored.add_call("-other", from_phone="+14155550135")
    page = site.page("/calls/-0")
    assert "2 other calls with this number" in page.text
    assert "/calls?range=all&number=%2B14155550134" in page.links()
    assert "other call" not in site.page("/calls/-other").text


def test_facts_of_a_call_lead_to_the_calls_that_share_them(site: Site) -> None:
    site.add_ended_call(
        metadata={"tier": "gold"},
        function_calls=[{"name": "book", "params": {}, "result": "ok"}],
    )
    links = site.page("/calls/-call").links()
    for query in ("meta=tier%3Dgold", "function=book", "outcome=completed"):
        assert f"/calls?range=all&{query}" in links

"""A call's page says what happened, what we told the agent, what it cost and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from millis_hooks.masking.secret_patterns import MASK
from millis_hooks.operators.accounts import add, hash_password
from support.dashboard_site import HOSTILE, Page, Site
from support.stored_calls import NOW

CONFIG = {"voice": {"api_key": "sk-abcdefghijklmnop1234"}, "llm": "gpt"}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


def add_prefetch(site: Site, query: str = "session_id=-call", **answer: Any) -> int:
    return site.stored.add_delivery(
        "prefetch",
        session_id="-call",
        query=query,
        answer=json.dumps(answer).encode(),
        outcome="fresh",
        latency_ms=84.0,
        received_at=NOW - timedelta(minutes=5),
    )


def steps(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.get("/calls/-call.json").json()["timeline"]
    return found


def entries(site: Site) -> dict[str, tuple[object, object, object, object]]:
    """What became of each key: its value, the one before, the change, and who made it."""
    found = site.get("/calls/-call.json").json()["metadata"]
    return {
        each["key"]: (each["value"], each["before"], each["change"], each["by"]) for each in found
    }


def test_the_timeline_says_by_whose_clock_each_step_was(site: Site) -> None:
    add_prefetch(site)
    delivery_id = site.stored.add_delivery(
        session_id="-call", body=b'{"session_id": "-call"}', received_at=NOW
    )
    started_at = NOW - timedelta(seconds=61.8)
    site.stored.add_call(
        "-call",
        delivery_id=delivery_id,
        started_at=started_at,
        duration_s=60.0,
        call_status="user-ended",
    )
    assert [(step["kind"], step["clock"]) for step in steps(site)] == [
        ("prefetch", "here"),
        ("started", "millis"),
        ("ended", "millis"),
        ("received", "here"),
    ]
    assert steps(site)[-1]["after_s"] == pytest.approx(1.8)
    text = site.page("/calls/-call").text
    assert "User ended 14:19:58 1:00 long; by Millis' clock" in text
    assert "measured here, after Millis' end" in text


def test_clocks_that_disagree_give_no_lag(site: Site) -> None:
    site.add_ended_call()
    site.stored.add_delivery(session_id="-late", body=b"{}", received_at=NOW)
    site.stored.add_call("-late", started_at=NOW + timedelta(hours=9), duration_s=60.0)
    received = site.get("/calls/-late.json").json()["timeline"][-1]
    assert (received["kind"], received["after_s"]) == ("received", None)


@pytest.mark.parametrize(("minutes_ago", "kind"), [(1, "live"), (200, "lost")])
def test_without_an_end_the_timeline_says_what_is_missing(
    site: Site, minutes_ago: float, kind: str
) -> None:
    site.stored.add_unended_call("-call", minutes_ago=minutes_ago)
    assert [step["kind"] for step in steps(site)] == ["unasked", kind]


def test_metadata_shows_its_source(site: Site) -> None:
    add_prefetch(
        site,
        "session_id=-call&tier=silver&id=7&campaign=autumn&mood=calm",
        metadata={"tier": "gold", "name": "Ada"},
    )
    site.add_ended_call(
        metadata={"tier": "gold", "name": "Ada", "id": "7", "booked": True, "mood": "angry"}
    )
    assert entries(site) == {
        "tier": ("gold", "silver", "changed", "prefetch"),
        "name": ("Ada", None, "added", "prefetch"),
        "id": ("7", None, None, None),
        "booked": (True, None, "added", "call"),
        "mood": ("angry", "calm", "changed", "call"),
        "campaign": (None, "autumn", "gone", "call"),
    }
    text = site.page("/calls/-call").text
    for said in ("silver gold Changed", "Ada Added", "true Added in the call", "autumn Gone"):
        assert said in text


def test_of_very_many_metadata_keys_the_first_are_shown(site: Site) -> None:
    site.add_ended_call(metadata={f"field{number}": number for number in range(1_700)})
    assert len(entries(site)) == 500
    text = site.page("/calls/-call").text
    assert "field499 499" in text
    assert "1,200 more in the JSON" in text
    assert "field500 500" not in text


def test_the_timeline_counts_what_the_prefetch_changed(site: Site) -> None:
    add_prefetch(site, "tier=silver", metadata={"tier": "gold", "name": "Ada"}, extra_prompt="Hi.")
    site.add_ended_call(metadata={"tier": "gold", "name": "Ada"})
    told = "in 84 ms, 2 metadata keys, 1 changed and 1 added, extra prompt 3 characters"
    assert told in site.page("/calls/-call").text


def test_before_the_end_the_answer_stands_for_it(site: Site) -> None:
    site.stored.add_unended_call("-call", minutes_ago=1)
    add_prefetch(site, "tier=silver&id=7", metadata={"tier": "gold"})
    assert entries(site)["tier"] == ("gold", "silver", "changed", "prefetch")
    assert entries(site)["id"] == ("7", None, None, None)


def test_the_prompt_that_was_added_is_shown_whole(site: Site) -> None:
    add_prefetch(site, extra_prompt=f"Offer {HOSTILE}")
    site.add_ended_call()
    page = site.page("/calls/-call")
    assert "Prompt added" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert page.all("img") == []


def test_the_next_and_the_previous_call_are_those_of_the_list(site: Site) -> None:
    for number, outcome in enumerate(["failed", "completed", "failed", "failed"]):
        site.stored.add_call(f"-{number}", minutes_ago=number + 1, outcome=outcome)
    page = site.page("/calls/-2?in=outcome%3Derror")
    (newer,), (older,) = page.all("a", rel="prev"), page.all("a", rel="next")
    assert newer["href"] == "/calls/-0?in=outcome%3Dfailed"
    assert older["href"] == "/calls/-3?in=outcome%3Dfailed"
    assert "/calls?outcome=failed" in page.links()


def test_the_first_and_last_call_have_no_further_link(site: Site) -> None:
    site.stored.add_call("-only")
    page = site.page("/calls/-only?in=")
    assert [("href" in link) for rel in ("prev", "next") for link in page.all("a", rel=rel)] == [
        False,
        False,
    ]
    assert page.all("a", rel="next")[0]["aria-disabled"] == "true"


def test_without_a_filter_the_neighbours_are_those_of_the_last_days(site: Site) -> None:
    for number in range(3):
        site.stored.add_call(f"-{number}", minutes_ago=number + 1)
    page = site.page("/calls/-1")
    assert page.all("a", rel="prev")[0]["href"] == "/calls/-0"
    assert page.all("a", rel="next")[0]["href"] == "/calls/-2"


@pytest.mark.parametrize("listed", ["%00%ff", "q=%22*", "outcome=x&from=y", "=&=&", "in=in%3Din"])
def test_a_list_that_says_nothing_is_the_whole_list(site: Site, listed: str) -> None:
    site.stored.add_call("-only")
    assert site.get(f"/calls/-only?in={quote(listed)}").status_code == 200


def test_a_call_that_is_not_in_the_list_still_has_neighbours(site: Site) -> None:
    for number, outcome in enumerate(["failed", "completed", "failed"]):
        site.stored.add_call(f"-{number}", minutes_ago=number + 1, outcome=outcome)
    in_list = site.get("/calls/-1.json?in=outcome%3Derror").json()["in_list"]
    assert (in_list["newer"], in_list["older"]) == ("-0", "-2")


@pytest.mark.parametrize(
    ("source", "label"), [("sandbox", "Sandbox"), ("millis_api", "From call log")]
)
def test_a_call_that_millis_did_not_deliver_says_so(site: Site, source: str, label: str) -> None:
    site.stored.add_call("-call", source=source)
    assert label in site.page("/calls/-call").text


def test_a_delivery_that_could_not_be_read_is_announced_with_the_reason(site: Site) -> None:
    site.add_ended_call()
    broken = site.stored.add_delivery(
        session_id="-call", body=b"{broken", outcome="unparsed", reason="not JSON: line 1"
    )
    page = site.page("/calls/-call")
    assert "A delivery is unparsed. not JSON: line 1" in page.text
    assert f"#delivery-{broken}" in page.links()
    assert page.all("section", id=f"delivery-{broken}")


def test_both_bodies_of_an_end_that_came_twice_are_there(site: Site) -> None:
    site.add_ended_call(metadata={"which": "first"})
    other = json.dumps({"session_id": "-call", "metadata": {"which": "second"}}).encode()
    site.stored.add_delivery(session_id="-call", body=other, content_hash=b"2")
    page = site.page("/calls/-call")
    assert "Received 2 times" in page.text
    assert '"first"' in page.text
    assert '"second"' in page.text


def test_what_a_later_end_changed_is_told_field_by_field(site: Site) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {"call_status": "in-progress", "duration": 3, "metadata": {"note": "<b>old</b>"}},
        {"call_status": "busy", "metadata": {"note": "sk-abcdefghijklmnop1234"}, "chat": None},
    )
    ids = [
        site.stored.add_delivery(
            session_id="-call",
            body=json.dumps({"session_id": "-call", **body}).encode(),
            content_hash=bytes([minute]),
            received_at=NOW + timedelta(minutes=minute),
        )
        for minute, body in enumerate(bodies)
    ]
    site.stored.add_call("-call", delivery_id=ids[1], call_status="busy", repeated=True)
    view = site.get("/calls/-call.json").json()
    (change,) = view["changes"]
    assert change["delivery_id"] == ids[1]
    assert [field["name"] for field in change["fields"]] == ["call_status", "metadata"]
    assert change["fields"][0] == {"name": "call_status", "before": "in-progress", "after": "busy"}
    assert MASK in change["fields"][1]["after"]
    page = site.get("/calls/-call").text
    assert "they differ" in page
    assert "&lt;b&gt;old" in page
    assert "abcdefghijklmnop" not in page


def test_one_end_or_the_same_again_changes_nothing(site: Site) -> None:
    for minute in range(2):
        delivery_id = site.stored.add_delivery(
            session_id="-call",
            body=b'{"session_id": "-call", "call_status": "busy"}',
            content_hash=b"same",
            received_at=NOW + timedelta(minutes=minute),
        )
    site.stored.add_call("-call", delivery_id=delivery_id)
    assert site.get("/calls/-call.json").json()["changes"] == []


def test_what_is_shown_raw_can_be_copied(site: Site) -> None:
    add_prefetch(site)
    site.add_ended_call(agent_config=CONFIG)
    page = site.page("/calls/-call")
    copied = [
        button["data-copy-from"] for button in page.all("button") if "data-copy-from" in button
    ]
    assert {"#content-1", "#answer-1", "#content-2", "#agent-config"} <= set(copied)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {(name or "").lstrip("#") for name in copied} - {"chat"} <= ids


def test_a_payload_too_long_to_show_says_how_much_is_missing(site: Site) -> None:
    site.add_ended_call(note="x" * 300_000, notes=["word " * 10_000] * 30)
    page = site.page("/calls/-call").text
    assert "300,000 more characters" in page
    assert "cut here:" in page


def closed_and_open(page: Page) -> tuple[int, int]:
    details = page.all("details")
    opened = sum("open" in each for each in details)
    return len(details) - opened, opened


def test_all_is_unfolded_only_for_printing_in_full(site: Site) -> None:
    site.add_ended_call(
        agent_config=CONFIG, function_calls=[{"name": "f", "params": {}, "result": "ok"}]
    )
    assert closed_and_open(site.page("/calls/-call")) == (3, 0)
    assert closed_and_open(site.page("/calls/-call?print=full")) == (0, 3)
    assert "/calls/-call?print=full" in site.page("/calls/-call").links()


def test_secrets_of_the_config_are_counted_and_masked_everywhere(site: Site) -> None:
    site.add_ended_call(agent_config=CONFIG)
    for path in ("/calls/-call?print=full", "/calls/-call.json"):
        assert "sk-abcdefghijklmnop1234" not in site.get(path).text
    page = site.page("/calls/-call")
    assert "1 secret masked" in page.text
    assert MASK in page.text


def test_the_player_comes_only_where_there_is_a_recording(site: Site) -> None:
    site.add_ended_call()
    assert "/call.js" not in site.get("/calls/-call").text
    site.stored.add_delivery(session_id="-other", body=b'{"session_id": "-other"}')
    site.stored.add_call("-other", recording_url="https://files.example/r.wav")
    page = site.page("/calls/-other")
    assert any("/call.js" in (script["src"] or "") for script in page.all("script"))
    (link,) = page.all("a", href="https://files.example/r.wav")
    assert "noreferrer" in (link["rel"] or "")


def test_an_opt_out_and_slow_replies_are_shown(site: Site) -> None:
    metrics = {"utterance_latency": {"avg": 812}}
    body = {"session_id": "-call", "call_metrics": metrics}
    delivery_id = site.stored.add_delivery(session_id="-call", body=json.dumps(body).encode())
    site.stored.add_call("-call", delivery_id=delivery_id, opted_out=True)
    text = site.page("/calls/-call").text
    assert "Asked not to be called" in text
    assert "Reply latency 812 ms on average" in text


def test_a_viewer_sees_the_runs_and_cannot_replay_them(site: Site) -> None:
    call_id = site.add_ended_call()
    site.stored.add_handler("sync_crm")
    site.stored.add_run(call_id, "sync_crm", "failed")
    hashed = hash_password("a viewer's password")
    site.stored.write(partial(add, name="anna", role="view", password_hash=hashed, now=NOW))
    site.sign_in("a viewer's password", username="anna")
    page = site.page("/calls/-call")
    assert "sync_crm Failed" in page.text
    assert page.all("form", action="/replay") == []


def test_a_call_that_is_not_there_can_be_searched_for(site: Site) -> None:
    response = site.get("/calls/-OA1X%3C")
    assert response.status_code == 404
    assert "/calls?q=-OA1X%3C&range=all" in Page(response).links()

"""The page of a call."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

from millis_hooks.masking.secret_patterns import MASK
from millis_hooks.operators.accounts import add, hash_password
from support.dashboard_site import HOSTILE, Page, Site
from support.stored_calls import NOW

CONFIG = {"voice": {"api_key": "sk-abcdefghijklmnop1234"}, "llm": "gpt"}


def test_the_extra_prompt_is_shown_whole(site: Site) -> None:
    site.add_prefetch(extra_prompt=f"Offer {HOSTILE}")
    site.add_ended_call()
    page = site.page("/calls/-call")
    assert "Prompt added" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert page.all("img") == []


def test_the_results_of_handlers_are_shown_with_the_run(site: Site) -> None:
    call_id = site.add_ended_call()
    run = site.stored.add_run(call_id, "book", "succeeded", reason="tags was left out: too long")
    site.stored.add_results(call_id, run_id=run, booked=True, note=HOSTILE)
    page = site.page("/calls/-call")
    assert f"#run-{run}" in page.links()
    assert "tags was left out" in page.text
    assert page.all("img") == []
    shown = site.get("/calls/-call.json").json()["results"]
    assert [(each["name"], each["value"]) for each in shown] == [
        ("booked", True),
        ("note", HOSTILE),
    ]


def test_neighbors_are_those_of_the_list(site: Site) -> None:
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


def test_without_a_filter_the_neighbors_are_those_of_the_last_days(site: Site) -> None:
    for number in range(3):
        site.stored.add_call(f"-{number}", minutes_ago=number + 1)
    page = site.page("/calls/-1")
    assert page.all("a", rel="prev")[0]["href"] == "/calls/-0"
    assert page.all("a", rel="next")[0]["href"] == "/calls/-2"


@pytest.mark.parametrize("listed", ["%00%ff", "q=%22*", "outcome=x&from=y", "=&=&", "in=in%3Din"])
def test_an_invalid_list_is_the_whole_list(site: Site, listed: str) -> None:
    site.stored.add_call("-only")
    assert site.get(f"/calls/-only?in={quote(listed)}").status_code == 200


def test_a_call_that_is_not_in_the_list_still_has_neighbors(site: Site) -> None:
    for number, outcome in enumerate(["failed", "completed", "failed"]):
        site.stored.add_call(f"-{number}", minutes_ago=number + 1, outcome=outcome)
    in_list = site.get("/calls/-1.json?in=outcome%3Derror").json()["in_list"]
    assert (in_list["newer"], in_list["older"]) == ("-0", "-2")


@pytest.mark.parametrize(
    ("source", "label"), [("sandbox", "Sandbox"), ("millis_api", "From call log")]
)
def test_the_page_shows_the_source_of_a_call_not_sent_by_millis(
    site: Site, source: str, label: str
) -> None:
    site.stored.add_call("-call", source=source)
    assert label in site.page("/calls/-call").text


def test_an_unparsed_delivery_is_announced_with_the_reason(site: Site) -> None:
    site.add_ended_call()
    broken = site.stored.add_delivery(
        session_id="-call", body=b"{broken", outcome="unparsed", reason="not JSON: line 1"
    )
    page = site.page("/calls/-call")
    assert "A delivery is unparsed. not JSON: line 1" in page.text
    assert f"#delivery-{broken}" in page.links()
    assert page.all("section", id=f"delivery-{broken}")


def test_both_bodies_of_two_ends_of_call_are_shown(site: Site) -> None:
    site.add_ended_call(metadata={"which": "first"})
    other = json.dumps({"session_id": "-call", "metadata": {"which": "second"}}).encode()
    site.stored.add_delivery(session_id="-call", body=other, content_hash=b"2")
    page = site.page("/calls/-call")
    assert "Received 2 times" in page.text
    assert '"first"' in page.text
    assert '"second"' in page.text


def test_changes_by_a_later_end_of_call_are_listed_by_field(site: Site) -> None:
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


def test_a_repeated_end_of_call_changes_nothing(site: Site) -> None:
    for minute in range(2):
        delivery_id = site.stored.add_delivery(
            session_id="-call",
            body=b'{"session_id": "-call", "call_status": "busy"}',
            content_hash=b"same",
            received_at=NOW + timedelta(minutes=minute),
        )
    site.stored.add_call("-call", delivery_id=delivery_id)
    assert site.get("/calls/-call.json").json()["changes"] == []


def test_raw_payloads_have_copy_buttons(site: Site) -> None:
    site.add_prefetch()
    site.add_ended_call(agent_config=CONFIG)
    page = site.page("/calls/-call")
    copied = [
        button["data-copy-from"] for button in page.all("button") if "data-copy-from" in button
    ]
    assert {"#content-1", "#answer-1", "#content-2", "#agent-config"} <= set(copied)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {(name or "").lstrip("#") for name in copied} - {"chat"} <= ids


def test_a_cut_payload_shows_how_much_is_missing(site: Site) -> None:
    site.add_ended_call(note="x" * 300_000, notes=["word " * 10_000] * 30)
    page = site.page("/calls/-call").text
    assert "300,000 more characters" in page
    assert "cut here:" in page


def closed_and_open(page: Page) -> tuple[int, int]:
    details = page.all("details")
    opened = sum("open" in each for each in details)
    return len(details) - opened, opened


def test_sections_are_open_only_for_printing_in_full(site: Site) -> None:
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


def test_only_a_call_with_a_recording_has_a_player(site: Site) -> None:
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


def test_a_missing_call_can_be_searched_for(site: Site) -> None:
    response = site.get("/calls/-OA1X%3C")
    assert response.status_code == 404
    assert "/calls?q=-OA1X%3C&range=all" in Page(response).links()


def test_unparsed_deliveries_are_announced_and_shown(site: Site) -> None:
    broken = site.stored.add_delivery(
        body=b"{broken <b>\x00\xff token=abcdef123456", outcome="unparsed", reason="not JSON"
    )
    assert "1 delivery is unparsed." in site.page("/calls").text
    assert f"/deliveries/{broken}" in site.page("/deliveries?outcome=unparsed").links()
    page = site.page(f"/deliveries/{broken}")
    assert "{broken <b>" in page.text
    assert "\\xff" in page.text
    assert "abcdef123456" not in page.text


@pytest.mark.parametrize(
    "session_id",
    [
        "-OA1XVnwRGpaameIakJb",
        "a/b/../c",
        "a b?c=d#e&f",
        "line\nbreak",
        "x.json",
        ".json",
        HOSTILE,
        "\u05e9\u05dc\u05d5\u05dd",
    ],
)
def test_a_session_id_may_be_any_text(site: Site, session_id: str) -> None:
    site.add_ended_call(session_id)
    (row,) = site.page("/calls").all("a", **{"class": "row trunc"})
    page = site.page(row["href"] or "")
    assert page.all("button", **{"data-copy": session_id})
    twin = f"{row['href']}.json"
    assert twin in page.links()
    assert site.get(twin).json()["call"]["session_id"] == session_id


def test_hostile_text_is_shown_as_text(site: Site) -> None:
    site.add_ended_call(
        HOSTILE,
        chat=[{"role": HOSTILE, "content": HOSTILE}],
        function_calls=[{"name": HOSTILE, "params": {HOSTILE: HOSTILE}, "result": HOSTILE}],
        metadata={HOSTILE: HOSTILE},
        agent_config={HOSTILE: [HOSTILE]},
        voip={"from": HOSTILE, "to": HOSTILE, "provider": HOSTILE},
        cost_breakdown=[{"type": HOSTILE, "provider": HOSTILE, "credit": 1}],
    )
    page = site.page(f"/calls/{quote(HOSTILE, safe='')}")
    assert all((script["src"] or "").startswith("/static/") for script in page.all("script"))
    assert page.all("img") == []
    assert "<script>alert(1)</script>" in page.text


def test_text_that_no_page_can_hold_is_replaced(site: Site) -> None:
    body = b'{"session_id": "-call", "chat": [{"role": "user", "content": "a\\u0000b\\ud800c"}]}'
    delivery_id = site.stored.add_delivery(session_id="-call", body=body)
    site.stored.add_call("-call", delivery_id=delivery_id)
    response = site.get("/calls/-call")
    assert response.status_code == 200
    assert b"\x00" not in response.content
    assert site.get("/calls/-call.json").status_code == 200


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:audio/wav;base64,AAAA", "file:///etc/passwd", "//x", ""]
)
def test_a_recording_is_only_played_from_the_web(site: Site, url: str) -> None:
    site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    site.stored.add_call("-call", recording_url=url)
    page = site.page("/calls/-call")
    assert page.all("audio") == []
    assert "No recording." in page.text


def test_a_recording_is_played_from_its_own_address(site: Site) -> None:
    site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    site.stored.add_call("-call", recording_url="https://files.example/r.wav?a=1&b=2")
    (audio,) = site.page("/calls/-call").all("audio")
    assert audio["src"] == "https://files.example/r.wav?a=1&b=2"


def test_a_fallback_answer_is_shown_with_the_reason(site: Site) -> None:
    site.stored.add_unended_call("-call", minutes_ago=1)
    site.stored.add_delivery(
        "prefetch", session_id="-call", outcome="late", reason="greet took over 2 s", answer=b"{}"
    )
    assert (
        "The prefetch was too slow: the fallback was sent. greet took over 2 s"
        in site.page("/calls/-call").text
    )


def test_secrets_are_on_no_page_and_in_no_twin(site: Site) -> None:
    secret = "sk-abcdefghijklmnop1234"
    site.stored.add_delivery(
        "prefetch",
        session_id="-call",
        query=f"session_id=-call&api_key={secret}",
        answer=json.dumps({"metadata": {"token": secret}}).encode(),
        outcome="fresh",
    )
    site.add_ended_call(
        agent_config={"voice": {"api_key": secret}, "headers": {"X": secret}},
        metadata={"password": secret},
        function_calls=[{"name": "f", "params": {"authorization": secret}}],
    )
    for path in ("/calls/-call", "/calls/-call.json", "/deliveries/1", "/deliveries/2.json"):
        assert secret not in site.get(path).text
    assert MASK in site.page("/calls/-call").text
    assert "2 secrets masked" in site.page("/calls/-call").text


def test_costs_are_shown_with_shares_and_tokens(site: Site) -> None:
    call_id = site.add_ended_call()
    site.stored.add_cost(call_id, 0, type="llm", provider="openai", credit=0.3, prompt_tokens=900)
    site.stored.add_cost(call_id, 1, type="newtype", provider="", credit=0.1)
    page = site.page("/calls/-call")
    assert "LLM openai 900 / 0 0.3000 75%" in page.text
    assert "newtype" in page.text


def test_missing_costs_are_not_zero(site: Site) -> None:
    site.add_ended_call()
    assert "Millis sent no costs." in site.page("/calls/-call").text


def test_a_repeated_end_of_call_is_shown(site: Site) -> None:
    site.add_ended_call()
    site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    assert "Received 2 times" in site.page("/calls/-call").text


@pytest.mark.parametrize(
    ("minutes_ago", "words"), [(1, "In progress for"), (200, "No end received.")]
)
def test_a_call_without_an_end_shows_its_state(site: Site, minutes_ago: float, words: str) -> None:
    site.stored.add_unended_call("-call", minutes_ago=minutes_ago)
    assert words in site.page("/calls/-call").text


def test_an_unreadable_body_has_a_page(site: Site) -> None:
    delivery_id = site.stored.add_delivery(session_id="-call", body=b"\xff{", outcome="unparsed")
    site.stored.add_call("-call", delivery_id=delivery_id)
    assert "\\xff{" in site.page("/calls/-call").text


def test_absurd_values_have_a_page(site: Site) -> None:
    deep = b"[" * 150 + b"]" * 150
    body = b'{"session_id": "-call", "metadata": {"n": 1e400, "deep": ' + deep + b"}}"
    site.stored.add_delivery(session_id="-call", body=body)
    site.stored.add_call("-call", started_at=NOW, duration_s=1e300, cost_total=-1.5, turns=2**62)
    assert site.get("/calls/-call").status_code == 200
    assert site.get("/calls/-call.json").status_code == 200


def test_a_call_that_would_end_with_the_calendar_has_a_page_in_every_zone(site: Site) -> None:
    delivery_id = site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    until_the_last_minute_s = (datetime(9999, 12, 31, 23, 59, tzinfo=UTC) - NOW).total_seconds()
    site.stored.add_call(
        "-call", started_at=NOW, duration_s=until_the_last_minute_s, delivery_id=delivery_id
    )
    site.browser.cookies["mh_tz"] = "Asia/Tokyo"
    assert site.get("/calls/-call").status_code == 200

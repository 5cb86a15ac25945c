"""The dashboard shows what is in the call log, to operators only, and runs nothing it was sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx2 as httpx
import pytest
from sqlalchemy import text

from millis_hooks.exceptions import StorageError
from millis_hooks.masking.secret_patterns import MASK
from support.dashboard_site import HOSTILE, Page, Site
from support.stored_calls import NOW


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


@pytest.fixture
def anonymous(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stored.database.close()


@pytest.mark.parametrize(
    "path", ["/", "/calls", "/calls/-call", "/deliveries", "/deliveries/1", "/calls/x/y"]
)
def test_pages_require_sign_in(anonymous: Site, path: str) -> None:
    anonymous.add_ended_call()
    response = anonymous.get(path)
    assert response.status_code == 303
    assert response.headers["location"].startswith("/login")


@pytest.mark.parametrize("path", ["/calls.json", "/calls/-call.json", "/deliveries/1.json"])
def test_no_twin_answers_without_signing_in(anonymous: Site, path: str) -> None:
    anonymous.add_ended_call()
    response = anonymous.get(path)
    assert response.status_code == 401
    assert list(response.json()) == ["error"]


def test_signing_in_leads_to_the_page_that_was_asked_for(anonymous: Site) -> None:
    asked = anonymous.get("/calls?q=a%26b&outcome=error")
    form = Page(anonymous.get(asked.headers["location"]))
    target = form.all("input", name="next")[0]["value"]
    assert target == "/calls?q=a%26b&outcome=error"
    assert anonymous.sign_in(next=target).headers["location"] == target


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/a\nSet-Cookie: x=1",
        "javascript:alert(1)",
        "calls",
    ],
)
def test_signing_in_never_leads_to_another_site(anonymous: Site, target: str) -> None:
    assert anonymous.sign_in(next=target).headers["location"] == "/"


def test_the_cookie_is_kept_from_scripts_and_other_sites(anonymous: Site) -> None:
    session, known = map(str.lower, anonymous.sign_in().headers.get_list("set-cookie"))
    for cookie in (session, known):
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "secure" not in cookie
    assert ("max-age" in session, "max-age" in known) == (False, True)


def test_over_https_the_cookie_is_only_sent_over_https(anonymous: Site) -> None:
    anonymous.browser.base_url = httpx.URL("https://testserver")
    assert "secure" in anonymous.sign_in(keep="1").headers["set-cookie"].lower()


def test_a_wrong_password_and_an_unknown_operator_read_the_same(anonymous: Site) -> None:
    wrong, unknown = anonymous.sign_in("wrong"), anonymous.sign_in(username="root")
    assert (wrong.status_code, wrong.text) == (unknown.status_code, unknown.text)
    assert Page(wrong).all("input", name="password")[0]["aria-invalid"] == "true"


def test_too_many_tries_say_when_to_try_again(anonymous: Site) -> None:
    for number in range(6):
        anonymous.sign_in(f"wrong {number}")
    response = anonymous.sign_in()
    assert response.status_code == 429
    assert f"Try again in {response.headers['retry-after']} s." in Page(response).text


def test_on_a_full_disk_signing_in_says_why_not_and_what_to_do(anonymous: Site) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("The call log could not be written: database or disk is full.")

    anonymous.operators._write = refuse  # type: ignore[assignment]
    answer = anonymous.sign_in()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "database or disk is full. Free space on the disk" in Page(answer).text
    assert anonymous.sign_in("wrong").status_code == 401


def test_without_a_password_the_page_says_how_to_set_one(tmp_path: Path) -> None:
    site = Site(tmp_path, password=None)
    page = site.page("/login")
    assert "MILLIS_HOOKS_DASHBOARD_PASSWORD" in page.text
    assert page.all("input", name="password") == []
    assert site.sign_in("").status_code == 401
    site.stored.database.close()


def test_signing_out_ends_the_session(site: Site) -> None:
    cookie = site.browser.cookies["mh_session"]
    assert site.browser.post("/logout").headers["location"] == "/login"
    site.browser.cookies.set("mh_session", cookie)
    assert site.get("/calls").status_code == 303


def test_a_form_larger_than_any_of_ours_is_refused(anonymous: Site) -> None:
    assert anonymous.sign_in("x" * 100_000).status_code == 413


@pytest.mark.parametrize(
    "path", ["/login", "/calls", "/calls/-call", "/deliveries", "/nowhere", "/calls.json"]
)
def test_every_answer_forbids_scripts_framing_and_caching(site: Site, path: str) -> None:
    site.add_ended_call()
    headers = site.get(path).headers
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


def test_only_a_calls_page_may_play_media_from_elsewhere(site: Site) -> None:
    site.add_ended_call()
    assert "https:" in site.get("/calls/-call").headers["content-security-policy"]
    assert "https:" not in site.get("/calls").headers["content-security-policy"]


def test_pages_have_no_inline_script_style_or_handler(site: Site) -> None:
    site.add_ended_call(chat=[{"role": "user", "content": HOSTILE}])
    for path in ("/login", "/calls", "/calls/-call", "/deliveries", "/nowhere"):
        page = Page(site.get(path))
        assert all(script.get("src") for script in page.all("script"))
        for _, attributes in page.elements:
            assert not any(name == "style" or name.startswith("on") for name in attributes)


def test_every_link_and_file_of_a_page_is_there(site: Site) -> None:
    site.add_ended_call("-a/b?c#d é")
    site.stored.add_delivery(outcome="unparsed")
    page = site.page("/calls")
    files = [link["href"] or "" for link in page.all("link")]
    files += [script["src"] or "" for script in page.all("script")]
    for path in page.links() + files:
        if not path.startswith("#"):
            assert site.get(path).status_code == 200, path


def test_every_icon_a_page_uses_is_in_the_sprite(site: Site) -> None:
    site.add_ended_call(recording={"recording_url": "https://files.example/r.wav"})
    icons = {
        (use["href"] or "").split("#")[1]
        for path in ("/calls", "/calls/-call", "/deliveries", "/nowhere")
        for use in Page(site.get(path)).all("use")
    }
    sprite = site.get("/static/icons.svg").text
    assert [icon for icon in icons if f'id="{icon}"' not in sprite] == []


def test_files_with_a_version_are_kept_by_browsers(site: Site) -> None:
    (sheet,) = site.page("/calls").all("link", rel="stylesheet")
    assert "immutable" in site.get(sheet["href"] or "").headers["cache-control"]
    assert "immutable" not in site.get("/static/app.css").headers["cache-control"]


def test_links_stay_below_the_path_the_dashboard_is_mounted_at(tmp_path: Path) -> None:
    site = Site(tmp_path, prefix="/ops/voice")
    assert site.get("/calls").headers["location"] == "/ops/voice/login"
    assert site.sign_in().headers["location"] == "/ops/voice/"
    site.add_ended_call("-a")
    page = site.page("/calls")
    assert {link for link in page.links() if not link.startswith(("/ops/voice/", "#"))} == set()
    assert site.browser.get("/ops/voice/calls/-a").status_code == 200
    site.stored.database.close()


@pytest.mark.parametrize(
    ("cookie", "theme"), [("dark", "dark"), ("light", "light"), ("'><script>", "auto")]
)
def test_the_theme_comes_with_the_page(site: Site, cookie: str, theme: str) -> None:
    response = site.browser.get("/calls", headers={"cookie": f"mh_theme={cookie}; {site.cookie}"})
    assert Page(response).all("html")[0]["data-theme"] == theme


@pytest.mark.parametrize("path", ["/nowhere", "/calls/-none", "/deliveries/99", "/deliveries/x"])
def test_what_is_not_there_says_so_and_leads_back(site: Site, path: str) -> None:
    response = site.get(path)
    assert response.status_code == 404
    assert "/calls" in Page(response).links()


def test_a_twin_that_is_not_there_says_so_in_json(site: Site) -> None:
    response = site.get("/calls/-none.json")
    assert response.status_code == 404
    assert "Not found" in response.json()["error"]


def test_a_call_log_that_cannot_be_read_is_a_page_too(site: Site) -> None:
    cookie = site.cookie
    site.stored.database.close()
    (Path(str(site.stored.database.url.database))).write_bytes(b"no database at all" * 1000)
    response = site.browser.get("/calls", headers={"cookie": cookie})
    assert response.status_code == 503
    assert "call log" in Page(response).text


def test_a_call_is_listed_with_what_matters_of_it(site: Site) -> None:
    site.stored.add_call(
        "-a",
        customer_phone="+14155550134",
        direction="inbound",
        channel="phone",
        call_status="user-ended",
        agent_id="-desk",
        snippet="I want a refund",
        duration_s=252.0,
        prefetch_ms=84.0,
        cost_total=0.1843,
    )
    text = site.page("/calls").text
    for shown in ("+1 415 555 0134", "User ended", "-desk", "I want a refund", "4:12", "84 ms"):
        assert shown in text
    assert "0.1843" in text


def test_numbers_whose_side_is_unknown_are_both_named(site: Site) -> None:
    site.stored.add_call("-a", from_phone="+14155550134", to_phone="+16285550199")
    assert "+1 415 555 0134 → +1 628 555 0199" in site.page("/calls").text


def test_a_status_never_seen_before_keeps_its_own_words(site: Site) -> None:
    site.stored.add_call("-a", call_status="beamed_up", outcome="unknown")
    assert "beamed_up" in site.page("/calls").text


def test_missing_is_not_zero(site: Site) -> None:
    site.stored.add_call("-a")
    row = site.get("/calls.json").json()["page"]["rows"][0]["call"]
    assert row["cost_total"] is None
    assert "none" in site.page("/calls").text


def test_a_search_marks_what_it_found_and_keeps_what_was_typed(site: Site) -> None:
    site.stored.add_call("-a", text=f"before {HOSTILE} after")
    query = "<script>alert"
    page = site.page(f"/calls?q={quote(query)}")
    assert len(page.all("mark")) == 1
    assert page.all("input", name="q")[0]["value"] == query


def test_filters_can_be_taken_away_one_by_one(site: Site) -> None:
    links = site.page("/calls?q=abc&agent=-desk&range=30d").links()
    assert "/calls?agent=-desk&range=30d" in links
    assert "/calls?q=abc&range=30d" in links
    assert "/calls" in links


def test_defaults_are_left_out_of_the_address(site: Site) -> None:
    links = site.page("/calls?range=7d&size=50&outcome=all").links()
    assert "/calls?outcome=completed" in links


@pytest.mark.parametrize(
    "query",
    [
        "outcome=x&range=y&size=z&status=w&agent=v",
        "size=-1&before=%00&after=%ff",
        "before=AAAA&after=AAAA",
        "q=%00%ff%22%27%3B--",
        "q=" + "x" * 5000,
        "range=&range=",
        "%ff=%ff&&&=",
        "status[]=1",
    ],
)
def test_no_query_string_breaks_the_list(site: Site, query: str) -> None:
    site.stored.add_call("-a")
    assert site.get(f"/calls?{query}").status_code == 200
    assert site.get(f"/calls.json?{query}").status_code == 200


def test_pages_of_calls_lead_to_one_another(site: Site) -> None:
    for number in range(30):
        site.stored.add_call(f"-{number}")
    first = site.page("/calls?size=25")
    (older,) = first.all("a", rel="next")
    second = site.page(older["href"] or "")
    (newer,) = second.all("a", rel="prev")
    assert len(second.all("a", **{"class": "row trunc"})) == 5
    assert len(site.page(newer["href"] or "").all("a", **{"class": "row trunc"})) == 25


def test_a_call_in_progress_is_live_and_not_in_the_list(site: Site) -> None:
    site.stored.add_unended_call("-live", minutes_ago=2, agent_id="-desk")
    site.stored.add_delivery("prefetch", session_id="-live", query="tier=gold&token=abc")
    page = site.page("/calls")
    assert page.all("span", **{"data-elapsed": "120"})
    assert "tier gold" in page.text
    assert "Waiting for the first call to end" in page.text


def test_a_call_that_millis_did_not_tell_us_of_says_where_it_is_from(site: Site) -> None:
    site.stored.add_call("-a", source="sandbox")
    assert "Sandbox" in site.page("/calls").text
    site.stored.add_call("-b", source="millis_api")
    assert "From call log" in site.page("/calls").text


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["succeeded", "succeeded"], "2 ran"),
        (["failed", "succeeded", "retrying"], "1 of 3 failed"),
        (["retrying", "succeeded"], "1 of 2 retrying"),
        (["pending"], "1 waiting"),
        ([], "none"),
    ],
)
def test_a_call_is_listed_with_how_its_handlers_stand(
    site: Site, states: list[str], said: str
) -> None:
    call_id = site.stored.add_call("-a", prefetch_ms=80)
    for number, state in enumerate(states):
        site.stored.add_run(call_id, f"handler{number}", state)
    assert said in site.page("/calls").text


def test_a_new_call_log_leads_to_the_setup_if_there_is_one(site: Site) -> None:
    assert site.get("/calls.json").json()["is_new"] is True
    assert "Nothing received yet" in site.page("/calls").text
    site.stored.add_call("-a", minutes_ago=60 * 24 * 30)
    site.stored.add_delivery(session_id="-a")
    assert "No calls in the last 7 days" in site.page("/calls").text


def test_without_the_search_index_ids_and_numbers_are_still_found(site: Site) -> None:
    site.stored.add_call("-a", customer_phone="+14155550134", from_phone="+14155550134")
    site.stored.write(lambda connection: connection.execute(text("DROP TABLE call_search")))
    for query in ("-a", "%2B1 415 555 0134"):
        page = site.page(f"/calls?q={query}")
        assert "The search index cannot be used." in page.text
        assert len(page.all("a", **{"class": "row trunc"})) == 1
    assert "No calls match" in site.page("/calls?q=refund").text


def test_a_list_without_matches_offers_to_look_further(site: Site) -> None:
    page = site.page("/calls?q=nothing")
    assert "No calls match" in page.text
    assert "/calls?q=nothing&range=all" in page.links()


def test_deliveries_that_could_not_be_read_are_announced_and_shown(site: Site) -> None:
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
    }
    assert "supervisor: Well done" in site.page("/calls/-call").text


def test_function_calls_are_listed_apart_when_the_transcript_has_none(site: Site) -> None:
    site.add_ended_call(
        chat='[{"role": "user", "content": "Hi"}]',
        function_calls=[{"name": "find_slot", "params": {"day": "tue"}, "result": "free"}],
    )
    assert "Millis sends no times for them find_slot" in site.page("/calls/-call").text


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


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:audio/wav;base64,AAAA", "file:///etc/passwd", "//x", ""]
)
def test_a_recording_is_only_played_from_the_web(site: Site, url: str) -> None:
    site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    site.stored.add_call("-call", recording_url=url)
    page = site.page("/calls/-call")
    assert page.all("audio") == []
    assert "No recording." in page.text


def test_a_recording_is_played_from_where_it_is(site: Site) -> None:
    site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    site.stored.add_call("-call", recording_url="https://files.example/r.wav?a=1&b=2")
    (audio,) = site.page("/calls/-call").all("audio")
    assert audio["src"] == "https://files.example/r.wav?a=1&b=2"


def test_metadata_shows_what_the_prefetch_added_and_changed(site: Site) -> None:
    site.stored.add_delivery(
        "prefetch",
        session_id="-call",
        query="session_id=-call&tier=silver&id=7&vip=true",
        answer=b'{"metadata": {"tier": "gold", "name": "Maria"}}',
        outcome="fresh",
    )
    site.add_ended_call(metadata={"tier": "gold", "name": "Maria", "id": "7", "vip": True})
    entries = site.get("/calls/-call.json").json()["metadata"]
    assert {entry["key"]: entry["change"] for entry in entries} == {
        "tier": "changed",
        "name": "added",
        "id": None,
        "vip": None,
    }


def test_without_a_prefetch_the_origin_of_metadata_is_unknown(site: Site) -> None:
    site.add_ended_call(metadata={"tier": "gold"})
    page = site.page("/calls/-call")
    assert "no prefetch on record: origin unknown" in page.text
    assert "Added" not in page.text


def test_a_prefetch_answered_without_the_handlers_says_why(site: Site) -> None:
    site.stored.add_unended_call("-call", minutes_ago=1)
    site.stored.add_delivery(
        "prefetch", session_id="-call", outcome="late", reason="greet took over 2 s", answer=b"{}"
    )
    assert "(late). greet took over 2 s" in site.page("/calls/-call").text


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
    assert "LLM openai 900, 0 0.3000 75%" in page.text
    assert "newtype" in page.text


def test_costs_that_were_not_sent_are_not_zero(site: Site) -> None:
    site.add_ended_call()
    assert "Millis sent no costs." in site.page("/calls/-call").text


def test_an_end_that_came_twice_says_so(site: Site) -> None:
    site.add_ended_call()
    site.stored.add_delivery(session_id="-call", body=b'{"session_id": "-call"}')
    assert "Received 2 times" in site.page("/calls/-call").text


@pytest.mark.parametrize(
    ("minutes_ago", "said"), [(1, "In progress for"), (200, "No end received.")]
)
def test_a_call_without_an_end_says_how_it_stands(
    site: Site, minutes_ago: float, said: str
) -> None:
    site.stored.add_unended_call("-call", minutes_ago=minutes_ago)
    assert said in site.page("/calls/-call").text


def test_a_body_that_cannot_be_read_still_has_a_page(site: Site) -> None:
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

"""The list of calls, and its exports."""

from __future__ import annotations

import csv
import json
from codecs import BOM_UTF8
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text

from millis_hooks.masking.policy import MaskPolicy
from support.dashboard_site import HOSTILE, Page, Site


def test_a_row_has_the_facts_of_its_call(site: Site) -> None:
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


def test_both_numbers_are_shown_if_the_direction_is_unknown(site: Site) -> None:
    site.stored.add_call("-a", from_phone="+14155550134", to_phone="+16285550199")
    assert "+1 415 555 0134 → +1 628 555 0199" in site.page("/calls").text


def test_an_unknown_status_keeps_its_own_spelling(site: Site) -> None:
    site.stored.add_call("-a", call_status="beamed_up", outcome="unknown")
    assert "beamed_up" in site.page("/calls").text


def test_missing_is_not_zero(site: Site) -> None:
    site.stored.add_call("-a")
    row = site.get("/calls.json").json()["page"]["rows"][0]["call"]
    assert row["cost_total"] is None
    assert "none" in site.page("/calls").text


def test_a_search_marks_its_hits_and_keeps_its_text(site: Site) -> None:
    site.stored.add_call("-a", text=f"before {HOSTILE} after")
    query = "<script>alert"
    page = site.page(f"/calls?q={quote(query)}")
    assert len(page.all("mark")) == 1
    assert page.all("input", name="q")[0]["value"] == query


def test_filters_are_removed_one_by_one(site: Site) -> None:
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


def test_pages_of_calls_link_to_their_neighbors(site: Site) -> None:
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


def test_a_call_not_sent_by_millis_shows_its_source(site: Site) -> None:
    site.stored.add_call("-a", source="sandbox")
    assert "Sandbox" in site.page("/calls").text
    site.stored.add_call("-b", source="millis_api")
    assert "From call log" in site.page("/calls").text


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (["succeeded", "succeeded"], "2 succeeded"),
        (["failed", "succeeded", "retrying"], "1 of 3 failed"),
        (["retrying", "succeeded"], "1 of 2 retrying"),
        (["pending"], "1 waiting"),
        ([], "none"),
    ],
)
def test_a_row_shows_the_state_of_the_handlers(site: Site, states: list[str], words: str) -> None:
    call_id = site.stored.add_call("-a", prefetch_ms=80)
    for number, state in enumerate(states):
        site.stored.add_run(call_id, f"handler{number}", state)
    assert words in site.page("/calls").text


def test_a_new_call_log_leads_to_the_setup_page(site: Site) -> None:
    assert site.get("/calls.json").json()["is_new"] is True
    assert "Nothing received yet" in site.page("/calls").text
    site.stored.add_call("-a", minutes_ago=60 * 24 * 30)
    site.stored.add_delivery(session_id="-a")
    assert "No calls in the last 7 days" in site.page("/calls").text


def test_without_the_search_index_ids_and_numbers_are_found(site: Site) -> None:
    site.stored.add_call("-a", customer_phone="+14155550134", from_phone="+14155550134")
    site.stored.write(lambda connection: connection.execute(text("DROP TABLE call_search")))
    for query in ("-a", "%2B1 415 555 0134"):
        page = site.page(f"/calls?q={query}")
        assert "The search index cannot be used." in page.text
        assert len(page.all("a", **{"class": "row trunc"})) == 1
    assert "No calls match" in site.page("/calls?q=refund").text


def test_an_empty_list_offers_a_longer_period(site: Site) -> None:
    page = site.page("/calls?q=nothing")
    assert "No calls match" in page.text
    assert "/calls?q=nothing&range=all" in page.links()


def sessions(text: str) -> list[str]:
    return [row["session_id"] for row in csv.DictReader(text.splitlines())]


@pytest.mark.both_databases
def test_an_export_has_the_calls_of_the_list(site: Site) -> None:
    for number in range(3):
        site.stored.add_call(f"-call{number}", minutes_ago=30 - number, agent_id=f"-a{number % 2}")
    links = site.page("/calls?agent=-a0&size=25").all("a")
    link = next(each for each in links if "download" in each)
    response = site.get(link["href"] or "")
    assert sessions(response.content.decode("utf-8-sig")) == ["-call0", "-call2"]
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == (
        'attachment; filename="calls-2026-11-21.csv"'
    )


@pytest.mark.both_databases
def test_only_exports_of_the_page_begin_with_a_byte_order_mark(site: Site) -> None:
    site.stored.add_call("-a")
    link = next(each for each in site.page("/calls").all("a") if "download" in each)
    assert site.get(link["href"] or "").content.startswith(BOM_UTF8)
    assert not site.get("/calls/export.csv").content.startswith(BOM_UTF8)


@pytest.mark.both_databases
def test_exported_json_lines_have_the_webhooks(site: Site) -> None:
    site.add_ended_call("-a", metadata={"api_key": "sk-abcdefghijklmnop1234"})
    response = site.get("/calls/export.jsonl")
    (line,) = map(json.loads, response.text.splitlines())
    assert (line["session_id"], line["masked"], len(line["deliveries"])) == ("-a", True, 1)
    assert "sk-abcdefghijklmnop1234" not in response.text


@pytest.mark.both_databases
def test_exports_are_masked_like_pages(tmp_path: Path) -> None:
    site = Site(tmp_path, mask=MaskPolicy(numbers="full"))
    site.sign_in()
    site.stored.add_call("-a", from_phone="+14155550134")
    assert "5550134" not in site.get("/calls/export.csv").text
    site.stored.database.close()


@pytest.mark.both_databases
def test_a_long_export_is_streamed_and_complete(site: Site) -> None:
    for number in range(300):
        site.stored.add_call(f"-{number}", snippet="word " * 100)
    assert len(sessions(site.get("/calls/export.csv").text)) == 300


@pytest.mark.both_databases
def test_an_export_of_an_empty_list_has_only_headings(site: Site) -> None:
    assert sessions(site.get("/calls/export.csv?agent=-none").text) == []


@pytest.mark.both_databases
@pytest.mark.parametrize("path", ["/calls/export.csv", "/calls/export.jsonl"])
def test_exports_require_sign_in(tmp_path: Path, path: str) -> None:
    site = Site(tmp_path)
    headers = {"Referer": "http://testserver/calls?q=refund"}
    refused = site.browser.get(path, headers=headers)
    assert (refused.status_code, refused.headers.get("location")) == (401, None)
    page = Page(refused)
    assert "You were signed out; nothing was exported." in page.text
    assert page.all("input", name="next")[0]["value"] == "/calls?q=refund"
    site.stored.database.close()


@pytest.mark.both_databases
def test_the_audit_log_records_exports_without_search_words(site: Site) -> None:
    site.stored.add_call("-a", text="refund")
    site.get("/calls/export.csv?q=refund&range=all")
    page = Page(site.get("/operators"))
    assert "export" in page.text.lower()
    assert "refund" not in page.text


@pytest.mark.both_databases
@pytest.mark.sqlite_only
def test_an_unreadable_call_log_gives_no_partial_file(site: Site) -> None:
    cookie = site.cookie
    site.stored.database.close()
    Path(str(site.stored.database.url.database)).write_bytes(b"no database at all" * 1000)
    response = site.browser.get("/calls/export.csv", headers={"cookie": cookie})
    assert response.status_code == 503


@pytest.mark.parametrize(
    ("query", "listed"),
    [
        ("result.booked=true", ["-yes"]),
        ("result.score>=4", ["-yes"]),
        ("result.score<4", ["-no"]),
        ("result=score%3E%3D1&result=booked!=true", ["-no"]),
        ("result.score=4.0", ["-yes"]),
        ("result.day>=2026-12-01", ["-yes"]),
        ("result.booked", ["-none", "-no", "-yes"]),
        ("result.table=null", ["-no"]),
        ("result.table!=null", ["-yes"]),
        ("result=table%3D", ["-yes"]),
        ("result=table%3E%3D", ["-none", "-no", "-yes"]),
        ("result.score>=x%00", []),
    ],
)
def test_calls_are_filtered_by_the_results_of_handlers(
    site: Site, query: str, listed: list[str]
) -> None:
    for number, name in enumerate(("-yes", "-no", "-none")):
        call_id = site.stored.add_call(name, minutes_ago=9 - number)
        if name != "-none":
            is_booked = name == "-yes"
            day, score = ("2026-12-24", 4) if is_booked else ("2026-11-24", 1)
            table = "" if is_booked else None
            site.stored.add_results(call_id, booked=is_booked, score=score, day=day, table=table)
    rows = site.get(f"/calls.json?{query}").json()["page"]["rows"]
    assert [row["call"]["session_id"] for row in rows] == listed


def test_chosen_results_have_a_column_and_stay_when_filters_change(site: Site) -> None:
    site.stored.add_results(site.stored.add_call("-call"), booked=True, note=HOSTILE)
    page = site.page("/calls?columns=booked,note&result.booked=true")
    assert [cell.get("title") for cell in page.all("td", **{"class": "c-result"})] == [
        "booked",
        "note",
    ]
    assert page.all("img") == []
    assert "/calls?columns=booked&columns=note" in page.links()


def test_exports_have_the_results(site: Site) -> None:
    site.stored.add_results(site.stored.add_call("-call"), booked=True, note="=1+1")
    csv = site.get("/calls/export.csv").text.splitlines()
    assert csv[0].endswith(",result.booked,result.note")
    assert csv[1].endswith(",true,'=1+1")
    line = site.get("/calls/export.jsonl").json()
    assert line["results"][0] == {"handler": "book", "name": "booked", "value": True}


def test_what_was_kept_has_a_column_a_filter_and_a_place_in_exports(site: Site) -> None:
    call_id = site.stored.add_call("-call")
    site.stored.add_metadata(call_id, {"keep.variant": HOSTILE, "plan": "gold"})
    page = site.page("/calls?columns=keep.variant&meta=plan%3Dgold")
    assert [cell.get("title") for cell in page.all("td", **{"class": "c-result"})] == [
        "keep.variant"
    ]
    assert (page.all("img"), HOSTILE.split(" ", 1)[0] in page.text) == ([], True)
    view = site.get("/calls.json").json()
    assert (view["result_names"], view["page"]["rows"][0]["kept"]) == (
        ["keep.variant"],
        {"keep.variant": HOSTILE},
    )
    assert site.get("/calls/export.csv").text.splitlines()[0].endswith(",keep.variant")
    assert site.get("/calls/export.jsonl").json()["kept"] == {"keep.variant": HOSTILE}

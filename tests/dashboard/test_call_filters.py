"""Filters of the list of calls: read from the address, and kept by links."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.dashboard.call_filters import (
    list_query,
    params_of,
    read_filter,
    read_list,
    time_field,
)
from support.dashboard_site import HOSTILE, Site


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("q=%20a%00b", {"q": "a b"}),
        ("outcome=error&range=30d", {"outcome": "failed", "range": "30d"}),
        ("status=busy&status=new&status=busy", {"status": ("busy", "new")}),
        ("agent=-a&agent=-b&agent=", {"agent": ("-a", "-b")}),
        ("channel=web&direction=inbound", {"channel": "web", "direction": "inbound"}),
        ("number=%2B1%20415", {"number": "+1 415"}),
        ("min=10&max=1.5e2", {"min_s": 10.0, "max_s": 150.0}),
        ("cost_min=0&cost_max=nan", {"cost_min": 0.0}),
        ("meta=tier=gold&meta=a=b=c&meta=none", {"metadata": (("tier", "gold"), ("a", "b=c"))}),
        ("handler=failed&unparsed&duplicate=1",
         {"handler": "failed", "unparsed": True, "duplicate": True}),
        ("from=2026-11-01&to=2026-11-03",
         {"since": datetime(2026, 11, 1, tzinfo=UTC), "until": datetime(2026, 11, 4, tzinfo=UTC)}),
        ("to=2026-11-03T12:00%2B02:00", {"until": datetime(2026, 11, 3, 10, tzinfo=UTC)}),
        ("outcome=x&channel=x&direction=x&range=x&handler=x&min=x&from=x&to=9999-12-31", {}),
    ],
)  # fmt: skip
def test_filters_are_read_from_the_address(address: str, expected: dict[str, Any]) -> None:
    assert read_filter(QueryParams(address)) == CallFilter(**expected)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "q",
                    "outcome",
                    "status",
                    "agent",
                    "channel",
                    "number",
                    "from",
                    "to",
                    "min",
                    "meta",
                ]
            ),
            TEXTS | st.sampled_from(["error", "phone", "2026-11-01", "12.5", "a=b", "30d"]),
        ),
        max_size=8,
    )
)
def test_links_keep_the_filters(pairs: list[tuple[str, str]]) -> None:
    filters = read_filter(QueryParams(urlencode(pairs)))
    again = urlencode(params_of(filters, 50), doseq=True)
    assert read_filter(QueryParams(again)) == filters


def test_links_keep_numbers_exactly() -> None:
    filters = read_filter(QueryParams("min=1180&max=1199.999&cost_min=0.1234567&cost_max=2e6"))
    named = {"min": "1180", "max": "1199.999", "cost_min": "0.1234567", "cost_max": "2000000"}
    assert params_of(filters, 50) == named


@pytest.mark.parametrize("zone", ["Etc/GMT+12", "Pacific/Kiritimati"])
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_moment_outside_the_calendar_of_a_zone_is_ignored(
    site: Site, zone: str, moment: str
) -> None:
    site.browser.cookies["mh_tz"] = zone
    assert site.get(f"/calls.json?from={moment}&to={moment}").json()["params"] == {}


def test_repeated_filters_apply_to_the_list_and_its_links(site: Site) -> None:
    for agent in ("-a", "-b", "-c"):
        site.stored.add_call(f"-of{agent}", agent_id=agent, minutes_ago=60)
    twin = site.get("/calls.json?agent=-a&agent=-b&size=25").json()
    assert [row["call"]["agent_id"] for row in twin["page"]["rows"]] == ["-b", "-a"]
    links = site.page("/calls?agent=-a&agent=-b&size=25").links()
    assert "/calls?agent=-a&agent=-b&size=25&outcome=completed" in links


@pytest.mark.parametrize(
    "value", ["agent=a{}", "status=s{}", "meta=m{}=1", "result=r{}=1", "result.r{}=1"]
)
def test_of_endless_values_of_a_filter_the_first_are_taken(site: Site, value: str) -> None:
    address = "&".join(value.format(number) for number in range(1500))
    assert len(site.get(f"/calls?{address}").content) < 200_000


def test_a_value_longer_than_any_column_is_cut() -> None:
    filters = read_filter(
        QueryParams(urlencode({"agent": "a" * 9_999, "meta": f"k={'m' * 9_999}"}))
    )
    assert len(filters.agent[0]) <= 500
    assert len(filters.metadata[0][1]) <= 500


def test_complete_counts_are_not_marked_as_capped(site: Site) -> None:
    page = site.get("/calls.json?agent=-a").json()
    assert [tab["capped"] for tab in page["tabs"] if tab["outcome"] == "all"] == [False]
    assert json.dumps(page["page"]["at_least"]) == "[]"


EVERYTHING = (
    "q=refund&outcome=failed&status=busy&status=error&agent=-a&agent=-b&channel=phone"
    "&direction=inbound&number=%2B14155550134&from=2026-11-01&to=2026-11-03&min=10&max=60"
    "&cost_min=0.1&cost_max=2&function=lookup&provider=twilio&meta=tier=gold&meta=a=b&handler=failed&unparsed=1&duplicate=1&size=25"
)


def test_the_form_has_every_filter(site: Site) -> None:
    page = site.page(f"/calls?{EVERYTHING}")
    fields = page.all("input") + page.all("select") + page.all("button")
    named = {field["name"] for field in fields if "name" in field}
    assert named >= {pair.partition("=")[0] for pair in EVERYTHING.split("&")}


def test_the_form_has_the_values_of_the_filters(site: Site) -> None:
    page = site.page(f"/calls?{EVERYTHING}")
    sent = [(field.get("name"), field.get("value")) for field in page.all("input")]
    for pair in (("number", "+14155550134"), ("from", "2026-11-01"), ("to", "2026-11-03"),
                 ("min", "10"), ("cost_max", "2"), ("meta", "tier=gold"), ("meta", "a=b"),
                 ("outcome", "failed"), ("size", "25")):  # fmt: skip
        assert pair in sent
    ticked = [box for box in page.all("input", type="checkbox") if "checked" in box]
    assert [box.get("value") for box in ticked if "name" in box] == [
        "-a", "-b", "error", "busy", "1", "1",
    ]  # fmt: skip


def test_each_filter_is_shown_with_a_link_that_removes_it(site: Site) -> None:
    filters = site.get(f"/calls.json?{EVERYTHING}").json()["active_filters"]
    assert [f"{each['label']} {each['value']}" for each in filters] == [
        "Contains “refund”", "From Nov 01, 2026", "Until Nov 03, 2026", "Channel phone",
        "Direction inbound", "Number +14155550134", "Length at least 0:10", "Length at most 1:00",
        "Credits at least 0.1", "Credits at most 2", "Function lookup", "Provider twilio",
        "Handlers Failed",
        "Deliveries one is unparsed", "Deliveries more than one end-of-call", "Agent -a",
        "Agent -b", "Status Busy", "Status Error", "tier gold", "a b",
    ]  # fmt: skip
    everything = read_filter(QueryParams(EVERYTHING))
    for each in filters:
        rest = read_filter(QueryParams(urlencode(each["rest"], doseq=True)))
        assert rest != everything
        assert params_of(rest, 25).items() != params_of(everything, 25).items()


def test_hostile_filters_are_shown_as_text(site: Site) -> None:
    query = urlencode(dict.fromkeys(("q", "agent", "status", "number"), HOSTILE))
    page = site.page(f"/calls?{query}&{urlencode({'meta': f'{HOSTILE}={HOSTILE}'})}")
    assert page.all("img") == []
    assert all((script["src"] or "").startswith("/static/") for script in page.all("script"))


def test_days_are_those_of_the_operators_zone(site: Site) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    filters = read_filter(QueryParams("from=2026-11-01&to=2026-11-01"), berlin)
    assert filters.since == datetime(2026, 10, 31, 23, tzinfo=UTC)
    assert filters.until == datetime(2026, 11, 1, 23, tzinfo=UTC)
    assert time_field(filters.since, berlin) == ("date", "2026-11-01")
    assert time_field(filters.until, berlin, is_end=True) == ("date", "2026-11-01")
    assert time_field(filters.since, UTC) == ("datetime-local", "2026-10-31T23:00:00")


def test_a_day_on_which_clocks_change_is_whole() -> None:
    filters = read_filter(QueryParams("from=2026-10-25&to=2026-10-25"), ZoneInfo("Europe/Berlin"))
    assert filters.since
    assert filters.until
    assert (filters.until - filters.since).total_seconds() == 25 * 3600


def test_a_shared_link_is_the_same_list_in_another_zone() -> None:
    mine = read_filter(QueryParams("from=2026-11-01"), ZoneInfo("Europe/Berlin"))
    query = QueryParams(list_query(mine))
    assert read_filter(query, ZoneInfo("America/New_York")) == mine


def test_links_to_calls_name_their_list(site: Site) -> None:
    site.stored.add_call("-a", agent_id="-x", minutes_ago=5)
    (row,) = site.page("/calls?agent=-x&agent=-y&size=25&range=24h").all(
        "a", **{"class": "row trunc"}
    )
    (listed,) = parse_qs(urlsplit(row["href"] or "").query)["in"]
    assert read_list(listed) == CallFilter(agent=("-x", "-y"), range="24h")
    assert read_list(None) == CallFilter()


def test_the_page_size_is_a_link(site: Site) -> None:
    site.stored.add_call("-a")
    links = site.page("/calls?agent=&q=&size=25").links()
    assert {"/calls", "/calls?size=25", "/calls?size=100"} <= set(links)

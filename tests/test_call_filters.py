"""The address of the list of calls says its filters, and says them again in every link."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from dashboard_site import Site
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from millis_hooks.call_log.filters import CallFilter
from millis_hooks.dashboard.call_filters import params_of, read_filter


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("q=%20a%00b", {"q": "a b"}),
        ("outcome=error&range=30d", {"outcome": "error", "range": "30d"}),
        ("status=busy&status=new&status=busy", {"status": ("busy", "new")}),
        ("agent=-a&agent=-b&agent=", {"agent": ("-a", "-b")}),
        ("channel=web&direction=inbound", {"channel": "web", "direction": "inbound"}),
        ("number=%2B1%20415", {"number": "+1 415"}),
        ("min=10&max=1.5e2", {"min_s": 10.0, "max_s": 150.0}),
        ("cost_min=0&cost_max=nan", {"cost_min": 0.0}),
        ("meta=tier=gold&meta=a=b=c&meta=none", {"metadata": (("tier", "gold"), ("a", "b=c"))}),
        ("handler=parked&unparsed&duplicate=1",
         {"handler": "parked", "unparsed": True, "duplicate": True}),
        ("from=2026-11-01&to=2026-11-03",
         {"since": datetime(2026, 11, 1, tzinfo=UTC), "until": datetime(2026, 11, 4, tzinfo=UTC)}),
        ("to=2026-11-03T12:00%2B02:00", {"until": datetime(2026, 11, 3, 10, tzinfo=UTC)}),
        ("outcome=x&channel=x&direction=x&range=x&handler=x&min=x&from=x&to=9999-12-31", {}),
    ],
)  # fmt: skip
def test_an_address_says_what_is_wanted(address: str, wanted: dict[str, Any]) -> None:
    assert read_filter(QueryParams(address)) == CallFilter(**wanted)


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


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
def test_links_say_the_same_again(pairs: list[tuple[str, str]]) -> None:
    wanted = read_filter(QueryParams(urlencode(pairs)))
    again = urlencode(params_of(wanted, 50), doseq=True)
    assert read_filter(QueryParams(again)) == wanted


def test_filters_that_repeat_reach_the_list_and_its_links(site: Site) -> None:
    for agent in ("-a", "-b", "-c"):
        site.stored.add_call(f"-of{agent}", agent_id=agent, minutes_ago=60)
    twin = site.get("/calls.json?agent=-a&agent=-b&size=25").json()
    assert [row["call"]["agent_id"] for row in twin["page"]["rows"]] == ["-b", "-a"]
    links = site.page("/calls?agent=-a&agent=-b&size=25").links()
    assert "/calls?agent=-a&agent=-b&size=25&outcome=completed" in links


def test_a_count_that_stopped_says_that_there_are_more(site: Site) -> None:
    page = site.get("/calls.json?agent=-a").json()
    assert [tab["capped"] for tab in page["tabs"] if tab["outcome"] == "all"] == [False]
    assert json.dumps(page["page"]["at_least"]) == "[]"

"""The analytics page: figures of a period, as tiles, charts, tables and CSV."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event
from starlette.datastructures import QueryParams

from millis_hooks.call_log.queries.analytics import Tile
from millis_hooks.dashboard.analytics import (
    KEPT_FOR,
    AnalyticsPage,
    Figure,
    Question,
    read_question,
)
from millis_hooks.dashboard.charts import Chart, Column, Row, as_csv, formatted
from millis_hooks.dashboard.pages import DashboardSettings, PageRequest
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.version import templates_dir
from support.dashboard_site import HOSTILE, Page, Site
from support.stored_calls import NOW

BERLIN = ZoneInfo("Europe/Berlin")
CHARTS = ["calls", "cost", "endings", "duration", "prefetch", "handlers", "agents"]
DAY_MINUTES = 24 * 60


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


def add(site: Site, number: int = 0, **columns: Any) -> int:
    known: dict[str, Any] = {"call_status": "user-ended", "duration_s": 70.0, "agent_id": "desk"}
    return site.stored.add_call(f"-s{number}", **known | columns)


def charts(site: Site, query: str = "") -> dict[str, Any]:
    view = site.get(f"/analytics.json{query}").json()
    return {chart["name"]: chart for chart in view["charts"]}


def rows_of(site: Site, chart: str, query: str = "") -> list[list[str]]:
    response = site.get(f"/analytics/{chart}.csv{query}")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.reader(io.StringIO(response.text)))


def asked(query: str, now: datetime = NOW) -> Question:
    return read_question(QueryParams(query), now=now, zone=UTC)


def figure(value: float | None, before: float | None, unit: Any, **more: Any) -> Figure:
    return Figure("name", "Label", unit, Tile(value, before, ()), **more)


# What is asked


def test_without_a_word_the_last_thirty_days_are_asked_for() -> None:
    question = asked("")
    assert question.range == "30d"
    assert question.scope.since == datetime(2026, 10, 23, tzinfo=UTC)
    assert question.scope.until == NOW
    assert question.params == {}


def test_dates_are_days_of_the_time_zone_and_the_last_one_is_whole() -> None:
    question = asked("from=2026-11-01&to=2026-11-02&tz=Europe/Berlin")
    assert question.range is None
    assert question.scope.since == datetime(2026, 11, 1, tzinfo=BERLIN)
    assert question.scope.until == datetime(2026, 11, 3, tzinfo=BERLIN)


def test_a_period_does_not_reach_into_the_future() -> None:
    assert asked("from=2026-11-20&to=2026-11-30").scope.until == NOW


@pytest.mark.parametrize(
    "query",
    [
        "range=century",
        "tz=Mars/Olympus",
        "tz=../../etc/passwd",
        "interval=second&split=color",
        "from=yesterday&to=9999-12-31T23:59:59-14:00",
        "from=2026-12-01&to=2026-12-02",
        "from=0001-01-01",
        "to=0001-01-02",
        "agent=",
    ],
)
def test_what_makes_no_sense_is_left_out(query: str) -> None:
    assert asked(query).params == {}


@pytest.mark.parametrize(
    "query",
    [
        "range=7d&agent=a&agent=b&tz=Europe/Berlin&split=provider&interval=week",
        "from=2026-11-01&to=2026-11-02",
        "from=2026-11-01T10:00:00Z",
    ],
)
def test_the_parameters_of_a_page_ask_the_same_again(query: str) -> None:
    question = asked(query)
    again = QueryParams(
        [
            (name, each)
            for name, value in question.params.items()
            for each in ([value] if isinstance(value, str) else value)
        ]
    )
    assert read_question(again, now=NOW, zone=UTC) == question


def test_the_operators_time_zone_counts_unless_the_address_names_one(site: Site) -> None:
    add(site, minutes_ago=0)
    site.browser.cookies["mh_tz"] = "Asia/Tokyo"
    assert site.get("/analytics.json").json()["zone"] == "Asia/Tokyo"
    assert site.get("/analytics.json?tz=Europe/Berlin").json()["zone"] == "Europe/Berlin"


# Tiles


@pytest.mark.parametrize(
    ("value", "before", "unit", "less_is_better", "change", "verdict"),
    [
        (111, 100, "count", False, "+11%", None),
        (100, 0, "count", False, None, None),
        (0.012, 0.013, "share", True, "−0.1 pt", "better"),
        (0.0121, 0.0122, "share", True, "±0 pt", None),
        (212, 194, "ms", True, "+18 ms", "worse"),
        (138, 132, "s", False, "+6 s", None),
        (17, 22, "count", True, "−5", "better"),
        (None, 22, "ms", True, None, None),
        (22, None, "ms", True, None, None),
    ],
)
def test_a_change_is_colored_only_when_it_is_clear(
    value: float | None,
    before: float | None,
    unit: Any,
    less_is_better: bool,
    change: str | None,
    verdict: str | None,
) -> None:
    found = figure(value, before, unit, less_is_better=less_is_better)
    assert (found.change, found.verdict) == (change, verdict)


@pytest.mark.parametrize(
    ("value", "before", "of", "of_before", "verdict"),
    [
        (20, 10, 100, 100, "worse"),
        (20, 10, 1000, 100, None),
        (10, 20, 100, 100, "better"),
        (10, 20, 10, 1000, None),
        (10, 0, 100, 0, None),
    ],
)
def test_more_failures_are_worse_only_if_there_are_more_of_all(
    value: float, before: float, of: float, of_before: float, verdict: str | None
) -> None:
    part = Tile(of, of_before, ())
    assert figure(value, before, "count", of=part, less_is_better=True).verdict == verdict


def test_a_sparkline_has_gaps_for_missing_figures() -> None:
    tile = Tile(1, None, (1, 2, None, None, 3, 1))
    assert len(Figure("n", "N", "ms", tile).strokes) == 2
    assert Figure("n", "N", "ms", Tile(1, None, (1,))).strokes == ()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1234.4, "count", "1,234"),
        (0.0031, "credits", "0.00310"),
        (97.694, "credits", "97.69"),
        (0.5, "ms", "0.5"),
        (138, "s", "2:18"),
        (0.613, "share", "61.3%"),
        (None, "ms", ""),
        ("Prefetch", "text", "Prefetch"),
    ],
)
def test_values_are_written_in_their_unit(value: Any, unit: Any, text: str) -> None:
    assert formatted(value, unit) == text


# The page


def test_tiles_compare_with_the_time_before(site: Site) -> None:
    for number in range(3):
        add(site, number, minutes_ago=60)
    add(site, 9, minutes_ago=30 * DAY_MINUTES)
    page = site.page("/analytics")
    assert "Calls 3 +200% was 1" in page.text
    assert "compared with the 30 days before" in page.text


def test_every_chart_has_a_table_a_summary_and_csv(site: Site) -> None:
    call_id = add(site, cost_total=1.0)
    site.stored.add_cost(call_id, type="llm", provider="openai", credit=1.0)
    site.stored.add_run(call_id, "save", "succeeded")
    page = site.page("/analytics")
    assert len(page.all("caption")) == len(CHARTS)
    links = [link for link in page.links() if link.endswith(".csv")]
    assert links == [f"/analytics/{chart}.csv" for chart in CHARTS]
    for link in links:
        assert site.get(link).text.count("\r\n") > 1


def test_a_bar_leads_to_its_calls(site: Site) -> None:
    add(site, 1, minutes_ago=10, outcome="failed", call_status="error")
    add(site, 2, minutes_ago=2 * DAY_MINUTES)
    columns = charts(site)["calls"]["columns"]
    failed = next(column for column in columns if column["name"] == "Failed")
    assert failed["total"] == 1
    last = charts(site)["calls"]["rows"][-1]
    assert last["name"] == "Nov 21"
    assert last["values"] == [0, 0, 0, 0, 1, 0]
    query = "&".join(f"{name}={value}" for name, value in last["filters"].items())
    listed = site.get(f"/calls.json?{query}").json()["page"]["rows"]
    assert [row["call"]["session_id"] for row in listed] == ["-s1"]


def test_links_to_the_list_keep_the_agents(site: Site) -> None:
    add(site, 1, agent_id="a")
    add(site, 2, agent_id="b")
    page = site.page("/analytics?agent=a&agent=c")
    assert any("agent=a&agent=c" in link for link in page.links() if link.startswith("/calls"))
    assert "2 agents" in page.text
    assert "1 call" in page.text


def test_a_step_of_the_histogram_finds_just_its_calls(site: Site) -> None:
    add(site, 1, duration_s=29.5)
    add(site, 2, duration_s=30.0)
    first, second = charts(site)["duration"]["rows"][:2]
    assert first["values"] == second["values"] == [1]
    for row, session_id in ((first, "-s1"), (second, "-s2")):
        query = "&".join(f"{name}={value}" for name, value in row["filters"].items())
        listed = site.get(f"/calls.json?{query}").json()["page"]["rows"]
        assert [each["call"]["session_id"] for each in listed] == [session_id]


def test_costs_are_split_as_asked(site: Site) -> None:
    call_id = add(site, cost_total=3.0)
    site.stored.add_cost(call_id, 0, type="llm", provider="openai", credit=1.0)
    site.stored.add_cost(call_id, 1, type="tts", provider="openai", credit=2.0)
    assert rows_of(site, "cost")[0] == ["Day", "TTS", "LLM"]
    assert rows_of(site, "cost", "?split=provider")[0] == ["Day", "openai"]
    assert rows_of(site, "cost", "?split=provider")[-1] == ["2026-11-21", "3.0"]


def test_many_kinds_of_cost_become_one_column(site: Site) -> None:
    call_id = add(site, cost_total=55.0)
    for place in range(10):
        site.stored.add_cost(call_id, place, type=f"kind{place}", credit=1.0 + place)
    columns = charts(site)["cost"]["columns"]
    assert [column["name"] for column in columns][-2:] == ["kind5", "All others"]
    assert sum(column["total"] for column in columns) == 55


def test_prefetches_have_a_line_where_there_are_enough(site: Site) -> None:
    for number in range(40):
        days = number % 2
        add(site, number, minutes_ago=10 + days * DAY_MINUTES, prefetch_ms=100.0 + number)
    assert 'data-table="data-prefetch"' in site.get("/analytics").text
    last = charts(site)["prefetch"]["rows"][-1]
    assert last["values"] == [118.0, 136.0, 138.0, 20]


def test_handlers_are_counted_and_failed_runs_lead_to_their_calls(site: Site) -> None:
    call_id = add(site)
    run_id = site.stored.add_run(call_id, "save", "failed")
    site.stored.add_attempt(run_id, outcome="failed", duration_ms=12.0)
    assert rows_of(site, "handlers")[1] == [
        "save",
        "End-of-call",
        "1",
        "1",
        "1",
        "1",
        "12.0",
        "12.0",
    ]
    page = site.page("/analytics")
    assert any("handler=failed" in link for link in page.links())


def test_calls_of_the_sandbox_are_left_out(site: Site) -> None:
    add(site, 1, source="sandbox")
    assert charts(site) == {}
    add(site, 2, source="millis_api")
    add(site, 3)
    assert charts(site)["calls"]["rows"][-1]["values"][0] == 2


# States


def test_an_empty_period_says_so_and_leads_on(site: Site) -> None:
    page = site.page("/analytics")
    assert "No calls in this period" in page.text
    assert "/analytics?range=12mo" in page.links()
    assert not page.all("canvas")


def test_what_millis_did_not_send_is_not_zero(site: Site) -> None:
    add(site, duration_s=None)
    text = site.page("/analytics").text
    assert "Millis sent no costs with these calls" in text
    assert "Millis sent no duration with these calls" in text
    assert "No prefetch was received for these calls" in text
    assert "No handler ran for these calls" in text
    assert "Cost Not sent" in text


def test_one_day_gets_a_sentence_instead_of_a_line(site: Site) -> None:
    add(site, prefetch_ms=80.0)
    response = site.get("/analytics?range=24h&interval=day")
    assert "Too few prefetches for a line" in Page(response).text
    assert 'data-table="data-prefetch"' not in response.text
    assert 'id="data-prefetch"' in response.text


def test_what_takes_long_is_answered_from_memory_for_a_while(site: Site) -> None:
    add(site)
    ticks = iter([0.0, 3.0, 10.0, 10.1])
    page = AnalyticsPage(clock=lambda: next(ticks))
    statements: list[str] = []
    reader = site.stored.database.reader
    event.listen(reader, "before_cursor_execute", lambda *each: statements.append(each[2]))

    def view(seconds: float, query: str = "") -> Any:
        statements.clear()
        now = NOW + timedelta(seconds=seconds)
        return page.show(
            PageRequest(site.stored.queries, DashboardSettings("1"), now, QueryParams(query), {})
        )

    assert view(0).read_at is None
    asked_first = len(statements)
    add(site, 2)
    kept = view(60)
    assert kept.read_at == NOW
    assert kept.tiles[0].tile.value == 1
    assert len(statements) < asked_first
    anew = view(KEPT_FOR.total_seconds())
    assert anew.read_at is None
    assert anew.tiles[0].tile.value == 2


# Hostile names, and who sees what


def test_hostile_names_are_text_everywhere(site: Site) -> None:
    call_id = add(site, call_status=HOSTILE, agent_id=HOSTILE, cost_total=1.0)
    site.stored.add_cost(call_id, type=HOSTILE, provider="=1+1|cmd", credit=1.0)
    page = site.page("/analytics")
    assert not page.all("img")
    assert all(each.get("src") for each in page.all("script"))
    assert HOSTILE.split(" ", 1)[0] in page.text


def test_no_cell_of_csv_is_a_formula(site: Site) -> None:
    call_id = add(site, call_status="=HYPERLINK(1)", cost_total=1.0)
    site.stored.add_cost(call_id, type="@cost", provider="=1+1|cmd", credit=1.0)
    site.stored.add_run(call_id, "+cmd|' /C calc'!A0", "succeeded")
    for chart in CHARTS:
        for row in rows_of(site, chart, "?split=provider"):
            assert not any(cell.startswith(("=", "+", "@", "-")) for cell in row)


def test_csv_ends_no_sum_in_digits_that_mean_nothing() -> None:
    chart = Chart(
        name="cost",
        title="Cost",
        kind="stack",
        rows_are="Day",
        columns=(Column("LLM", "credits"),),
        rows=(Row("Nov 21", "2026-11-21", (0.1 + 0.2,)), Row("Nov 22", "2026-11-22", (None,))),
        summary="",
    )
    assert as_csv(chart) == "Day,LLM\r\n2026-11-21,0.3\r\n2026-11-22,\r\n"


def test_names_that_hold_numbers_are_masked_by_the_policy(tmp_path: Path) -> None:
    site = Site(tmp_path, mask=MaskPolicy(numbers="full", words="partial"))
    site.sign_in()
    add(site, call_status="forwarded to +14155550134")
    for path in ("/analytics", "/analytics.json", "/analytics/endings.csv"):
        assert "14155550134" not in site.get(path).text
    site.stored.database.close()


def test_charts_require_sign_in(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.get("/analytics/calls.csv").status_code == 401
    assert site.get("/analytics.json").status_code == 401
    site.stored.database.close()


def test_the_csv_of_an_unknown_chart_is_not_found(site: Site) -> None:
    add(site)
    assert site.get("/analytics/secrets.csv").status_code == 404


# The library


def test_the_chart_library_is_the_one_on_record() -> None:
    static = templates_dir() / "static"
    digest = hashlib.sha256((static / "chart.js").read_bytes()).hexdigest()
    assert "`chart.js` | Chart.js 4" in (static / "LICENSES.md").read_text()
    assert digest in (static / "LICENSES.md").read_text()


# Agents, dates and colors


def test_each_agent_has_its_costs_per_call_and_per_minute(site: Site) -> None:
    for number, agent_id in enumerate(("-desk", "-desk", "-sales")):
        add(site, number, agent_id=agent_id, duration_s=90, cost_total=3.0)
    assert rows_of(site, "agents") == [
        ["Agent", "Calls", "Failed", "Minutes", "Cost", "Cost per call", "Cost per minute"],
        ["-desk", "2", "0", "3.0", "6.0", "3.0", "2.0"],
        ["-sales", "1", "0", "1.5", "3.0", "3.0", "2.0"],
    ]
    assert [row[0] for row in rows_of(site, "agents", "?agent=-sales")[1:]] == ["-sales"]


@pytest.mark.parametrize("query", ["from=2026-11-09&to=2026-11-01", "from=soon", "to=2026-02-30"])
def test_dates_that_are_no_period_are_refused_in_words(site: Site, query: str) -> None:
    add(site)
    view = site.get(f"/analytics.json?{query}").json()
    assert view["refusal"]
    assert view["range"] == "30d"
    assert view["refusal"] in site.page(f"/analytics?{query}").text


def test_no_two_costs_have_the_same_color_and_each_keeps_its_own(site: Site) -> None:
    names = ["elevenlabs", "google", "openai", "millis", "deepgram", "cartesia", "azure", "rime"]
    call_id = add(site, cost_total=36.0)
    for place, name in enumerate(names):
        site.stored.add_cost(call_id, place, type="tts", provider=name, credit=8.0 - place)

    def colors() -> dict[str, str]:
        charts = site.get("/analytics.json?split=provider").json()["charts"]
        (cost,) = (chart for chart in charts if chart["name"] == "cost")
        return {column["name"]: column["color"] for column in cost["columns"]}

    found = colors()
    assert len(found) == len(set(found.values())) == 7
    assert (found["Millis"], found["All others"]) == ("millis", "rest")
    assert found["openai"] == "user"


def test_results_are_listed_with_links_to_their_calls(site: Site) -> None:
    site.stored.add_results(site.stored.add_call("-call"), booked=True, score=4.5, note=HOSTILE)
    page = site.page("/analytics")
    assert any("result=booked%3Dtrue" in link for link in page.links())
    assert page.all("img") == []
    csv = site.get("/analytics/results.csv").text.splitlines()
    assert csv[0] == "Result,Value,Calls,Share,Sum,Average"
    assert "score,,1,,4.5,4.5" in csv
    assert "has the metadata plan" in site.page("/analytics?by=plan").text


def test_a_result_that_no_condition_can_name_has_no_link(site: Site) -> None:
    results: dict[str, Any] = {"<b>": "odd", "table": " 5", "seat": ""}
    site.stored.add_results(site.stored.add_call("-call"), **results)
    filters = [row["filters"] for row in charts(site)["results"]["rows"]]
    assert [each and each["result"] for each in filters] == [None, "seat=", None]


def test_variants_are_compared_with_links_to_their_calls(site: Site) -> None:
    for number, chosen in enumerate(("short", "short", HOSTILE)):
        outcome = ("completed", "failed", "completed")[number]
        call_id = add(site, number, outcome=outcome, duration_s=90, cost_total=3.0)
        site.stored.add_metadata(call_id, {"keep.variant": chosen})
        site.stored.add_results(call_id, booked=number > 0, score=number)
    head, *rows = rows_of(site, "by", "?by=variant")
    assert head[:4] == ["keep.variant", "Calls", "Completed", "Failed"]
    assert rows[0] == ["short", "2", "0.5", "0.5", "3.0", "6.0", "3.0", "2.0"]
    assert rows_of(site, "results", "?by=variant")[-1][:4] == ["score", "short", "", "2"]
    found = charts(site, "?by=variant")
    filters = [found["by"]["rows"][0]["filters"], found["results"]["rows"][-1]["filters"]]
    filters.append(found["results"]["rows"][1]["filters"])
    assert [each["meta"] for each in filters] == ["keep.variant=short"] * 3
    assert filters[-1]["result"] == "booked=false"
    page = site.page("/analytics?by=variant")
    assert page.all("img") == []
    link = next(each for each in page.links() if "meta=keep.variant%3Dshort&result=" in each)
    assert len(site.get(link.replace("/calls?", "/calls.json?")).json()["page"]["rows"]) == 1


def test_a_masked_value_is_compared_without_a_link(tmp_path: Path) -> None:
    site = Site(tmp_path, mask=MaskPolicy(numbers="full", words="full"))
    site.sign_in()
    site.stored.add_metadata(add(site), {"name": "Ada"})
    [row] = charts(site, "?by=name")["by"]["rows"]
    assert (row["filters"], "Ada" in str(row)) == (None, False)
    site.stored.add_metadata(add(site, 2), {"+14155550134": "x"})
    assert site.get("/analytics.json").json()["keys"] == ["name"]
    site.stored.database.close()

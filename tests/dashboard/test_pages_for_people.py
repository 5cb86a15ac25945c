"""Pages are for people: in their time zone, by keyboard, without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from millis_hooks.dashboard.pages import templates_dir
from support.dashboard_site import HOSTILE, Page, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


def choose(site: Site, zone: str, target: str = "/calls?range=30d") -> httpx.Response:
    form = {"zone": zone, "next": target}
    return site.browser.post(site.prefix + "/time-zone", data=form)


def test_times_are_utc_until_somebody_says_otherwise(site: Site) -> None:
    page = site.page("/calls")
    assert page.all("input", name="zone")[0]["value"] == "UTC"


def test_a_zone_is_chosen_with_the_form_in_the_footer(site: Site) -> None:
    site.stored.add_call("-a", minutes_ago=20)
    (target,) = site.page("/calls?range=30d").all("input", name="next")
    response = choose(site, "Asia/Kolkata", target["value"] or "")
    assert (response.status_code, response.headers["location"]) == (303, "/calls?range=30d")
    page = site.page("/calls")
    assert "19:30" in page.text  # 14:00 in UTC
    assert page.all("input", name="zone")[0]["value"] == "Asia/Kolkata"


def test_today_begins_at_midnight_in_the_zone(site: Site) -> None:
    for minutes_ago in (10, 300):
        site.stored.add_call(f"-{minutes_ago}", minutes_ago=minutes_ago)
    twin = site.get("/calls.json?range=today").json()
    assert (twin["today"]["calls"], len(twin["page"]["rows"])) == (2, 2)
    choose(site, "Pacific/Kiritimati")  # where it is 4:20 of the next day
    twin = site.get("/calls.json?range=today").json()
    assert (twin["today"]["calls"], len(twin["page"]["rows"])) == (1, 1)


@pytest.mark.parametrize(
    "zone", ["", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "a\0b", "x" * 5000, HOSTILE]
)
def test_an_unknown_time_zone_is_ignored(site: Site, zone: str) -> None:
    assert choose(site, zone).status_code == 400
    assert "mh_tz" not in site.browser.cookies


@pytest.mark.parametrize("cookie", ["Mars/Olympus", "%00", "..", "'><script>"])
def test_a_cookie_that_names_no_zone_means_utc(site: Site, cookie: str) -> None:
    response = site.browser.get("/calls", headers={"cookie": f"mh_tz={cookie}; {site.cookie}"})
    assert Page(response).all("input", name="zone")[0]["value"] == "UTC"


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "calls", ""])
def test_choosing_a_zone_leads_to_no_other_site(site: Site, target: str) -> None:
    assert choose(site, "UTC", target).headers["location"] == "/"


def test_choosing_a_zone_stays_below_the_path_the_dashboard_is_mounted_at(tmp_path: Path) -> None:
    site = Site(tmp_path, prefix="/ops/voice")
    site.sign_in()
    (target,) = site.page("/calls?q=a").all("input", name="next")
    assert target["value"] == "/ops/voice/calls?q=a"
    assert choose(site, "UTC", "").headers["location"] == "/ops/voice/"
    site.stored.database.close()


def test_every_place_has_a_shortcut_that_the_help_names(site: Site) -> None:
    page = site.page("/calls")
    keys = [link["data-go"] for link in page.all("a") if "data-go" in link]
    assert keys[0] == "c"
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert f"g then {key}" in page.text


@pytest.mark.parametrize(
    ("path", "place"),
    [("/calls", "/calls"), ("/calls/-call", "/calls"), ("/drift", "/drift"),
     ("/deliveries/1", "/deliveries")],
)  # fmt: skip
def test_the_navigation_shows_where_one_is(site: Site, path: str, place: str) -> None:
    site.add_ended_call()
    (here,) = site.page(path).all("a", **{"aria-current": "page"})
    assert here["href"] == place


def test_the_first_link_of_a_page_skips_to_its_content(site: Site) -> None:
    page = site.page("/calls")
    assert page.links()[0] == "#main"
    assert page.all("main", id="main", tabindex="-1")


def test_every_field_has_a_name_of_its_own(site: Site) -> None:
    site.stored.add_call("-a", agent_id="-desk")
    page = site.page("/calls?meta=a=b&from=2026-11-01")
    labelled = {label["for"] for label in page.all("label") if "for" in label}
    for field in page.all("input") + page.all("select"):
        if field.get("type") not in ("hidden", "checkbox"):
            assert field.get("id") in labelled or field.get("aria-label")


def test_pages_are_compressed_for_browsers_that_accept_it(site: Site) -> None:
    site.stored.add_call("-a")
    packed = site.browser.get("/calls", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    plain = site.browser.get("/calls", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_nothing_moves_where_less_motion_is_preferred() -> None:
    sheet = (templates_dir() / "static" / "app.css").read_text()
    without = re.search(r"prefers-reduced-motion: no-preference\) \{\s*@view-transition", sheet)
    assert without
    assert "@media (prefers-reduced-motion: reduce)" in sheet
    assert "@media (forced-colors: active)" in sheet

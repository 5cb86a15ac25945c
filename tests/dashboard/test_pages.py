"""What all pages share: headers, links, files, errors, navigation and the time zone."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import httpx2 as httpx
import pytest

from millis_hooks.version import templates_dir
from support.dashboard_site import HOSTILE, Page, Site


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
def test_a_missing_page_links_back_to_the_calls(site: Site, path: str) -> None:
    response = site.get(path)
    assert response.status_code == 404
    assert "/calls" in Page(response).links()


def test_a_missing_twin_is_an_error_in_json(site: Site) -> None:
    response = site.get("/calls/-none.json")
    assert response.status_code == 404
    assert "Not found" in response.json()["error"]


def test_an_unreadable_call_log_has_an_error_page(site: Site) -> None:
    cookie = site.cookie
    site.stored.database.close()
    (Path(str(site.stored.database.url.database))).write_bytes(b"no database at all" * 1000)
    response = site.browser.get("/calls", headers={"cookie": cookie})
    assert response.status_code == 503
    assert "call log" in Page(response).text


def choose(site: Site, zone: str, target: str = "/calls?range=30d") -> httpx.Response:
    form = {"zone": zone, "next": target}
    return site.browser.post(site.prefix + "/time-zone", data=form)


def test_times_are_in_utc_by_default(site: Site) -> None:
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
def test_an_invalid_zone_cookie_means_utc(site: Site, cookie: str) -> None:
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


def test_every_page_of_the_navigation_has_a_shortcut_in_the_help(site: Site) -> None:
    page = site.page("/calls")
    keys = [link["data-go"] for link in page.all("a") if "data-go" in link]
    assert keys[0] == "c"
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert f"g then {key}" in page.text


@pytest.mark.parametrize(
    ("path", "place"),
    [("/calls", "/calls"), ("/calls/-call", "/calls"), ("/deliveries/drift", "/deliveries"),
     ("/deliveries/1", "/deliveries")],
)  # fmt: skip
def test_the_navigation_marks_the_current_page(site: Site, path: str, place: str) -> None:
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


def test_animations_stop_where_reduced_motion_is_preferred() -> None:
    sheet = (templates_dir() / "static" / "app.css").read_text()
    without = re.search(r"prefers-reduced-motion: no-preference\) \{\s*@view-transition", sheet)
    assert without
    assert "@media (prefers-reduced-motion: reduce)" in sheet
    assert "@media (forced-colors: active)" in sheet


def test_an_agent_is_shown_by_its_name_and_found_by_its_id(tmp_path: Path) -> None:
    site = Site(tmp_path, agents={"-OxFrontDesk8kPq2Lr71": HOSTILE})
    site.sign_in()
    for session_id, agent_id in (("-a", "-OxFrontDesk8kPq2Lr71"), ("-b", "-OxOther8kPq2Lr71xyz")):
        site.stored.add_call(session_id, agent_id=agent_id)
        site.stored.add_unended_call(f"{session_id}2", minutes_ago=1, agent_id=agent_id)
    for path in ("/calls?agent=-OxFrontDesk8kPq2Lr71", "/calls/-a", "/analytics"):
        page = site.page(path)
        assert HOSTILE.replace("\u202e", "") in page.text or path == "/analytics"
        titles = [found.get("title") for _, found in page.elements]
        assert "-OxFrontDesk8kPq2Lr71" in titles, path
    assert "…2Lr71xyz" in site.page("/calls").text
    row = site.get("/calls.json?agent=-OxFrontDesk8kPq2Lr71").json()["page"]["rows"][0]["call"]
    assert (row["agent_id"], row["agent_name"]) == ("-OxFrontDesk8kPq2Lr71", HOSTILE)
    assert "agent_name" not in site.get("/calls/export.csv").text
    site.stored.database.close()


def test_bidi_controls_turn_nothing_around(site: Site) -> None:
    turned = "\u202etxet\u2067"
    site.add_ended_call(turned, metadata={"note": turned})
    for path in ("/calls?range=all", f"/calls/{turned}", f"/forget?session_id={turned}"):
        text = re.sub("<[^>]*>", "", site.get(path).text)
        assert "txet" in text
        assert not set(text) & set(turned[0] + turned[-1])
    assert "\\u202etxet\\u2067" in site.page(f"/calls/{turned}").text
    assert Page(site.get(f"/forget?session_id={turned}")).all("input", value=turned)


def test_the_address_of_a_form_leads_to_its_page(site: Site) -> None:
    pages = {
        "/setup/reveal": "/setup",
        "/setup/test": "/setup",
        "/replay": "/calls",
        "/operators/end-session": "/operators",
    }
    for path, page in pages.items():
        response = site.get(path)
        assert (response.status_code, response.headers["location"]) == (303, page)


def test_earlier_addresses_lead_to_the_pages_of_today(site: Site) -> None:
    assert site.get("/drift?x=1").headers["location"] == "/deliveries/drift?x=1"
    assert site.get("/drift.json").headers["location"] == "/deliveries/drift.json"


def test_each_page_leads_to_itself_as_json(site: Site) -> None:
    site.add_ended_call()
    for path in ("/calls?q=a", "/calls/-call", "/deliveries/1", "/setup", "/operators"):
        page, _, query = path.partition("?")
        assert f"{page}.json{'?' if query else ''}{query}" in site.page(path).links()


@pytest.mark.parametrize("path", ["/nowhere", "/calls/-nobody"])
def test_an_error_keeps_the_navigation_and_the_calls_in_progress(site: Site, path: str) -> None:
    site.stored.add_unended_call("-live", minutes_ago=1)
    response = site.get(path)
    assert response.status_code == 404
    page = Page(response)
    assert page.all("a", href="/analytics")
    (badge,) = page.all("span", id="live-count")
    assert badge["aria-label"] == "1 in progress"


def test_the_style_sheet_is_small(site: Site) -> None:
    sheet = (templates_dir() / "static" / "app.css").read_bytes()
    assert len(gzip.compress(sheet, 9)) <= 10.5 * 1024

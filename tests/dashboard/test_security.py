"""The same-origin check of forms, redirects, and secure cookies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.testclient import TestClient

from millis_hooks.dashboard.security import on_this_site, refusal_of
from support.dashboard_site import Site

PUBLIC = "https://Hooks.example.com:443/voice"


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, public_url=PUBLIC)
    yield site
    site.stored.database.close()


def refused(
    host: str, scheme: str = "http", public_url: str | None = None, **headers: str
) -> str | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return refusal_of(Headers({"host": host} | named), scheme, public_url)


@pytest.mark.parametrize(
    ("host", "scheme", "origin"),
    [
        ("hooks.example", "http", "http://hooks.example"),
        ("hooks.example:80", "http", "http://hooks.example"),
        ("hooks.example", "http", "http://hooks.example:80"),
        ("HOOKS.Example", "https", "https://hooks.example:443"),
        ("hooks.example.:8443", "https", "https://hooks.example:8443"),
        ("[::1]:8000", "http", "http://[0:0:0:0:0:0:0:1]:8000"),
        ("xn--bcher-kva.example", "https", "https://bücher.example"),
    ],
)
def test_the_same_origin_may_be_spelled_in_many_ways(host: str, scheme: str, origin: str) -> None:
    assert refused(host, scheme, origin=origin) is None
    assert refused(host, scheme, referer=f"{origin}/calls?q=x#y") is None


@pytest.mark.parametrize(
    "foreign",
    [
        "https://evil.example",
        "http://hooks.example:81",
        "https://hooks.example",
        "http://hooks.example.evil.example",
        "http://hooks.example@evil.example",
        "http://evil.example@hooks.example",
        "//hooks.example",
        "ftp://hooks.example",
        "http://[",
        "http://hooks.example:99999",
        "hooks.example",
        "null",
        "about:blank",
        "\x00",
    ],
)
def test_a_form_from_anywhere_else_is_refused(foreign: str) -> None:
    assert refused("hooks.example", origin=foreign)
    assert refused("hooks.example", referer=foreign)
    assert refused("hooks.example", public_url=PUBLIC, origin=foreign)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "SAME-ORIGIN", ""])
def test_sec_fetch_site_decides(site: str) -> None:
    assert refused("hooks.example", sec_fetch_site=site, origin="http://hooks.example")
    assert refused("elsewhere", sec_fetch_site="same-origin", origin="http://hooks.example") is None


@pytest.mark.parametrize("host", ["", "null", "["])
def test_an_empty_host_matches_no_origin(host: str) -> None:
    assert refused(host, origin="null")
    assert refused(host, origin="http://")


def test_a_form_without_an_origin_is_accepted() -> None:
    assert refused("hooks.example") is None
    assert refused("hooks.example", origin="", referer="") is None


def test_every_origin_header_is_checked() -> None:
    two = [(b"host", b"a.example"), (b"origin", b"http://a.example"), (b"origin", b"http://b.ex")]
    assert refusal_of(Headers(raw=two), "http", None)


@pytest.mark.parametrize("origin", ["https://hooks.example.com", "HTTPS://hooks.EXAMPLE.com:443"])
def test_the_public_url_is_accepted_whatever_the_host(origin: str) -> None:
    assert refused("10.0.0.7:8000", public_url=PUBLIC, origin=origin) is None
    assert refused("10.0.0.7:8000", origin=origin)


def test_a_refusal_names_both_origins_and_the_setting(site: Site) -> None:
    headers = {"origin": "http://192.0.2.5:8080", "host": "millis_hooks"}
    answer = site.browser.post("/logout", headers=headers)
    assert answer.status_code == 403
    for part in ("http://192.0.2.5:8080", "http://millis_hooks", "MILLIS_HOOKS_PUBLIC_URL"):
        assert part in answer.text
    assert site.get("/calls").status_code == 200


def test_a_refusal_is_short_and_on_one_line() -> None:
    refusal = refused("hooks.example", origin="http://\x1b[31m\x85" + "x" * 5000)
    assert refusal is not None
    assert refusal.isprintable()
    assert len(refusal) < 800


def test_no_redirect_uses_the_host_of_the_request(site: Site) -> None:
    site.add_ended_call("-call")
    for route in [each for each in site.app.routes if isinstance(each, Route)]:
        path = route.path.replace("{session_id:anytext}", "-call").replace("{delivery_id}", "1")
        if path != "/live":
            for method in ("GET", "POST"):
                leads_nowhere_else(ask(site, method, path, "evil.example"), path)


@pytest.mark.parametrize("path", ["/calls/", "/static", "//evil.example/", "//calls/", "/nowhere/"])
@pytest.mark.parametrize("host", ["evil.example:81", "[", "evil.example\\@hooks", "a b", "\xe9"])
def test_no_slash_redirect_uses_the_host_of_the_request(site: Site, host: str, path: str) -> None:
    leads_nowhere_else(ask(site, "GET", path, host), path)


def leads_nowhere_else(answer: httpx.Response, asked: str) -> None:
    assert answer.status_code < 500, asked
    to = answer.headers.get("location", "/")
    assert to.startswith("/"), asked
    assert not to.startswith(("//", "/\\")), asked
    assert "evil" not in to or asked.startswith("//evil"), asked


def ask(site: Site, method: str, path: str, host: str) -> httpx.Response:
    url = f"http://testserver{path}"
    return site.browser.request(method, url, headers=[(b"host", host.encode("latin-1"))])


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("http://evil.example/calls?x=//y#z", "/calls?x=//y#z"),
        ("http://evil.example//evil.example/", "/evil.example/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/evil.example"),
        ("https:evil.example", "/evil.example"),
        ("javascript:alert(1)", "/alert(1)"),
        ("/login?next=http://evil.example", "/login?next=http://evil.example"),
        ("/calls/-a:b", "/calls/-a:b"),
    ],
)
def test_every_location_is_a_path_on_this_site(location: str, path: str) -> None:
    assert on_this_site(location) == path


def test_cookies_are_secure_if_the_public_url_is_https(public: Site) -> None:
    session, known = public.sign_in().headers.get_list("set-cookie")
    assert session.startswith("__Host-mh_session=")
    assert known.startswith("__Host-mh_known=")
    assert all("Secure" in cookie for cookie in (session, known))
    kept = "; ".join(cookie.partition(";")[0] for cookie in (session, known))
    over_tls = TestClient(public.app, headers={"cookie": kept}, follow_redirects=False)
    assert over_tls.get("/calls").status_code == 200
    chosen = over_tls.post("/time-zone", data={"zone": "Europe/Oslo"})
    assert "Secure" in chosen.headers["set-cookie"]


def test_a_known_browser_signs_in_while_its_address_is_throttled(
    site: Site,
) -> None:
    site.browser.post("/logout")
    stranger = TestClient(site.app, follow_redirects=False)
    for number in range(9):
        stranger.post("/login", data={"username": "admin", "password": f"guess {number}"})
    assert stranger.post("/login", data={"username": "admin", "password": "x"}).status_code == 429
    assert site.sign_in().status_code == 303

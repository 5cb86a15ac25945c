"""Pages require sign-in; its form, cookies and redirects."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from millis_hooks.exceptions import StorageError
from support.dashboard_site import PASSWORD, Page, Site


@pytest.mark.parametrize(
    "path", ["/", "/calls", "/calls/-call", "/deliveries", "/deliveries/1", "/calls/x/y"]
)
def test_pages_require_sign_in(anonymous: Site, path: str) -> None:
    anonymous.add_ended_call()
    response = anonymous.get(path)
    assert response.status_code == 303
    assert response.headers["location"].startswith("/login")


@pytest.mark.parametrize("path", ["/calls.json", "/calls/-call.json", "/deliveries/1.json"])
def test_json_twins_require_sign_in(anonymous: Site, path: str) -> None:
    anonymous.add_ended_call()
    response = anonymous.get(path)
    assert response.status_code == 401
    assert list(response.json()) == ["error"]


def test_signing_in_leads_to_the_requested_page(anonymous: Site) -> None:
    response = anonymous.get("/calls?q=a%26b&outcome=error")
    form = Page(anonymous.get(response.headers["location"]))
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


def test_a_throttled_sign_in_shows_when_to_try_again(anonymous: Site) -> None:
    for number in range(6):
        anonymous.sign_in(f"wrong {number}")
    response = anonymous.sign_in()
    assert response.status_code == 429
    assert f"Try again in {response.headers['retry-after']} s." in Page(response).text


def test_signing_in_on_a_full_disk_reports_the_reason(anonymous: Site) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("The call log could not be written: database or disk is full.")

    anonymous.operators._write = refuse  # type: ignore[assignment]
    answer = anonymous.sign_in()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "database or disk is full. Free space on the disk" in Page(answer).text
    assert anonymous.sign_in("wrong").status_code == 401


def test_without_a_password_the_page_explains_how_to_set_one(tmp_path: Path) -> None:
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


def test_too_large_a_form_is_refused(anonymous: Site) -> None:
    assert anonymous.sign_in("x" * 100_000).status_code == 413


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_a_known_browser_does_not_wait_for_a_flood_of_others(
    site: Site, monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    cookies = dict(site.browser.cookies)
    log_in = site.operators.log_in

    def slow(*args: Any, **named: Any) -> Any:
        if not named["known_browser"]:
            released.wait(20)
        return log_in(*args, **named)

    monkeypatch.setattr(site.operators, "log_in", slow)
    form = {"username": "admin", "password": PASSWORD}
    transport = httpx.ASGITransport(site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        post = partial(client.post, "/login", data=form)
        others = [asyncio.create_task(post()) for _ in range(200)]
        refused, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status_code for task in refused} == {429}
        known = await post(headers={"cookie": f"mh_known={cookies['mh_known']}"})
        assert known.status_code == 303
        released.set()
        assert {(await task).status_code for task in others} == {303, 429}


def test_after_a_form_without_a_session_the_sign_in_page_says_once_what_was_not_done(
    anonymous: Site,
) -> None:
    anonymous.add_ended_call()
    form = {"session_id": "-call", "in": "q=refund"}
    asked = anonymous.browser.post("/forget", data=form)
    page = anonymous.page(asked.headers["location"])
    assert "You were signed out; nothing was deleted." in page.text
    target = page.all("input", name="next")[0]["value"] or ""
    assert "nothing was" not in anonymous.page(asked.headers["location"]).text
    assert anonymous.sign_in(next=target).headers["location"] == target
    assert "Not found" not in anonymous.page(target).text
    assert "-call" in anonymous.page(target).text


@pytest.mark.parametrize("word", ["<b>", "x" * 21, "A"])
def test_what_was_not_done_is_no_text_of_others(anonymous: Site, word: str) -> None:
    anonymous.browser.cookies.set("mh_undone", word)
    assert "nothing was" not in anonymous.page("/login").text

"""Pages require sign-in; its form, cookies and redirects."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2 as httpx
import pytest

from millis_hooks.dashboard.sign_in import Queue
from millis_hooks.exceptions import StorageError
from millis_hooks.operators import Key
from support.dashboard_site import Page, Site


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


async def waits(queue: Queue, key: Key) -> bool:
    async with queue.place(key) as has_place:
        return has_place


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_each_address_has_one_place_in_the_queue_and_unknown_browsers_a_hundred() -> None:
    queue = Queue()
    strangers: list[Key] = [("address", str(n)) for n in range(101)]
    async with AsyncExitStack() as held:
        for _ in range(4):  # those who are signing in
            await held.enter_async_context(queue.place(strangers.pop()))
        assert not await waits(queue, ("address", "100"))
        waiting = [asyncio.create_task(waits(queue, each)) for each in strangers[:96]]
        await asyncio.sleep(0)
        assert not await waits(queue, strangers[96])
        known = asyncio.create_task(waits(queue, ("browser", "x")))
        await asyncio.sleep(0)
    assert all(await asyncio.gather(*waiting, known))
    assert await waits(queue, strangers[96])

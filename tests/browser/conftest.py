"""One browser, and servers with hostile and with ordinary calls, for all tests of this folder."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, ViewportSize, expect, sync_playwright

from millis_hooks.call_log.tables import handler_runs, inbox
from support.sites import PASSWORD, Server, Site, signed_in
from support.storage import opened, rows
from support.waiting import eventually

from .hostile import MARKUP, calls
from .watched import PATIENCE_MS, Watched, watched

#: Enough for a second page of the list.
ORDINARY_CALLS = 30
AT_WORK = {"pending", "running"}
#: The size of a tab, if a test does not set another.
WINDOW: ViewportSize = {"width": 1280, "height": 720}
#: Without motion nothing is animated: tests would wait for it, and each frame is drawn.
DEFAULTS: dict[str, Any] = {
    "viewport": WINDOW,
    "color_scheme": "light",
    "reduced_motion": "reduce",
}
#: It beeps every second, and every page may use it and its loudspeaker at once.
MICROPHONE = (
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
#: How long each page took until it could be used, by its name.
TIMES_MS = pytest.StashKey[dict[str, float]]()
#: What an operator has chosen, which the next test does not.
_CHOICES = re.compile("mh_(theme|keys)")

_HOSTILE = f"""
MARKUP = {MARKUP!r}

@hooks.on_prefetch
def tell(call):
    return {{"metadata": {{"plan": MARKUP, "note": "changed"}}, "extra_prompt": MARKUP}}

@hooks.on_end_of_call
def count(call):
    note(call, "counted")

@hooks.on_end_of_call(max_attempts=1)
def sync_crm(call):
    raise ValueError(MARKUP)

@hooks.on_end_of_call(max_attempts=3)
def retry_later(call):
    raise Retry(after_s=3600)
"""

_ORDINARY = """
@hooks.on_prefetch
def greet(call):
    return {"metadata": {"plan": "gold", "first_name": "Maria"}, "extra_prompt": "Be kind."}

@hooks.on_end_of_call
def count(call):
    note(call, "counted")

@hooks.on_end_of_call(max_attempts=1)
def sync_crm(call):
    raise ValueError("nothing to book")
"""


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A browser, without a window. Not for the whole session: its loop is the thread's."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None and "CI" not in os.environ:
        pytest.skip("no chromium; on Debian: apt install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=MICROPHONE)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """What the tabs of all tests share: each context of its own costs two seconds."""
    with chromium.new_context(**DEFAULTS) as context:
        yield context


@pytest.fixture(scope="package")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("hostile"), _HOSTILE)


@pytest.fixture(scope="package")
def hostile(hostile_site: Site) -> Iterator[Server]:
    """A server that has received every hostile call and made of it what it could."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLIS_HOOKS_OWN_NUMBERS", "+14155550199")
        with hostile_site.serving() as server:
            _send_calls(server)
            eventually(lambda: _is_idle(hostile_site))
            yield server


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"), _ORDINARY)


@pytest.fixture(scope="package")
def server(site: Site) -> Iterator[Server]:
    """A server with ordinary calls, and with a sandbox."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLIS_HOOKS_SANDBOX", "1")
        patch.setenv("MILLIS_HOOKS_SANDBOX_PACE", "20")
        with site.serving() as server:
            for number in range(ORDINARY_CALLS):
                server.deliver(f"-ordinary-{number:02}")
            eventually(lambda: _is_idle(site))
            yield server


@pytest.fixture(scope="package")
def _tab(context: BrowserContext, server: Server) -> Iterator[Watched]:
    # A browser tells hosts apart, but not ports: each server has its own cookie.
    address = server.address.replace("127.0.0.1", "localhost")
    be_signed_in(context, server, address)
    with watched(context, address) as tab:
        yield tab


@pytest.fixture(scope="package")
def _hostile_tab(context: BrowserContext, hostile: Server) -> Iterator[Watched]:
    be_signed_in(context, hostile, hostile.address)
    with watched(context, hostile.address) as tab:
        yield tab


@pytest.fixture
def tab(_tab: Watched) -> Iterator[Watched]:
    """A tab of an operator who is signed in, shared by all tests."""
    yield from _as_new(_tab)


@pytest.fixture
def hostile_tab(_hostile_tab: Watched) -> Iterator[Watched]:
    """The same over hostile calls."""
    yield from _as_new(_hostile_tab)


@pytest.fixture
def sandbox(tab: Watched) -> Watched:
    """The same with the page of the sandbox."""
    tab.open("/sandbox")
    return tab


@pytest.fixture(scope="package")
def scriptless(chromium: Browser, server: Server) -> Iterator[Watched]:
    """A tab in which no scripts run, and nobody is signed in."""
    with (
        chromium.new_context(java_script_enabled=False, **DEFAULTS) as context,
        watched(context, server.address) as tab,
    ):
        yield tab


def _as_new(tab: Watched) -> Iterator[Watched]:
    yield tab
    faults = tab.faults()
    tab.page.context.clear_cookies(name=_CHOICES)
    tab.page.emulate_media(color_scheme="light")
    tab.page.set_viewport_size(WINDOW)
    assert not faults, "\n".join(faults)


@pytest.fixture
def times_ms(pytestconfig: pytest.Config) -> dict[str, float]:
    """Where a test notes how long a page took; it is printed at the end, and judged by nobody."""
    return pytestconfig.stash.setdefault(TIMES_MS, {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if times := config.stash.get(TIMES_MS, {}):
        terminalreporter.section("interactive after, over hostile calls")
        for name, time_ms in sorted(times.items()):
            terminalreporter.line(f"{name:12} {time_ms:5.0f} ms")


def sign_in(tab: Watched) -> None:
    """Fill in the form on the page."""
    tab.page.get_by_label("password").fill(PASSWORD)
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.wait_for_url(lambda url: "/login" not in url)


def be_signed_in(context: BrowserContext, server: Server, address: str) -> None:
    """Sign in without a page."""
    name, _, value = signed_in(server).partition("=")
    context.add_cookies([{"name": name, "value": value, "url": address}])


def _send_calls(server: Server) -> None:
    for call in calls():
        if call.query is not None:
            answer = server.ask("GET", f"/millis/prefetch?{call.query}")
            assert answer.status == HTTPStatus.OK
        if call.body is not None:
            answer = server.ask("POST", "/millis/end-of-call", call.body)
            assert answer.status == HTTPStatus.OK
    for path in ("prefetch", f"prefetch?{urlencode({MARKUP: MARKUP})}"):
        assert server.ask("PUT", f"/millis/{path}").status == HTTPStatus.METHOD_NOT_ALLOWED


def _is_idle(site: Site) -> bool:
    with opened(site.folder) as database:
        is_read = not rows(database, inbox)
        return is_read and not {run.state for run in rows(database, handler_runs)} & AT_WORK

"""One browser and one server with hostile calls, for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, ViewportSize, expect, sync_playwright

from millis_hooks.call_log.tables import handler_runs, inbox
from support.sites import PASSWORD, Server, Site
from support.storage import opened, rows
from support.waiting import eventually

from .hostile import MARKUP, calls
from .watched import PATIENCE_MS, Watched, watched

#: Enough for a second page of the list.
ORDINARY_CALLS = 12
AT_WORK = {"pending", "running"}
#: The size of a tab, if a test does not set another.
WINDOW: ViewportSize = {"width": 1280, "height": 720}
#: Without motion nothing is animated: tests would wait for it.
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

_HANDLERS = f"""
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

_REHEARSED = """
@hooks.on_prefetch
def greet(call):
    return {"metadata": {"plan": "gold", "first_name": "Maria"}, "extra_prompt": "Be kind."}

@hooks.on_end_of_call(max_attempts=1)
def breaks(call):
    raise ValueError("nothing to book")
"""

#: Opens a tab of an operator who is signed in; keywords are those of Playwright's `new_context`.
OpenTab: TypeAlias = Callable[..., AbstractContextManager[Watched]]


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
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"), _HANDLERS)


@pytest.fixture(scope="package")
def server(site: Site) -> Iterator[Server]:
    """A server that has received every hostile call and made of it what it could."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLIS_HOOKS_OWN_NUMBERS", "+14155550199")
        with site.serving() as server:
            _send_calls(server)
            for number in range(ORDINARY_CALLS):
                server.deliver(f"-ordinary-{number:02}")
            eventually(lambda: _is_idle(site))
            yield server


@pytest.fixture(scope="package")
def open_tab(chromium: Browser, server: Server) -> OpenTab:
    return _tabs_of(chromium, server)


@pytest.fixture(scope="package")
def _shared_tab(open_tab: OpenTab) -> Iterator[Watched]:
    with open_tab() as tab:
        yield tab


@pytest.fixture
def tab(_shared_tab: Watched) -> Iterator[Watched]:
    """A tab shared by all tests that set no cookies: another one costs half a second."""
    yield from _as_new(_shared_tab)


@pytest.fixture(scope="package")
def _shared_sandbox(open_sandbox: OpenTab) -> Iterator[Watched]:
    with open_sandbox() as tab:
        yield tab


@pytest.fixture
def sandbox(_shared_sandbox: Watched) -> Iterator[Watched]:
    """A shared tab with the page of the sandbox."""
    _shared_sandbox.open("/sandbox")
    yield from _as_new(_shared_sandbox)


def _as_new(tab: Watched) -> Iterator[Watched]:
    yield tab
    faults = tab.faults()
    tab.page.emulate_media(color_scheme="light")
    tab.page.set_viewport_size(WINDOW)
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="package")
def open_sandbox(chromium: Browser, rehearsing: Server) -> OpenTab:
    return _tabs_of(chromium, rehearsing)


def _tabs_of(chromium: Browser, server: Server) -> OpenTab:
    """Sign in, and return what opens a tab with the cookies of the operator."""
    with chromium.new_context() as context, watched(context, server.address) as tab:
        tab.open("/login")
        sign_in(tab)
        cookies = context.storage_state()

    @contextmanager
    def open_tab(**options: Any) -> Iterator[Watched]:
        with (
            chromium.new_context(storage_state=cookies, **DEFAULTS | options) as context,
            watched(context, server.address) as tab,
        ):
            yield tab

    return open_tab


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


@pytest.fixture(scope="package")
def rehearsing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a sandbox."""
    site = Site(tmp_path_factory.mktemp("sandbox"), _REHEARSED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLIS_HOOKS_SANDBOX", "1")
        with site.serving() as server:
            yield server

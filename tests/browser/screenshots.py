"""Screenshots of every page for the README: `pytest tests/browser/screenshots.py` makes them."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, StorageState

from support.dashboard_site import PASSWORD, Site
from support.sites import free_port
from support.waiting import eventually

from .story import SESSION, tell
from .test_sandbox_page import end_it, hold_a_call
from .watched import Watched

SCREENS = Path(__file__).parent.parent.parent / "docs" / "screens"

PAGES = {
    "calls": "/calls",
    "call": f"/calls/{SESSION}",
    "analytics": "/analytics",
    "deliveries": "/deliveries",
    "drift": "/deliveries/drift",
    "setup": "/setup?url=https://hooks.example.com",
    "operators": "/operators",
    "login": "/login",
}
#: Also made as on a telephone.
SMALL = ("calls", "call")
SIZES = {1440: 1000, 390: 844}
SHOTS = [*product(PAGES, (1440,)), *product(SMALL, (390,))]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("story")
    tell(folder, count=12_000)
    site = Site(folder)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(site.app, port=port, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    site.stored.database.close()


@pytest.fixture(scope="module")
def operator(chromium: Browser, address: str) -> StorageState:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{address}/login")
    page.get_by_label("password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/calls")
    state = context.storage_state()
    context.close()
    return state


@pytest.mark.timeout(600)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("name", "width"), SHOTS)
def test_take(
    name: str,
    width: int,
    theme: Literal["light", "dark"],
    chromium: Browser,
    address: str,
    operator: StorageState,
) -> None:
    context = chromium.new_context(
        storage_state=None if name == "login" else operator,
        viewport={"width": width, "height": SIZES[width]},
        color_scheme=theme,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(address + PAGES[name])
    _keep(page, f"{name}-{width}-{theme}")
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_take_the_sandbox(sandbox: Watched, theme: Literal["light", "dark"]) -> None:
    sandbox.page.emulate_media(color_scheme=theme)
    sandbox.page.set_viewport_size({"width": 1440, "height": SIZES[1440]})
    hold_a_call(sandbox, "Is there a table for two on Tuesday?")
    end_it(sandbox)
    sandbox.page.get_by_role("heading", name="Sandbox").scroll_into_view_if_needed()
    _keep(sandbox.page, f"sandbox-1440-{theme}")


def _keep(page: Page, name: str) -> None:
    page.evaluate("document.fonts.ready")
    page.evaluate("scrollTo(0, 0)")
    SCREENS.mkdir(parents=True, exist_ok=True)
    (SCREENS / f"{name}.webp").write_bytes(_webp(page))


def _webp(page: Page) -> bytes:
    """Take the picture in the browser's smallest format, which Playwright itself does not offer."""
    asked = {"format": "webp", "quality": 80}
    taken = page.context.new_cdp_session(page).send("Page.captureScreenshot", asked)
    return base64.b64decode(taken["data"])

"""What calls the sandbox from a browser: Millis' own Web SDK, unmodified, and the widget.

The browser's microphone is made up.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from support.sites import Server, Site
from support.waiting import eventually

from .watched import PATIENCE_MS, WIDTHS, Watched

SDK = Path(__file__).parent / "web_sdk"


class Files(SimpleHTTPRequestHandler):
    """The page of a team."""

    extensions_map = {".mjs": "text/javascript", ".html": "text/html"}  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the team's page is: pages of this machine may have the microphone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(SDK))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/page.html"
        server.shutdown()


@pytest.fixture(scope="module")
def _shared_page(context: BrowserContext) -> Iterator[Page]:
    with context.new_page() as page:
        page.set_default_timeout(PATIENCE_MS)
        yield page


@pytest.fixture
def page(_shared_page: Page, address: str) -> Page:
    """The team's page, loaded anew: another tab costs two seconds of the processor."""
    _shared_page.goto(address)
    _shared_page.wait_for_function("'start' in window")
    return _shared_page


def start(page: Page, server: Server, path: str, payload: dict[str, Any]) -> None:
    endpoint = f"{server.address}/sandbox/api/{path}".replace("http", "ws", 1)
    page.evaluate("([endPoint, payload]) => start(endPoint, payload)", [endpoint, payload])


def say(page: Page, method: str, data: object) -> None:
    """Send one of the sandbox's own messages."""
    page.evaluate(
        "(message) => client.send(JSON.stringify(message))", {"method": method, "data": data}
    )


def wait_for(page: Page, name: str, data: str | None = None) -> None:
    page.wait_for_function(
        "([name, data]) => heard.some((one) => one.name === name && (!data || one.data === data))",
        arg=[name, data],
    )


def heard(page: Page, name: str) -> list[dict[str, Any]]:
    return [one for one in page.evaluate("heard") if one["name"] == name]


def test_a_call_fires_every_event_of_the_sdk_and_is_in_the_dashboard(
    page: Page, server: Server, site: Site, tab: Watched
) -> None:
    tool = {"name": "find_table", "description": "Finds a table."}
    config = {"first_message": "Hi {first_name}", "tools": [tool]}
    agent = {"agent_id": "-Ox1ofTheSdk", "agent_config": config}
    start(page, server, "millis", {"agent": agent, "metadata": {"seats": [1, 2]}})
    wait_for(page, "onresponsetext", "Hi Maria")
    for name in ("onready", "onlatency"):  # the call goes on until the page has heard them
        say(page, "say", "A table, please.")
        wait_for(page, name)
    wait_for(page, "onresponsetext", "You said: A table, please.")
    say(page, "app_background", {})
    say(page, "call", {"name": "find_table", "params": {"seats": 2}})
    for name in ("ontranscript", "onaudio", "onfunction", "onagentstate"):
        wait_for(page, name)
    wait_for(page, "onresponsetext", "find_table answered: ")
    say(page, "hang_up", None)
    wait_for(page, "onclose")
    assert {one["name"] for one in page.evaluate("heard")} == {
        "onopen", "onready", "ontranscript", "onresponsetext", "onaudio", "onfunction", "onlatency",
        "onagentstate", "useraudioready", "analyzer", "onsessionended", "onclose",
    }  # fmt: skip
    assert any(one["data"]["isLoud"] for one in heard(page, "onaudio"))
    assert {"is_final": True} in [one["more"] for one in heard(page, "onresponsetext")]
    assert [one["data"] for one in heard(page, "onclose")] == [{"code": 1000, "reason": ""}]
    (used,) = heard(page, "onfunction")
    assert used["more"] == {"name": "find_table", "params": used["more"]["params"]}
    assert used["more"]["params"]["seats"] == 2

    session_id = page.evaluate("client.readyPayload.session_id")
    eventually(lambda: site.noted("counted")[session_id])
    call = tab.text_of(f"/calls/{session_id}")
    assert all(words in call for words in ("A table, please.", "seats", "Maria", "find_table"))
    talk = tab.text_of(f"/sandbox?session={session_id}")
    assert "There is no agent -Ox1ofTheSdk" in talk
    assert "the method 'app_background', which is none here" in talk


def test_speaking_pauses_the_agent_and_stopping_ends_the_call(
    page: Page, server: Server, site: Site
) -> None:
    config = {"first_message": "This is a long message. " * 40}
    start(page, server, "millis", {"agent": {"agent_id": "-Ox1ofTheSdk", "agent_config": config}})
    wait_for(page, "onagentstate", "pause")
    page.evaluate("client.stop()")
    wait_for(page, "onclose")
    session_id = page.evaluate("client.readyPayload.session_id")
    eventually(lambda: site.noted("counted")[session_id])


def test_what_is_in_the_address_of_the_widget_is_metadata(tab: Watched) -> None:
    page = tab.page
    tab.open("/sandbox/api/agents/embedded?id=-Ox1w&k=a-key&c=x&name=%3Cb%3EAda&n=1")
    page.get_by_role("button", name="Call").click()
    page.get_by_label("Say").fill("<script>ran = 1</script>")
    page.get_by_role("button", name="Say").click()
    log = page.get_by_role("log")
    expect(log).to_contain_text("You said: <script>ran = 1</script>")
    assert tab.barriers() == []
    page.set_viewport_size({"width": WIDTHS[0], "height": 600})
    assert tab.overflow_px() == 0
    page.get_by_role("button", name="Hang up").click()
    expect(page.get_by_role("status")).to_have_text("Ended.")
    at = f"{tab.address}/sandbox/api/call-logs?call_status=user-ended&agent_id=-Ox1w"
    ask = partial(page.request.get, at, headers={"authorization": "a-key"})
    eventually(lambda: ask().json()["histories"])
    (entry,) = ask().json()["histories"]
    expected = {"name": "<b>Ada", "n": "1", "plan": "gold", "first_name": "Maria"}
    assert entry["metadata"] == expected


def test_the_sdk_is_the_one_that_was_published() -> None:
    licenses = (SDK.parent / "LICENSES.md").read_text()
    for name in ("millisai-web-sdk.mjs", "eventemitter3.mjs"):
        assert hashlib.sha256((SDK / name).read_bytes()).hexdigest() in licenses

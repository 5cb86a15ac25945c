"""Live updates of open pages: the stream of events, and the fragments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.requests import Request
from starlette.types import Message

from millis_hooks.call_log.change_feed import REFRESH, Change, ChangeFeed
from millis_hooks.dashboard.live_updates import MOST_STREAMS, LiveUpdates
from millis_hooks.dashboard.security import Cookies
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.operators import Operator, SignedIn, accounts
from millis_hooks.operators.accounts import hash_password
from support.dashboard_site import HOSTILE
from support.dashboard_site import Site as Dashboard
from support.sites import Site, following, next_event

#: What a test that hangs is given up after.
WAIT_S = 60
#: Between heartbeats that no test waits for.
NEVER_S = 3600


@pytest.fixture
def site(tmp_path: Path) -> Dashboard:
    site = Dashboard(tmp_path)
    site.sign_in()
    return site


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Tab:
    """A page that follows, without the browser."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.sent: asyncio.Queue[Message] = asyncio.Queue()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def start(self) -> Message:
        return await asyncio.wait_for(self.sent.get(), WAIT_S)

    async def event(self) -> str:
        """Return the next event as it is sent, empty at the end."""
        message = await asyncio.wait_for(self.sent.get(), WAIT_S)
        return bytes(message["body"]).decode()


def operator_of(site: Dashboard) -> Callable[[Request], Operator | None]:
    return lambda request: site.operators.resume(Cookies().session(request), is_use=False)


@asynccontextmanager
async def opened(
    site: Dashboard,
    feed: ChangeFeed,
    *,
    cookie: str | None = None,
    heartbeat_s: float = NEVER_S,
    gather_s: float = 0,
    live: LiveUpdates | None = None,
) -> AsyncIterator[Tab]:
    tab = Tab()
    headers = [(b"cookie", (site.cookie if cookie is None else cookie).encode())]
    scope = {"type": "http", "method": "GET", "path": "/live", "headers": headers}
    if live is None:
        live = LiveUpdates(feed, operator_of(site), heartbeat_s=heartbeat_s, gather_s=gather_s)
    task = asyncio.create_task(live(scope, tab.receive, tab.sent.put))
    try:
        yield tab
    finally:
        tab.gone.set()
        await asyncio.wait_for(task, WAIT_S)


@pytest.mark.anyio
async def test_a_stream_begins_with_a_refresh_and_passes_through_proxies(site: Dashboard) -> None:
    async with opened(site, ChangeFeed()) as tab:
        start = await tab.start()
        headers = dict(start["headers"])
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert headers[b"x-accel-buffering"] == b"no"
        assert headers[b"cache-control"] == b"no-store"
        assert "event: refresh" in await tab.event()


@pytest.mark.anyio
@pytest.mark.parametrize("session_id", ["-one", HOSTILE, "-a\r\ndata: b", "\ud800\0"])
async def test_an_event_has_the_kind_and_the_session(site: Dashboard, session_id: str) -> None:
    feed = ChangeFeed()
    async with opened(site, feed) as tab:
        await tab.start()
        await tab.event()
        feed.publish([Change("ended", session_id)])
        kind, data = (await tab.event()).strip().split("\r\n")
        assert kind == "event: ended"
        assert json.loads(data.removeprefix("data: ")) == {"session_id": session_id}


@pytest.mark.anyio
async def test_a_silent_stream_has_heartbeats(site: Dashboard) -> None:
    async with opened(site, ChangeFeed(), heartbeat_s=0.01) as tab:
        await tab.start()
        await tab.event()
        assert (await tab.event()).startswith(":")


@pytest.mark.anyio
@pytest.mark.parametrize("cookie", ["", "mh_session=forged"])
async def test_the_stream_requires_sign_in(site: Dashboard, cookie: str) -> None:
    async with opened(site, ChangeFeed(), cookie=cookie) as tab:
        assert (await tab.start())["status"] == 401


@pytest.mark.anyio
async def test_a_stream_ends_with_its_session(site: Dashboard) -> None:
    async with opened(site, ChangeFeed(), heartbeat_s=0.01) as tab:
        await tab.start()
        await asyncio.to_thread(site.browser.post, "/logout")
        sent = ""
        while "event: signed-out" not in sent:
            sent = await tab.event()
        assert await tab.event() == ""


@pytest.mark.anyio
async def test_too_many_streams_are_refused_with_retry_after(site: Dashboard) -> None:
    feed = ChangeFeed()
    with ExitStack() as others:
        for _ in range(MOST_STREAMS):
            others.enter_context(feed.subscribe(lambda: None))
        async with opened(site, feed) as tab:
            start = await tab.start()
            assert start["status"] == 503
            assert b"retry-after" in dict(start["headers"])


def cookie_of_another_operator(site: Dashboard) -> str:
    password = "a password of her own"
    hashed = hash_password(password)
    site.stored.write(
        lambda connection: accounts.add(
            connection, "grace", role="view", password_hash=hashed, now=site.now
        )
    )
    signed_in = site.operators.log_in("grace", password)
    assert isinstance(signed_in, SignedIn)
    return f"mh_session={signed_in.cookie}"


@pytest.mark.anyio
async def test_streams_of_one_operator_leave_room_for_others(
    site: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.dashboard.live_updates.MOST_OF_ONE", 2)
    grace = cookie_of_another_operator(site)
    feed = ChangeFeed()
    async with AsyncExitStack() as tabs:
        live = LiveUpdates(feed, operator_of(site), heartbeat_s=NEVER_S)
        for status in (200, 200, 503):
            tab = await tabs.enter_async_context(opened(site, feed, live=live))
            assert (await tab.start())["status"] == status
        other = await tabs.enter_async_context(opened(site, feed, live=live, cookie=grace))
        assert (await other.start())["status"] == 200


@pytest.mark.anyio
async def test_a_page_that_is_left_frees_its_place(site: Dashboard) -> None:
    feed = ChangeFeed()
    async with opened(site, feed) as tab:
        await tab.start()
        assert feed.subscribers == 1
    assert feed.subscribers == 0


@pytest.mark.anyio
async def test_streams_end_when_the_call_log_closes(site: Dashboard) -> None:
    feed = ChangeFeed()
    async with opened(site, feed) as tab:
        await tab.start()
        await tab.event()
        feed.close()
        assert await tab.event() == ""


@pytest.mark.anyio
async def test_changes_close_together_are_sent_together(site: Dashboard) -> None:
    feed = ChangeFeed()
    async with opened(site, feed, gather_s=0.1) as tab:
        await tab.start()
        await tab.event()
        feed.publish([Change("started", "-one")])
        await tab.event()
        for session_id in ("-two", "-three", "-two"):
            feed.publish([Change("started", session_id)])
        assert (await tab.event()).count("event:") == 2


@pytest.mark.anyio
async def test_a_stream_ends_when_sessions_cannot_be_looked_up(site: Dashboard) -> None:
    feed = ChangeFeed()
    async with opened(site, feed) as tab:
        await tab.start()
        await tab.event()
        with site.stored.database.writer.begin() as connection:
            connection.exec_driver_sql("DROP TABLE operator_sessions")
        feed.publish([REFRESH])
        assert await tab.event() == ""


@pytest.mark.both_databases
def test_the_fragment_shows_calls_that_have_begun(site: Dashboard) -> None:
    mark = site.get("/calls.json").json()["mark"]
    site.stored.add_unended_call("-live", minutes_ago=1)
    followed = site.page(f"/live/calls?mark={mark}")
    assert "/calls/-live" in followed.links()
    assert followed.all("span", id="live-count", **{"aria-label": "1 in progress"})
    assert not followed.all("a", href="/calls", **{"class": "btn primary"})


@pytest.mark.both_databases
def test_new_calls_are_counted_if_they_match_the_filter(site: Dashboard) -> None:
    site.add_ended_call("-before", agent_id="a")
    mark = site.get("/calls.json").json()["mark"]
    for number in range(3):
        site.add_ended_call(f"-new{number}")
    query = urlencode({"mark": mark})
    assert "3 new calls" in site.page(f"/live/calls?{query}").text
    assert "new call" not in site.page(f"/live/calls?{query}&status=error").text


@pytest.mark.parametrize("mark", ["", "x", "-1", "9" * 40])
def test_an_invalid_mark_counts_nothing(site: Dashboard, mark: str) -> None:
    site.add_ended_call()
    assert "new call" not in site.page(f"/live/calls?mark={mark}").text


def test_the_fragment_of_a_call_announces_its_end(site: Dashboard) -> None:
    site.stored.add_unended_call("-one", minutes_ago=1)
    assert "has ended" not in site.page("/live/calls/-one?seen=live").text
    site.add_ended_call("-two")
    assert "has ended" in site.page("/live/calls/-two?seen=live").text
    assert "has ended" not in site.page("/live/calls/-two?seen=ended").text


def test_a_deleted_call_has_no_fragment(site: Dashboard) -> None:
    assert site.get("/live/calls/-gone").status_code == 404


def test_fragments_are_masked_like_pages(tmp_path: Path) -> None:
    site = Dashboard(tmp_path, mask=MaskPolicy(numbers="full"))
    site.sign_in()
    site.stored.add_unended_call("-one", minutes_ago=1, from_phone="+14155550134")
    assert "555" not in site.page("/live/calls").text


def test_followed_calls_are_escaped(site: Dashboard) -> None:
    site.stored.add_unended_call("-one", minutes_ago=1, agent_id=HOSTILE)
    followed = site.page("/live/calls")
    assert not followed.all("script")
    assert not followed.all("img")


def test_following_calls_requires_sign_in(site: Dashboard) -> None:
    site.browser.cookies.clear()
    for path in ("/live/calls", "/live/calls/-one"):
        assert site.get(path).status_code == 303
    assert site.get("/live").status_code == 401


@pytest.mark.parametrize("path", ["/calls", "/calls/-one"])
def test_pages_name_their_stream_and_fragment(site: Dashboard, path: str) -> None:
    site.add_ended_call("-one")
    [script] = [each for each in site.page(path).all("script") if "data-stream" in each]
    assert script["data-stream"] == "/live"
    assert site.get(script["data-fragment"] or "").status_code == 200


#: A stop that waited for streams would take longer than a test does.
PATIENT = """
from functools import partial
from millis_hooks.server import Limits
serve = partial(serve, limits=Limits(graceful_shutdown_s=300))
"""


def test_a_stop_does_not_wait_for_open_streams(tmp_path: Path) -> None:
    with Site(tmp_path, PATIENT).serving() as server, ExitStack() as tabs:
        streams = [tabs.enter_context(following(server)) for _ in range(5)]
        assert all(next_event(stream).startswith("event: refresh") for stream in streams)
        server.stop()
        assert not any(b"signed-out" in stream.read() for stream in streams)


@pytest.mark.both_databases
def test_a_call_received_by_another_process_is_announced(tmp_path: Path) -> None:
    site = Site(tmp_path, "")
    with (
        site.serving() as server,
        site.serving() as another,
        following(server) as stream,
    ):
        next_event(stream)
        another.deliver("-s1")
        # By name if the first happens to process it.
        assert next_event(stream).startswith(("event: started", "event: ended"))

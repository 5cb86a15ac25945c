"""Open pages follow the server."""

from __future__ import annotations

import re
from http import HTTPStatus

from playwright.sync_api import expect

from millis_hooks.protocol.samples import prefetch_query
from support.sites import Server
from support.waiting import eventually

from .watched import Watched


def test_an_open_list_follows_a_call_that_begins_and_ends(tab: Watched, server: Server) -> None:
    tab.open("/calls?range=24h")
    top = tab.page.locator("a.row").first.get_attribute("href")
    query = prefetch_query(session_id="-live", from_phone="+14155550177")
    server.ask("GET", f"/millis/prefetch?{query}")
    expect(tab.page.locator("#live a[href*='-live']")).to_be_visible()
    server.deliver("-live")
    expect(tab.page.locator("#news")).to_contain_text("1 new call")
    expect(tab.page.locator("#live a[href*='-live']")).to_have_count(0)
    assert tab.page.locator("a.row").first.get_attribute("href") == top
    tab.page.locator("#news a").click()
    expect(tab.page.locator("a.row").first).to_have_attribute("href", re.compile("-live"))


def test_the_page_of_a_call_announces_its_end(tab: Watched, server: Server) -> None:
    server.ask("GET", f"/millis/prefetch?{prefetch_query(session_id='-watched')}")
    eventually(lambda: tab.open("/calls/-watched") == HTTPStatus.OK)  # it is not waited for
    expect(tab.page.locator("main")).to_contain_text("In progress")
    server.deliver("-watched")
    expect(tab.page.locator("#news")).to_contain_text("ended")

"""Every page, over hostile calls, in both themes and wide and narrow: nothing runs, nothing breaks.

What is found is listed, so that one run shows all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice, product
from typing import Literal

import pytest
from playwright.sync_api import Browser

from support.sites import Server, Site

from .conftest import OpenTab
from .pages import NOT_THERE, page_names, paths_of
from .watched import NARROWEST_PX, SIZES, Watched, watched

#: The colour schemes, and the rules of axe-core to go by: without names, all of them.
THEMES: tuple[tuple[Literal["light", "dark"], tuple[str, ...]], ...] = (
    ("light", ()),
    ("dark", ("color-contrast",)),
)
#: A page has many examples. So many are opened, and axe-core, which takes its time, and both themes
#: see so many of those.
FEW = (4, 1)
EVERY = (1000, 4)


@pytest.mark.parametrize("name", page_names())
@pytest.mark.parametrize("most", [FEW, pytest.param(EVERY, marks=pytest.mark.long)])
def test_a_page_holds_up(
    name: str, most: tuple[int, int], site: Site, open_tab: OpenTab, times_ms: dict[str, float]
) -> None:
    opened, looked_at = most
    with open_tab() as tab:
        found = [
            f"{path[:80]}: {fault}"
            for number, path in enumerate(islice(paths_of(name, site.folder), opened))
            if tab.open(path) == HTTPStatus.OK
            for fault in _faults(tab, thorough=number < looked_at)
        ]
        times_ms[name] = tab.interactive_ms()
    assert not found, "\n".join(found)


def test_a_page_that_is_not_there_holds_up(open_tab: OpenTab) -> None:
    with open_tab() as tab:
        for number, path in enumerate(NOT_THERE):
            assert tab.open(path) == HTTPStatus.NOT_FOUND
            assert list(_faults(tab, thorough=number == 0)) == [], path


def test_the_sign_in_page_holds_up(chromium: Browser, server: Server) -> None:
    context = chromium.new_context()
    with watched(context, server.address) as tab:
        tab.open("/calls")
        assert "/login" in tab.page.url
        assert list(_faults(tab, thorough=True)) == []
    context.close()


def _faults(tab: Watched, *, thorough: bool) -> Iterator[str]:
    yield from tab.faults()
    ways = product(THEMES, SIZES) if thorough else [(THEMES[0], SIZES[-1])]
    for (theme, rules), (width, height) in ways:
        tab.page.emulate_media(color_scheme=theme)
        tab.page.set_viewport_size({"width": width, "height": height})
        where = f"{theme}, {width} px"
        if over := tab.overflow_px():
            yield f"{where}: {over} px too wide"
        if thorough:
            yield from (f"{where}: {barrier}" for barrier in tab.barriers(*rules))
        yield from (f"{where}: {fault}" for fault in tab.faults())
    tab.page.set_viewport_size({"width": NARROWEST_PX, "height": 640})
    if over := tab.overflow_px():
        yield f"{NARROWEST_PX} px: {over} px too wide"

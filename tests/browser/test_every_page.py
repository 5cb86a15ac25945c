"""Every page, over hostile calls, in both themes, wide and narrow: no script of data runs, nothing
scrolls sideways, and axe-core has no objections.

All faults of a page are listed in one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from itertools import islice, product
from typing import Literal, TypeAlias

import pytest

from support.sites import Server, Site

from .conftest import be_signed_in
from .pages import NOT_THERE, page_names, paths_of
from .watched import FEW_WIDTHS, SIZES, WIDTHS, Watched, too_wide

Theme: TypeAlias = Literal["light", "dark"]
#: A theme and a size of the window.
Looks: TypeAlias = tuple[tuple[Theme, tuple[int, int]], ...]

#: The color schemes, and the rules of axe-core to go by: without names, all of them.
RULES: Mapping[Theme, tuple[str, ...]] = {"light": (), "dark": ("color-contrast",)}
#: Where axe-core looks at a page.
EACH_THEME: Looks = (("light", SIZES[0]), ("dark", SIZES[1]))
#: Pages that have every color: in an everyday run, the dark theme is examined on these.
MOST_COLORS = {"calls", "call"}
#: Of each page so many examples are opened, and axe-core, which is slow, looks at so many of them.
FEW = (1, 1, EACH_THEME)
EVERY = (1000, 4, tuple(product(RULES, SIZES)))


@pytest.mark.parametrize("name", page_names())
@pytest.mark.parametrize("most", [FEW, pytest.param(EVERY, marks=pytest.mark.long)])
def test_a_page_has_no_faults(
    name: str,
    most: tuple[int, int, Looks],
    hostile_site: Site,
    hostile_tab: Watched,
    times_ms: dict[str, float],
) -> None:
    opened, examined, looks = most
    if most == FEW and name not in MOST_COLORS:
        looks = EACH_THEME[:1]
    faults = [
        f"{path[:80]}: {fault}"
        for number, path in enumerate(islice(paths_of(name, hostile_site.folder), opened))
        if hostile_tab.open(path) == HTTPStatus.OK
        for fault in _faults(
            hostile_tab, looks if number < examined else (), all_widths=number == 0
        )
    ]
    times_ms[name] = hostile_tab.interactive_ms()
    assert not faults, "\n".join(faults)


def test_a_missing_page_has_no_faults(hostile_tab: Watched) -> None:
    assert hostile_tab.open(NOT_THERE) == HTTPStatus.NOT_FOUND
    assert list(_faults(hostile_tab, EACH_THEME[:1])) == []


def test_the_sign_in_page_has_no_faults(hostile: Server, hostile_tab: Watched) -> None:
    context = hostile_tab.page.context
    context.clear_cookies(domain="127.0.0.1")
    hostile_tab.open("/calls")
    assert "/login" in hostile_tab.page.url
    assert list(_faults(hostile_tab, EACH_THEME)) == []
    be_signed_in(context, hostile, hostile.address)


def _faults(tab: Watched, looks: Looks, *, all_widths: bool = False) -> Iterator[str]:
    """Yield what is wrong with the page: at each width, and by axe-core for each of `looks`."""
    yield from tab.faults()
    yield from too_wide(tab, FEW_WIDTHS)
    for theme, (width, height) in looks:
        tab.page.emulate_media(color_scheme=theme)
        tab.page.set_viewport_size({"width": width, "height": height})
        for barrier in tab.barriers(*RULES[theme]):
            yield f"{theme}, {width} px: {barrier}"
    # All is unfolded by now.
    yield from too_wide(tab, WIDTHS if all_widths else FEW_WIDTHS)
    yield from tab.faults()

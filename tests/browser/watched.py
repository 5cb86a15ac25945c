"""A browser tab that records errors, foreign requests and violations of the content policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from html import unescape
from pathlib import Path
from typing import cast

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

#: Width and height in CSS pixels, of a desk and of a telephone.
SIZES = ((1440, 900), (390, 844))
#: How long something may take on a machine that is busy with other things.
PATIENCE_MS = 30_000
#: From the narrowest page that has to do without scrolling sideways, by WCAG 2.2, 1.4.10.
WIDTHS = (320, 390, 768, 834, 1024, 1280, 1440, 1920)
#: Enough for pages that look like others.
FEW_WIDTHS = (320, 390, 1440)

_REPORTS = """
window.reports = [];
document.addEventListener("securitypolicyviolation", (event) => {
  reports.push(`${event.violatedDirective} refused ${event.blockedURI} ${event.sample}`);
});
"""
# Charts learn of their new size with the next frame, and are drawn in the one after.
_OVERFLOW = """
async () => {
  const frames = document.querySelector("canvas") ? 3 : 0;
  for (let each = 0; each < frames; each++) await new Promise(requestAnimationFrame);
  return document.documentElement.scrollWidth - document.documentElement.clientWidth;
}
"""
_AXE = """
async (rules) => {
  for (const closed of document.querySelectorAll("details:not([open])")) closed.open = true;
  const {violations} = await axe.run(document, {
    resultTypes: ["violations"],
    preload: false,
    ...(rules.length ? {runOnly: {type: "rule", values: rules}} : {}),
  });
  return violations.map(({id, help, nodes}) =>
    `${id}: ${help}: ${nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(" and ")}`);
}
"""


class Watched:
    """A page on which scripts of data, foreign requests and errors do not go unnoticed."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self._faults: list[str] = []
        page.add_init_script(_REPORTS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: self._faults.append(f"dialog: {dialog.message}"))
        page.on("request", self._see)

    def open(self, path: str) -> int:
        """Go to a page of ours and return the status it has."""
        response = self.page.goto(self.address + path)
        assert response is not None
        return response.status

    def text_of(self, path: str) -> str:
        """Return what the server answers to the operator, unescaped, without showing it."""
        return unescape(self.page.request.get(self.address + path).text())

    def faults(self) -> list[str]:
        """Return what went wrong since the last time, and forget it."""
        ran = ["a script of data ran"] if self.page.evaluate("'ran' in window") else []
        reports = cast("list[str]", self.page.evaluate("(window.reports ?? []).splice(0)"))
        faults, self._faults = self._faults + reports + ran, []
        return faults

    def overflow_px(self) -> int:
        """Return how far the page can be scrolled sideways, once it is laid out."""
        return cast("int", self.page.evaluate(_OVERFLOW))

    def barriers(self, *rules: str) -> list[str]:
        """Return what axe-core finds, by these rules or all, with all of the page unfolded."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(_axe())
        return cast("list[str]", self.page.evaluate(_AXE, list(rules)))

    def interactive_ms(self) -> float:
        """Return how long it took from asking for the page until its scripts had run."""
        script = "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        return cast("float", self.page.evaluate(script))

    def _hear(self, message: ConsoleMessage) -> None:
        # The browser calls it an error that a page which is not there is answered with 404.
        is_own_status = message.location.get("url") == self.page.url
        if message.type in ("error", "warning") and not is_own_status:
            self._faults.append(f"console: {message.text}")

    def _see(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", "data:", "blob:")):
            self._faults.append(f"foreign request: {request.url}")


def too_wide(tab: Watched, widths: Sequence[int] = FEW_WIDTHS) -> Iterator[str]:
    """Yield the widths at which the page can be scrolled sideways."""
    for width in widths:
        tab.page.set_viewport_size({"width": width, "height": 300})
        if over := tab.overflow_px():
            yield f"{width} px: {over} px too wide"


@contextmanager
def watched(context: BrowserContext, address: str) -> Iterator[Watched]:
    """Open a tab, and fail at its end if anything went wrong that nobody has asked about."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    try:
        seen = Watched(page, address)
        yield seen
        faults = seen.faults()
        assert not faults, "\n".join(faults)
    finally:
        page.close()


@cache
def _axe() -> str:
    return (Path(__file__).parent / "axe.min.js").read_text()

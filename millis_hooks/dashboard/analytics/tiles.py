"""The six figures on top: each with the one before it, and whether that is for the better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from ...call_log.analytics.figures import Tile, Tiles
from ..formats import amount
from .chart import Unit, written

Verdict: TypeAlias = Literal["better", "worse"]

#: A sparkline is drawn in a box of 100 by 34, with some air above and below.
_WIDTH, _HIGHEST, _LOWEST = 100, 4, 30

_SUFFIXES = {"ms": "ms", "credits": "credits"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A tile: its figure, the one before, and that of each bucket.

    `of` is what the figure is a part of, `without` stands where there is none. A change of it is
    neither better nor worse unless `less_is_better`, nor where its share tells the contrary.
    """

    name: str
    label: str
    unit: Unit
    tile: Tile
    of: Tile | None = None
    less_is_better: bool = False
    without: str = "None"

    @property
    def text(self) -> str:
        value = self.tile.value
        return self.without if value is None else written(value, self.unit)

    @property
    def suffix(self) -> str:
        """What stands small behind the figure."""
        if self.of is not None:
            return f"of {self.of.value or 0:,.0f}"
        return "" if self.tile.value is None else _SUFFIXES.get(self.unit, "")

    @property
    def was(self) -> str | None:
        """The figure before, if there was one."""
        if self.tile.before is None:
            return None
        return written(self.tile.before, self.unit) + (" ms" if self.unit == "ms" else "")

    @property
    def change(self) -> str | None:
        """How the figure changed: in percent where it is an amount, else in its own unit."""
        value, before = self.tile.value, self.tile.before
        if value is None or before is None:
            return None
        by = value - before
        if self.unit == "share":
            return _signed(100 * by, " pt", digits=1)
        if self.unit in ("s", "ms"):
            return _signed(by, f" {self.unit}")
        if self.less_is_better:
            return _signed(by)
        return _signed(100 * by / before, "%") if before else None

    @property
    def verdict(self) -> Verdict | None:
        """Whether the change is for the better, where that is clear."""
        change = self.change or ""
        if not self.less_is_better or not change.startswith(("+", "−")):
            return None
        is_more = change.startswith("+")
        if not self._is_clear(is_more):
            return None
        return "worse" if is_more else "better"

    def _is_clear(self, is_more: bool) -> bool:
        """Whether the share of the whole, where there is one, changed the same way."""
        if self.of is None:
            return True
        now = _share(self.tile.value, self.of.value)
        before = _share(self.tile.before, self.of.before)
        return now is not None and before is not None and (now > before) is is_more

    @property
    def strokes(self) -> tuple[str, ...]:
        """The sparkline as points of SVG, one text for each stretch without a gap."""
        return tuple(_strokes(self.tile.series))


def figures(tiles: Tiles) -> tuple[Figure, ...]:
    """Return the tiles in the order in which they stand on the page."""
    return (
        Figure("calls", "Calls", "count", tiles.calls),
        Figure("error_rate", "Error rate", "share", tiles.error_rate, less_is_better=True),
        Figure("median_duration", "Median duration", "s", tiles.median_duration_s),
        Figure("cost", "Cost", "credits", tiles.cost, without="Not sent"),
        Figure("prefetch_p95", "Prefetch p95", "ms", tiles.prefetch_p95_ms, less_is_better=True),
        Figure(
            "handler_failures",
            "Handler failures",
            "count",
            tiles.handler_failures,
            of=tiles.handler_attempts,
            less_is_better=True,
        ),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _signed(number: float, unit: str = "", *, digits: int = 0) -> str:
    size = amount(abs(number), digits)
    if not float(size.replace(",", "")):
        return f"±0{unit}"
    return f"{'+' if number > 0 else '−'}{size}{unit}"


def _strokes(series: Sequence[float | None]) -> Iterator[str]:
    known = [value for value in series if value is not None]
    if len(known) < 2:
        return
    least, span = min(known), max(known) - min(known)
    step = _WIDTH / (len(series) - 1)

    def point(place: int, value: float) -> str:
        height = (value - least) / span if span else 0
        return f"{place * step:.1f} {_LOWEST - (_LOWEST - _HIGHEST) * height:.1f}"

    for is_gap, stretch in groupby(enumerate(series), key=lambda each: each[1] is None):
        points = [point(place, value) for place, value in stretch if value is not None]
        if not is_gap and len(points) > 1:
            yield " ".join(points)

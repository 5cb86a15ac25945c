"""A chart as numbers: the page draws it, its table is what it is drawn from, and so is its CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...call_log.transfer.spreadsheet import cell
from ..call_filters import Params
from ..formats import amount, clock

#: `stack` and `bars` stand, `shares` lie, `lines` may have gaps, and a `table` is nothing else.
Kind: TypeAlias = Literal["stack", "bars", "shares", "lines", "table"]
Unit: TypeAlias = Literal["count", "credits", "ms", "s", "share", "text"]
Value: TypeAlias = float | str | None

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Column:
    """A series: `total` is that of the whole period, `filters` narrow a list of calls to it.

    `colour` names a mark of the style sheet; a column without one is in the table alone.
    """

    name: str
    unit: Unit = "count"
    colour: str = ""
    total: float | None = None
    filters: Params | None = None

    def text(self, value: Value) -> str:
        """Return a value of the series as a person reads it."""
        return written(value, self.unit)


@dataclass(frozen=True, slots=True)
class Row:
    """A bar, or a point of each line; `key` is its name to programs, `filters` find its calls."""

    name: str
    key: str
    values: tuple[Value, ...]
    filters: Params | None = None
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across a chart, `at` so many of its units: rows of bars, or milliseconds."""

    name: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart. `summary` says in words what it shows, `instead` why there is nothing to draw."""

    name: str
    title: str
    kind: Kind
    rows_are: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    summary: str
    note: str = ""
    marks: tuple[Mark, ...] = ()
    instead: str | None = None

    def share(self, row: Row) -> float:
        """Return how long the bar of a row is beside the longest one, 0 to 1."""
        most = max((_number(each.values[0]) for each in self.rows), default=0)
        return _number(row.values[0]) / most if most else 0


def written(value: Value, unit: Unit) -> str:
    """Return a value of a unit as a person reads it; "" if there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    match unit:
        case "share":
            return f"{100 * value:.1f}%"
        case "s":
            return clock(value)
        case "credits" if 0 < value < 1:
            return f"{value:#.3g}"
        case "credits":
            return amount(value, 2)
        case "ms" if value < 10:
            return f"{value:.1f}"
    return f"{value:,.0f}"


def as_csv(chart: Chart) -> str:
    """Return a chart as CSV, safe in spreadsheets; costs in credits, times in milliseconds."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(map(cell, [chart.rows_are, *(column.name for column in chart.columns)]))
    for row in chart.rows:
        rows.writerow(map(cell, [row.key, *map(_rounded, row.values)]))
    return text.getvalue()


def counted(count: float, noun: str) -> str:
    """Return a number of things in words."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def listed(parts: Mapping[str, str]) -> str:
    """Return names with their figures as a part of a sentence."""
    return ", ".join(f"{name} {figure}" for name, figure in parts.items())


def _number(value: Value) -> float:
    return value if isinstance(value, int | float) else 0


def _rounded(value: Value) -> object:
    """Sums of decimal fractions end in digits that mean nothing."""
    return round(value, _DIGITS) if isinstance(value, float) else value

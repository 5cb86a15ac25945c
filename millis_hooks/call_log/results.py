"""Stores, reads and compares the results of calls: of each handler those of its latest run; and
reads what prefetch handlers kept, which is listed beside them under names that begin with `keep.`.

A value is stored as text, and a number also as a number, so that it can be compared and summed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from sqlalchemy import ColumnElement, Connection, and_, bindparam, delete, func, or_, select

from ..protocol.results import Plain, Result
from .sanitize import clean_text
from .statements import Prepared, among, insert_rows
from .tables import KEPT, call_metadata, call_results, calls, handler_runs

_results = call_results.c


class RunResults(NamedTuple):
    """The results of a run that has succeeded."""

    run_id: int
    handler: str
    values: Mapping[str, Plain]


def write_results(connection: Connection, written: Sequence[RunResults]) -> None:
    """Write the results of runs in place of those of earlier runs of the same handlers.

    A run whose place another has taken meanwhile writes none.
    """
    if not written:
        return
    ids = {"ids": [each.run_id for each in written]}
    latest = {row.id: row for row in _LATEST(connection, ids)}
    runs = [each for each in written if each.run_id in latest]
    for handler in sorted({each.handler for each in runs}):
        of_handler = [latest[each.run_id].call_id for each in runs if each.handler == handler]
        _DELETE(connection, {"ids": of_handler, "handler": handler})
    rows = [
        row
        for each in runs
        for row in rows_of(
            each.values,
            call_id=latest[each.run_id].call_id,
            handler=each.handler,
            run_id=each.run_id,
            received_at=latest[each.run_id].received_at,
        )
    ]
    insert_rows(connection, call_results, rows)


_LATEST = Prepared(
    select(handler_runs.c.id, handler_runs.c.call_id, calls.c.received_at)
    .join(calls, calls.c.id == handler_runs.c.call_id)
    .where(among(handler_runs.c.id, "ids"), handler_runs.c.is_latest)
)
_DELETE = Prepared(
    delete(call_results).where(
        among(_results.call_id, "ids"), _results.handler == bindparam("handler")
    )
)


def rows_of(values: Mapping[str, Plain], **columns: Any) -> list[dict[str, Any]]:
    """Return the rows of results; `columns` are those that all of them share."""
    return [
        {
            **columns,
            "name": clean_text(name),
            "text": None if value is None else text_of(value),
            "number": float(value) if isinstance(value, int | float) else None,
        }
        for name, value in values.items()
    ]


def text_of(value: Plain) -> str:
    """Return the text that a value is stored as; 4.0 and 4 are the same."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return clean_text(str(value)) or ""


def value_of(text: str | None, number: float | None) -> Plain:
    """Return the value that was stored."""
    if number is None or text is None:
        return text
    if text in ("true", "false"):
        return text == "true"
    return int(text) if number.is_integer() and "e" not in text else number


def results_of(connection: Connection, call_ids: Sequence[int]) -> dict[int, list[Result]]:
    """Return the results of these calls, by call, in the order of handlers and names."""
    found: dict[int, list[Result]] = {}
    for row in connection.execute(_OF_CALLS, {"ids": list(call_ids)}):
        value = value_of(row.text, row.number)
        found.setdefault(row.call_id, []).append(Result(row.handler, row.run_id, row.name, value))
    return found


_OF_CALLS = (
    select(call_results)
    .where(among(_results.call_id, "ids"))
    .order_by(_results.call_id, _results.handler, _results.name)
)


def kept_of(connection: Connection, call_ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return what prefetch handlers kept of these calls, by call and `keep.NAME`, as text."""
    kept: dict[int, dict[str, str]] = {}
    for call_id, key, value in connection.execute(_KEPT, {"ids": list(call_ids)}):
        kept.setdefault(call_id, {})[key] = value
    return kept


_m = call_metadata.c
_KEPT = (
    select(_m.call_id, _m.key, _m.value)
    .where(among(_m.call_id, "ids"), func.substr(_m.key, 1, len(KEPT)) == KEPT)
    .order_by(_m.call_id, _m.key)
)


#: Names to choose from, in alphabetical order.
MOST_NAMES = 200
_CONDITION = re.compile(r"([^=<>!]+)(>=|<=|!=|=|>|<)(.*)", re.DOTALL)
_BOUNDS: Mapping[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def names_of(connection: Connection) -> tuple[str, ...]:
    """Return the names of results, and of what was kept as `keep.NAME`, that there are."""
    return (*connection.scalars(_NAMES), *kept_names(connection))


def kept_names(connection: Connection) -> list[str]:
    """Return the names of what was kept, each as `keep.NAME`."""
    return [name for name in connection.scalars(_KEPT_NAMES) if name.startswith(KEPT)]


def distinct(name: ColumnElement[str], *, since: str = "") -> Any:
    """Select the values of a column from a text on, going through its index."""
    names = select(func.min(name).label("name")).where(name >= since).cte("names", recursive=True)
    following = select(func.min(name)).where(name > names.c.name).scalar_subquery()
    names = names.union_all(select(following).where(names.c.name.is_not(None)))
    return select(names.c.name).where(names.c.name.is_not(None)).limit(MOST_NAMES)


_NAMES = distinct(_results.name)
_KEPT_NAMES = distinct(_m.key, since=KEPT)


def _itself(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return column


class ResultFilter(NamedTuple):
    """A condition for a result, as `score>=4`: numbers are compared as numbers, the rest as text.

    With `!=` the result is there, and has another value. `null` is a result that is None.
    """

    name: str
    operator: str
    value: str

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read a condition; None for what is none."""
        match = _CONDITION.fullmatch(text)
        if match is None or (match[2] in _BOUNDS and not match[3].strip()):
            return None
        return cls(match[1].strip(), match[2], match[3].strip())

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.value}"

    @property
    def is_null(self) -> bool:
        """Whether the value is None."""
        return self.value == "null"

    @property
    def texts(self) -> list[str]:
        """The texts that values equal to this one are stored as."""
        written = clean_text(self.value) or ""
        number = self._number
        is_bool = written.lower() in ("true", "false")
        return sorted({
            written,
            written.lower() if is_bool else written,
            written if number is None else text_of(number),
        })  # fmt: skip

    def holds(
        self, read: Callable[[ColumnElement[Any]], ColumnElement[Any]] = _itself
    ) -> ColumnElement[bool]:
        """Return the condition for a row of `call_results`, whose columns are taken by `read`."""
        named, text = _results.name == clean_text(self.name), read(_results.text)
        is_null = text.is_(None)
        if self.operator == "=":
            return and_(named, is_null if self.is_null else text.in_(self.texts))
        if self.operator == "!=":
            others = ~is_null if self.is_null else or_(is_null, text.not_in(self.texts))
            return and_(named, others)
        compare = _BOUNDS[self.operator]
        if self._number is not None:
            return and_(named, compare(read(_results.number), self._number))
        return and_(named, _results.number.is_(None), compare(text, clean_text(self.value)))

    @property
    def _number(self) -> float | None:
        try:
            number = float(self.value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None

"""Stores and reads the results of calls: of each handler those of its latest run.

A value is stored as text, and a number also as a number, so that it can be compared and summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import JsonValue
from sqlalchemy import Connection, bindparam, delete, select

from ..masking.places import Place
from ..masking.policy import MaskPolicy
from ..protocol.results import Plain
from .sanitize import clean_text
from .statements import among, insert_rows
from .tables import call_results, calls, handler_runs

_results = call_results.c


@dataclass(frozen=True, slots=True)
class Result:
    """A result of a call; `run_id` is None where it was imported."""

    handler: str
    run_id: int | None
    name: str
    value: Plain


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
    latest = {row.id: row for row in connection.execute(_LATEST, ids)}
    runs = [each for each in written if each.run_id in latest]
    if runs:
        keys = [
            {"call": latest[each.run_id].call_id, "name_": each.handler, "run": each.run_id}
            for each in runs
        ]
        connection.execute(_DELETE, keys)
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


_LATEST = (
    select(handler_runs.c.id, handler_runs.c.call_id, calls.c.received_at)
    .join(calls, calls.c.id == handler_runs.c.call_id)
    .where(among(handler_runs.c.id, "ids"), handler_runs.c.is_latest)
)
_DELETE = delete(call_results).where(
    _results.call_id == bindparam("call"), _results.handler == bindparam("name_")
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


def masked_values(values: Mapping[str, Plain], mask: MaskPolicy) -> dict[str, Plain]:
    """Return results without what `mask` hides: of texts as of metadata, of other values only
    secrets and phone numbers."""
    by_kind = replace(mask, words="none")
    masked: dict[str, Plain] = {}
    for name, value in values.items():
        policy = mask if isinstance(value, str) else by_kind
        pair: JsonValue = policy.payload({name: value}, Place.WORDS)
        for shown, plain in pair.items() if isinstance(pair, dict) else ():
            masked[shown] = plain if not isinstance(plain, dict | list) else None
    return masked


def masked_results(results: Iterable[Result], mask: MaskPolicy) -> tuple[Result, ...]:
    """Return results without what `mask` hides."""
    return tuple(
        replace(each, name=name, value=value)
        for each in results
        for name, value in masked_values({each.name: each.value}, mask).items()
    )

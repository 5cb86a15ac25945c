"""What the results of a period add up to: numbers by their sum, other values by shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, case, func, select, true

from ..sanitize import metadata_text
from ..tables import call_metadata, call_results, calls
from .filters import is_of, within
from .tally import BETWEEN, counted_under, is_counted, is_short, value_key

#: Rows of results; those of fewer calls are left out.
MOST_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultFigures:
    """A result that is a number, with its sum and average; or one value of another result, with its
    share, 0 to 1, of the calls that have the result. `by` is the value of a metadata key."""

    by: str | None = None
    name: str
    value: str | None = None
    calls: int
    share: float | None = None
    total: float | None = None
    average: float | None = None


class Sums(NamedTuple):
    """How many numbers there are and their sum, by result; and calls by result and value."""

    counts: Mapping[str, float]
    sums: Mapping[str, float]
    values: Mapping[str, float]


def result_figures(sums: Sums, by: str | None = None) -> list[ResultFigures]:
    """Return the figures, by name and the most frequent value first."""
    numbers = [
        ResultFigures(
            by=by,
            name=name,
            calls=int(count),
            total=sums.sums[name],
            average=sums.sums[name] / count,
        )
        for name, count in sums.counts.items()
    ]
    under = counted_under(sums.values)
    few = {key: count for key, count in sums.values.items() if is_short(under[key])}
    of_result: defaultdict[str, float] = defaultdict(float)
    for key, count in few.items():
        of_result[key.partition(BETWEEN)[0]] += count
    shares = [
        ResultFigures(
            by=by, name=name, value=value, calls=int(count), share=count / of_result[name]
        )
        for key, count in few.items()
        for name, _, value in [key.partition(BETWEEN)]
    ]
    return sorted([*numbers, *shares], key=lambda each: (each.name, -each.calls, each.value or ""))


def results_by(
    connection: Connection,
    key: str,
    since: datetime,
    until: datetime,
    agents: Sequence[str],
    source: str,
) -> list[ResultFigures]:
    """Return the figures of the calls of a period for each value of a metadata key."""
    m, r = call_metadata.c, call_results.c
    is_value = is_counted(r.text, r.number)
    value = case((is_value, value_key(r.name, r.text))).label("counted_as")
    found = (
        select(m.value.label("divided_by"), r.name, value, func.count(), func.sum(r.number))
        .select_from(call_metadata)
        .join(calls, calls.c.id == m.call_id)
        .join(call_results, r.call_id == m.call_id)
        .where(
            and_(m.key == metadata_text(key), m.received_at >= since, m.received_at < until),
            *within(since, until),
            is_of(source),
            calls.c.agent_id.in_(agents) if agents else true(),
            r.text.is_not(None),
        )
        .group_by("divided_by", r.name, "counted_as")
    )
    by_value: defaultdict[str, Sums] = defaultdict(lambda: Sums({}, {}, {}))
    for by, name, each, count, total in connection.execute(found):
        _add(by_value[by], name, each, count, total)
    figures = [each for by, sums in by_value.items() for each in result_figures(sums, by)]
    return sorted(figures, key=lambda each: (each.name, each.by or "", -each.calls))


def _add(sums: Any, name: str, value: str | None, count: int, total: float | None) -> None:
    if value is None:
        sums.counts[name], sums.sums[name] = count, total or 0
    else:
        sums.values[value] = count


def busiest(figures: Iterable[ResultFigures]) -> tuple[ResultFigures, ...]:
    """Return those of the most calls, in their order."""
    every = list(figures)
    most = sorted(every, key=lambda each: -each.calls)[:MOST_ROWS]
    kept = set(map(id, most))
    return tuple(each for each in every if id(each) in kept)

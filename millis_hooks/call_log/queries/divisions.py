"""What calls come to, divided by agent or by the values of a metadata key, with their results.

The sums of whole past UTC days are stored by `day_totals.py`; those of the other hours are read
from the calls, by the same statements.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any, TypeAlias

from pydantic_core import from_json, to_json
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    true,
)

from ..changed_days import changed
from ..results import distinct, kept_names
from ..statements import among, aside
from ..tables import call_metadata, call_results, calls, day_divisions
from .tally import COST, DURATION_S, OUTCOME, RECEIVED, is_of, named

#: The key under which calls are divided by agent; no metadata is asked for by it.
BY_AGENT = ""
#: The most keys of a day whose sums are stored, those that most calls have; and the most values
#: that such a key may have, and that are compared.
MOST_KEYS = MOST_DIVISIONS = 50
#: Results that are numbers: how many, and their sum; and calls by a truth value or a short text.
_NUMBERS, _SUM, _VALUES = "numbers", "sum", "values"
#: Longer texts are not counted, and of a result with more than so many values none.
_VALUE_CHARS = 32
_MOST_VALUES = 20
#: Stands between a measure, a name and a value.
_BETWEEN = "\x1f"
_DAY = timedelta(days=1)

#: Numbers by measure and name. An absent one is 0; costs that were not sent are absent.
Sums: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True)
class Divided:
    """Sums by agent or by the values of a key; it `is_partial` where a day has too many values."""

    by: Mapping[str, Sums]
    is_partial: bool = False


def read_divided(
    connection: Connection,
    key: str,
    since: datetime,
    until: datetime,
    agents: Sequence[str] = (),
    source: str = "real",
) -> Divided:
    """Return the sums of the calls received in that time: all of a source, or those of `agents`.

    The stored sums are of real calls. The others are few, and are read one by one.
    """
    by: dict[str, Sums] = defaultdict(lambda: defaultdict(float))
    is_partial = False
    if source in ("real", "all"):
        days, rest = _split(since.astimezone(UTC), until.astimezone(UTC), changed(connection))
        is_partial = bool(days) and _add_stored(connection, key, days, agents, by)
        for period in rest:
            _add_read(connection, key, *period, agents, "real", by)
    if source != "real":
        made_up = "made_up" if source == "all" else source
        _add_read(connection, key, since, until, agents, made_up, by)
    return Divided(by, is_partial)


def _split(
    since: datetime, until: datetime, changed_days: set[date]
) -> tuple[set[date], list[tuple[datetime, datetime]]]:
    """Return the whole days whose sums are stored, and the rest of the period."""
    days: set[date] = set()
    rest: list[tuple[datetime, datetime]] = []
    while since < until:
        midnight = datetime.combine(since, time(), UTC)
        end = min(midnight + _DAY, until)
        if end - since == _DAY and since.date() not in changed_days:
            days.add(since.date())
        elif rest and rest[-1][1] == since:
            rest[-1] = rest[-1][0], end
        else:
            rest.append((since, end))
        since = end
    return days, rest


def _add_stored(
    connection: Connection,
    key: str,
    days: set[date],
    agents: Sequence[str],
    by: dict[str, Sums],
) -> bool:
    """Add what is stored of these days; tell whether a day was left out, as its values are many."""
    t = day_divisions.c
    of_agents = bool(agents) and key != BY_AGENT
    packed = t.by_agent if of_agents else t.sums
    stored = select(t.day, packed).where(t.key == key, t.day.between(min(days), max(days)))
    is_partial = False
    for day, divided in connection.execute(stored).all():
        if day not in days:
            continue
        if divided is None:
            is_partial = True
            continue
        unpacked = from_json(zlib.decompress(divided))
        chosen = {agent: unpacked[agent] for agent in agents if agent in unpacked}
        for divisions in chosen.values() if of_agents else [chosen if agents else unpacked]:
            for value, sums in divisions.items():
                _add(by[value], sums)
    return is_partial


def _add(total: Sums, sums: Sums) -> None:
    for name, number in sums.items():
        total[name] += number


def _add_read(
    connection: Connection,
    key: str,
    since: datetime,
    until: datetime,
    agents: Sequence[str],
    source: str,
    by: dict[str, Sums],
) -> None:
    for _, _, value, name, number in _read(connection, [key], since, until, agents, source):
        by[value][name] += number


def _read(
    connection: Connection,
    keys: Sequence[str],
    since: datetime,
    until: datetime,
    agents: Sequence[str] = (),
    source: str = "real",
) -> Iterator[tuple[str, str, str, str, float]]:
    """Yield key, agent, value, name and number of the calls of a period."""
    is_by_agent = list(keys) == [BY_AGENT]
    of_calls, of_results = _statements(source, bool(agents), is_by_agent)
    asked: dict[str, Any] = {"since": since, "until": until}
    asked |= {"agents": list(agents)} if agents else {}
    asked |= {} if is_by_agent else {"keys": list(keys)}
    for *division, outcome, count, seconds, credit in connection.execute(of_calls, asked):
        yield *division, f"{OUTCOME}{_BETWEEN}{outcome}", count
        yield *division, DURATION_S, seconds or 0
        if credit is not None:
            yield *division, COST, credit
    for *division, name, text, count, total in connection.execute(of_results, asked):
        if text is None:
            yield *division, f"{_NUMBERS}{_BETWEEN}{name}", count
            yield *division, f"{_SUM}{_BETWEEN}{name}", total or 0
        else:
            yield *division, f"{_VALUES}{_BETWEEN}{name}{_BETWEEN}{text}", count


@cache
def _statements(source: str, of_agents: bool, is_by_agent: bool) -> tuple[Any, Any]:
    """Select what calls and what their results add up to, by key, agent and value.

    SQLite shall go from calls to what belongs to them: it would rather read all of a key.
    """
    m, r, agent = call_metadata.c, call_results.c, func.coalesce(calls.c.agent_id, "")
    rows: Any = calls
    division: list[Any] = [literal_column("''"), agent, agent.label("division")]
    if not is_by_agent:
        has_key = and_(m.call_id == aside(calls.c.id), among(m.key, "keys"))
        rows, division = rows.join(call_metadata, has_key), [m.key, agent, m.value]
    agents = calls.c.agent_id.in_(bindparam("agents", expanding=True)) if of_agents else true()
    # By their places: PostgreSQL groups by no constant.
    first: Any = [literal_column(f"{place}") for place in range(2 if is_by_agent else 1, 5)]
    amounts = func.count(), func.sum(calls.c.duration_s), func.sum(calls.c.cost_total)
    counted = select(*division, named(calls.c.outcome), *amounts).select_from(rows)
    is_value = or_(r.number.is_(None), r.text.in_(("true", "false")))
    text = case((is_value, func.substr(r.text, 1, _VALUE_CHARS + 1)))
    returned = select(*division, r.name, text, func.count(), func.sum(r.number))
    returned = returned.select_from(rows.join(call_results, r.call_id == aside(calls.c.id)))
    conditions: list[ColumnElement[bool]] = [RECEIVED, is_of(source), agents]
    return (
        counted.where(*conditions).group_by(*first),
        returned.where(*conditions, r.text.is_not(None)).group_by(*first, literal_column("5")),
    )


def day_rows(connection: Connection, day: date) -> list[dict[str, Any]]:
    """Return what is stored of a day: a row for each key, without sums if its values are many."""
    since = datetime.combine(day, time(), UTC)
    until = since + _DAY
    counts = connection.execute(_KEYS, {"since": since, "until": until}).all()
    few = [key for key, values, _ in counts if values <= MOST_DIVISIONS]
    rows: list[dict[str, Any]] = [
        {"key": key, "day": day, "sums": None, "by_agent": None}
        for key, values, _ in counts
        if key not in few
    ]
    read = [*_read(connection, [BY_AGENT], since, until)]
    read += _read(connection, few, since, until) if few else ()
    under = _counted_under({name for *_, name, _ in read if name.startswith(_VALUES)})
    sums: _Nested = defaultdict(lambda: defaultdict(Counter))
    by_agent: _Nested = defaultdict(lambda: defaultdict(lambda: defaultdict(Counter)))
    for key, agent_id, value, name, number in read:
        sums[key][value][under.get(name, name)] += number
        if key != BY_AGENT:
            by_agent[key][agent_id][value][under.get(name, name)] += number
    rows += [
        {
            "key": key,
            "day": day,
            "sums": _packed(each),
            "by_agent": _packed(by_agent[key]) if key != BY_AGENT else None,
        }
        for key, each in sums.items()
    ]
    return rows


_Nested: TypeAlias = defaultdict[str, Any]


def _packed(divided: Mapping[str, Any]) -> bytes:
    return zlib.compress(to_json(divided), 1)


def metadata_keys(connection: Connection) -> tuple[str, ...]:
    """List the keys of metadata, up to 200, those of `keep` first."""
    return tuple(dict.fromkeys([*kept_names(connection), *connection.scalars(_ALL_KEYS)]))


_ALL_KEYS = distinct(call_metadata.c.key)
_KEYS = (
    select(call_metadata.c.key, func.count(call_metadata.c.value.distinct()), func.count())
    .select_from(calls.join(call_metadata, call_metadata.c.call_id == aside(calls.c.id)))
    .where(RECEIVED, is_of("real"), call_metadata.c.key != BY_AGENT)
    .group_by(call_metadata.c.key)
    .order_by(func.count().desc(), call_metadata.c.key)
    .limit(MOST_KEYS)
)


def _counted_under(names: Iterable[str]) -> dict[str, str]:
    """Return the name that each value of a result is counted under: its own, or that of a long one
    where a result has many or long values."""
    by_result: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_result[name.rpartition(_BETWEEN)[0]].append(name)
    under: dict[str, str] = {}
    for result, own in by_result.items():
        are_few = len(own) <= _MOST_VALUES and all(map(_is_short, own))
        many = result + _BETWEEN + "…" * (_VALUE_CHARS + 1)
        under |= {name: name if are_few else many for name in own}
    return under


def _is_short(name: str) -> bool:
    return len(name.rpartition(_BETWEEN)[2]) <= _VALUE_CHARS


@dataclass(frozen=True, slots=True, kw_only=True)
class DivisionFigures:
    """What the calls of an agent, or with one value of a key, come to.

    `outcomes` are calls by how they ended, "" where that is unknown; `credits` is None where Millis
    sent no costs.
    """

    name: str
    calls: int
    outcomes: Mapping[str, int]
    minutes: float
    credits: float | None


def busiest(by: Mapping[str, Sums], most: int) -> tuple[DivisionFigures, ...]:
    """Return the figures of the divisions with the most calls, these first."""
    every = [division_figures(name, sums) for name, sums in by.items()]
    return tuple(sorted(every, key=lambda each: (-each.calls, each.name))[:most])


def division_figures(name: str, sums: Sums) -> DivisionFigures:
    """Return what the sums of a division say."""
    outcomes = {outcome: int(count) for outcome, count in _named(sums, OUTCOME)}
    return DivisionFigures(
        name=name,
        calls=sum(outcomes.values()),
        outcomes=outcomes,
        minutes=sums.get(DURATION_S, 0) / 60,
        credits=sums.get(COST),
    )


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


def result_figures(sums: Sums, by: str | None = None) -> Iterator[ResultFigures]:
    """Yield the figures of results, those that are numbers first."""
    for name, count in _named(sums, _NUMBERS):
        total = sums[f"{_SUM}{_BETWEEN}{name}"]
        yield ResultFigures(by=by, name=name, calls=int(count), total=total, average=total / count)
    values = dict(_named(sums, _VALUES))
    under = _counted_under(values)
    few = {key: count for key, count in values.items() if _is_short(under[key])}
    of_result: Counter[str] = Counter()
    for key, count in few.items():
        of_result[key.partition(_BETWEEN)[0]] += int(count)
    for key, count in few.items():
        name, _, value = key.partition(_BETWEEN)
        share = count / of_result[name]
        yield ResultFigures(by=by, name=name, value=value, calls=int(count), share=share)


def _named(sums: Sums, measure: str) -> list[tuple[str, float]]:
    """Return the numbers of a measure with their names."""
    begin = measure + _BETWEEN
    return [(key[len(begin) :], number) for key, number in sums.items() if key.startswith(begin)]


def together(by: Mapping[str, Sums]) -> Sums:
    """Return the sums of all divisions."""
    total: Sums = defaultdict(float)
    for sums in by.values():
        _add(total, sums)
    return total

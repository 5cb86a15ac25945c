"""The charts of a report as numbers, from which the page, its tables and its CSV are made."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar

from ..call_log.queries.analytics import (
    DURATION_STEP_S,
    DURATION_STEPS,
    LEAST_SAMPLES,
    Bucket,
    Durations,
    HandlerFigures,
    Report,
    Scope,
    grouped,
    ratio,
)
from ..call_log.queries.buckets import Interval
from ..call_log.queries.divisions import MOST_DIVISIONS, DivisionFigures, ResultFigures
from ..call_log.redaction import masked_values
from ..call_log.results import ResultFilter
from ..call_log.transfer.export import cell
from ..masking.policy import MaskPolicy
from .call_filters import Params
from .formats import SLOW_PREFETCH_MS, amount, clock, iso, milliseconds, status_family, status_label

#: `stack` and `bars` are vertical, `shares` horizontal; `lines` may have gaps; a `table` stays.
Kind: TypeAlias = Literal["stack", "bars", "shares", "lines", "table"]
Unit: TypeAlias = Literal["count", "credits", "ms", "number", "s", "share", "text"]
Value: TypeAlias = float | str | None

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Column:
    """A series: `total` is that of the whole period, `filters` narrow a list of calls to it.

    `color` is a name of the style sheet; a column without one is only in the table.
    """

    name: str
    unit: Unit = "count"
    color: str = ""
    total: float | None = None
    filters: Params | None = None

    def text(self, value: Value) -> str:
        """Format a value of the series."""
        return formatted(value, self.unit)


@dataclass(frozen=True, slots=True)
class Row:
    """A bar, or a point of each line; `key` is its name in CSV, `filters` select its calls."""

    name: str
    key: str
    values: tuple[Value, ...]
    filters: Params | None = None
    color: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across a chart, `at` a row of bars or at milliseconds."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. `summary` describes it in words; `instead` is why there is nothing to draw."""

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
        """Return the length of a row's bar relative to the longest, 0 to 1."""
        most = max((_number(each.values[0]) for each in self.rows), default=0)
        return _number(row.values[0]) / most if most else 0


def formatted(value: Value, unit: Unit) -> str:
    """Format a value of a unit; None becomes an empty string."""
    if value is None or isinstance(value, str):
        return value or ""
    match unit:
        case "share":
            return f"{100 * value:.1f}%"
        case "s":
            return clock(value)
        case "number":
            return f"{value:,.2f}".removesuffix(".00")
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


def _counted(count: float, noun: str) -> str:
    """Return a number with its noun."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def _listed(parts: Mapping[str, str]) -> str:
    """Return names and their figures as part of a sentence."""
    return ", ".join(f"{name} {figure}" for name, figure in parts.items())


def _number(value: Value) -> float:
    return value if isinstance(value, int | float) else 0


def _rounded(value: Value) -> object:
    """Round away the noise of binary fractions."""
    return round(value, _DIGITS) if isinstance(value, float) else value


N = TypeVar("N", int, float)

#: Group of outcomes -> its label, its color, and the tab of the list that has it.
_GROUPS = {
    "completed": ("Completed", "user", "completed"),
    "chat": ("Chat", "chat", "chat"),
    "voicemail": ("Voicemail", "voicemail", "voicemail"),
    "timeout": ("Timeout", "timeout", "timeout"),
    "failed": ("Failed", "error", "failed"),
    "other": ("Unreached or no end", "other", None),
}
_COSTS = {"llm": "LLM", "tts": "TTS", "stt": "STT", "millis": "Millis", "": "Not named"}
#: Colors of costs, no two alike; Millis has gray, and all others together the color of text.
_COLORS = ("user", "agent", "timeout", "voicemail", "hangup")
#: The costs that every installation knows have the same color everywhere.
_COLOR_OF = {
    "millis": "millis",
    "llm": "user",
    "openai": "user",
    "tts": "agent",
    "elevenlabs": "agent",
    "stt": "timeout",
    "deepgram": "timeout",
}
#: What exceeds these is one more row, "All others".
_MOST_COSTS, _MOST_STATUSES = len(_COLORS), 40
#: The report cuts names to this length.
_NAME_CHARS = 100


class Charts:
    """Makes the charts of a report; its `scope` is what it is limited to."""

    def __init__(self, report: Report, scope: Scope, mask: MaskPolicy) -> None:
        self._report = report
        self._split = scope.split
        self._compared = compared = report.comparison
        self._asked = mask.line(scope.by or "")
        #: The key that calls are compared by, as it is shown.
        self._key = mask.line(compared.key) if compared and compared.divisions else ""
        self._mask = mask
        self._of: Params = {"agent": list(scope.agents)} if scope.agents else {}
        if scope.source != "real":
            self._of["source"] = scope.source
        self._period = self._between(report.since, report.until)
        self._calls = sum(report.outcomes.values())

    def all(self) -> tuple[Chart, ...]:
        """Return the charts in their order on the page; that of results only if there are any."""
        return (
            self._per_interval(),
            self._costs(),
            self._endings(),
            self._durations(),
            self._prefetches(),
            self._handlers(),
            self._agents(),
            self._by(),
            *([self._results()] if self._report.results else []),
        )

    def _per_interval(self) -> Chart:
        report = self._report
        columns = tuple(
            Column(
                label,
                color=color,
                total=report.outcomes[group],
                filters=self._period | {"outcome": tab} if tab else None,
            )
            for group, (label, color, tab) in _GROUPS.items()
        )
        busiest = max(report.buckets, key=lambda bucket: bucket.calls)
        groups = {column.name.lower(): f"{column.total:,}" for column in columns if column.total}
        summary = f"{_counted(self._calls, 'call')}: {_listed(groups)}. "
        return self._over_time(
            "calls",
            f"Calls per {report.interval}",
            columns,
            lambda bucket: [bucket.outcomes[group] for group in _GROUPS],
            summary=summary + f"Most, {busiest.calls:,}, on {self._name(busiest)}.",
            note=_counted(self._calls, "call"),
        )

    def _over_time(
        self,
        name: str,
        title: str,
        columns: Sequence[Column],
        values: Callable[[Bucket], Sequence[Value]],
        *,
        kind: Kind = "stack",
        **others: Any,
    ) -> Chart:
        """Return a chart with a row for each bucket."""
        interval = self._report.interval

        def row(bucket: Bucket) -> Row:
            key = bucket.start.isoformat(timespec="minutes")
            filters = self._between(bucket.start, bucket.until)
            key = key if interval == "hour" else key[:_DATE]
            return Row(self._name(bucket), key, tuple(values(bucket)), filters)

        rows = tuple(map(row, self._report.buckets))
        return Chart(name, title, kind, _ROWS_ARE[interval], tuple(columns), rows, **others)

    def _costs(self) -> Chart:
        report = self._report
        own = {name: cost for name, cost in report.costs.items() if name == "millis"}
        others = {name: cost for name, cost in report.costs.items() if name not in own}
        named, rest = _cut(others, _MOST_COSTS)
        named |= own
        colors = _colors_of(named)
        columns = [
            Column(_COSTS.get(name) or self._mask.line(name), "credits", colors[name], total)
            for name, total in named.items()
        ]
        if rest:
            columns.append(Column("All others", "credits", "rest", sum(rest.values())))
        totals = {column.name: column.text(column.total) for column in columns}

        def values(bucket: Bucket) -> list[Value]:
            others = [sum(bucket.costs.get(name, 0) for name in rest)] if rest else []
            return [*(bucket.costs.get(name, 0) for name in named), *others]

        return self._over_time(
            "cost",
            f"Cost per {report.interval}",
            columns,
            values,
            summary=f"Credits by {self._split}: {_listed(totals)}.",
            instead=None if columns else "Millis sent no costs with these calls.",
        )

    def _endings(self) -> Chart:
        named, rest = _cut(self._report.statuses, _MOST_STATUSES)
        rows = [self._ending(status, count) for status, count in named.items()]
        if rest:
            count = sum(rest.values())
            rows.append(Row("All others", "All others", self._share(count), color="other"))
        most = {row.name: f"{row.values[0]:,}" for row in rows[:3]}
        columns = Column("Calls", total=self._calls), Column("Share", "share")
        summary = f"How {_counted(self._calls, 'call')} ended: {_listed(most)} and so on."
        note = "select to list calls"
        title = "How calls ended"
        return Chart("endings", title, "shares", "Status", columns, tuple(rows), summary, note)

    def _ending(self, status: str, count: int) -> Row:
        masked = self._mask.line(status)
        # A link would reveal a masked status, and one that was cut finds nothing.
        is_whole = 0 < len(status) < _NAME_CHARS and masked == status
        filters = self._period | {"status": status} if is_whole else None
        label = status_label(masked)
        return Row(label, masked or label, self._share(count), filters, status_family(status))

    def _share(self, count: int) -> tuple[Value, ...]:
        return count, count / self._calls

    def _durations(self) -> Chart:
        durations = self._report.durations
        total = sum(durations.counts)
        middle = f"median {clock(durations.median_s)}, p90 {clock(durations.p90_s)}"
        return Chart(
            "duration",
            "Call duration",
            "bars",
            "Duration",
            (Column("Calls", color="user", total=total),),
            tuple(self._duration(step, count) for step, count in enumerate(durations.counts)),
            summary=f"{_counted(total, 'call')} by duration: {middle}." if total else "",
            note=middle if total else "",
            marks=tuple(_duration_marks(durations)),
            instead=None if total else "Millis sent no duration with these calls.",
        )

    def _duration(self, step: int, count: int) -> Row:
        least = step * DURATION_STEP_S
        filters = self._period | {"min": str(least)}
        if step == DURATION_STEPS:
            return Row(f"{clock(least)} and more", f"{least}+", (count,), filters)
        # The filter of the list includes its upper end; a bar does not.
        most = least + DURATION_STEP_S
        filters |= {"max": f"{most - 0.001:.3f}"}
        return Row(f"{clock(least)} to {clock(most)}", f"{least}-{most}", (count,), filters)

    def _prefetches(self) -> Chart:
        whole = self._report.prefetch
        parts = {"p50": whole.p50_ms, "p95": whole.p95_ms, "p99": whole.p99_ms}
        colors = ("agent", "user", "timeout")
        lines = (
            Column(name, "ms", color, value)
            for (name, value), color in zip(parts.items(), colors, strict=True)
        )
        latencies = {name: milliseconds(value) for name, value in parts.items()}
        return self._over_time(
            "prefetch",
            "Prefetch latency",
            [*lines, Column("Prefetches", total=whole.count)],
            _latencies,
            kind="lines",
            summary=f"{_counted(whole.count, 'prefetch answer')}: {_listed(latencies)}.",
            note=f"slow above {milliseconds(SLOW_PREFETCH_MS)}",
            marks=(Mark("slow", SLOW_PREFETCH_MS),),
            instead=_no_line(self._report),
        )

    def _handlers(self) -> Chart:
        handlers = self._report.handlers
        failed_runs = self._period | {"handler": "failed"}
        failed = sum(each.failed_attempts for each in handlers)
        attempts = sum(each.attempts for each in handlers)
        columns = (
            Column("Runs after", "text"),
            Column("Runs"),
            Column("Attempts"),
            Column("Failed attempts", color="error"),
            Column("Failed runs", color="error", filters=failed_runs),
            Column("p50", "ms"),
            Column("p95", "ms"),
        )
        rows = tuple(map(_handler, handlers))
        summary = f"{_counted(attempts, 'attempt')} by handlers, {failed:,} of them failed."
        instead = None if handlers else "No handler ran for these calls."
        return Chart(
            "handlers", "Handlers", "table", "Handler", columns, rows, summary, instead=instead
        )

    def _agents(self) -> Chart:
        agents = self._report.agents
        columns = (Column("Calls"), Column("Failed", color="error"), *_AMOUNTS)

        def row(each: DivisionFigures) -> Row:
            values = (each.calls, each.outcomes.get("failed", 0), *_amounts(each))
            return Row(each.name, each.name, values, self._period | {"agent": each.name})

        rows, summary = (
            tuple(map(row, agents)),
            f"Calls and costs of {_counted(len(agents), 'agent')}.",
        )
        instead = None if agents else "No call of this period names its agent."
        return Chart("agents", "Agents", "table", "Agent", columns, rows, summary, instead=instead)

    def _by(self) -> Chart:
        """Return the table of the values that calls are compared by: shares of how they ended."""
        divisions = self._compared.divisions if self._compared else ()
        if not divisions:
            return Chart("by", "Compare", "table", "", (), (), "", instead=self._nothing())
        ends = [grouped(each.outcomes) for each in divisions]
        groups = [group for group in _GROUPS if any(each[group] for each in ends)]
        shares = (Column(_GROUPS[group][0], "share") for group in groups)

        def row(each: DivisionFigures, outcomes: Mapping[str, int]) -> Row:
            name, filters = self._division(each.name)
            shares = (outcomes[group] / each.calls for group in groups)
            return Row(name, name, (each.calls, *shares, *_amounts(each)), filters)

        columns, rows = (Column("Calls"), *shares, *_AMOUNTS), tuple(map(row, divisions, ends))
        summary, note = f"Calls by {self._key}.", self._left_out()
        return Chart("by", f"By {self._key}", "table", self._key, columns, rows, summary, note)

    def _nothing(self) -> str:
        if not self._compared:
            return "Choose what to compare calls by: a metadata key, or a variant."
        return self._left_out() or f"No call of this period has the metadata {self._asked}."

    def _left_out(self) -> str:
        compared = self._compared
        if compared and compared.is_partial:
            return f"Days on which it has more than {MOST_DIVISIONS} values are left out."
        if compared and compared.values > len(compared.divisions):
            return f"The {MOST_DIVISIONS} of the most calls, of {compared.values:,} values."
        return ""

    def _division(self, value: str) -> tuple[str, Params | None]:
        """Return a value that calls are compared by, as it is shown, and what selects its calls."""
        masked = self._mask.text(value)
        if masked != value or not self._compared:
            return masked, None
        return value, self._period | {"meta": f"{self._compared.key}={value}"}

    def _results(self) -> Chart:
        results = self._report.results
        by = (Column(self._key, "text"),) if self._key else ()
        figures = Column("Share", "share"), Column("Sum", "number"), Column("Average", "number")
        columns = (*by, Column("Value", "text"), Column("Calls"), *figures)
        names = _counted(len({each.name for each in results}), "result")
        summary = f"{names} of handlers{f', by {self._key}' * bool(by)}."
        rows = tuple(map(self._result, results))
        return Chart("results", "Results", "table", "Result", columns, rows, summary)

    def _result(self, each: ResultFigures) -> Row:
        ((name, value),) = masked_values({each.name: each.value}, self._mask).items()
        figures = (value, each.calls, each.share, each.total, each.average)
        by, filters = ("", self._period) if each.by is None else self._division(each.by)
        is_whole = (name, value) == (each.name, each.value)
        if filters and is_whole and value is not None:
            condition = f"{name}={value}"
            can_be_read = ResultFilter.read(condition) == (name, "=", value)
            filters = filters | {"result": condition} if can_be_read else None
        elif not is_whole or each.by is None:
            filters = None  # a masked value is not to be seen in an address
        return Row(name, name, figures if each.by is None else (by, *figures), filters)

    def _name(self, bucket: Bucket) -> str:
        start, report = bucket.start, self._report
        day = f"{start:%b} {start.day}"
        if report.interval == "hour":
            return f"{day}, {start:%H:%M}"
        return day if report.since.year == report.until.year else f"{day}, {start.year}"

    def _between(self, since: datetime, until: datetime) -> Params:
        return {"from": iso(since), "to": iso(until)} | self._of


#: What calls took, of an agent or of a value.
_AMOUNTS = (
    Column("Minutes"),
    Column("Cost", "credits"),
    Column("Cost per call", "credits"),
    Column("Cost per minute", "credits"),
)


def _amounts(each: DivisionFigures) -> tuple[Value, ...]:
    rates = ratio(each.credits, each.calls), ratio(each.credits, each.minutes)
    return each.minutes, each.credits, *rates


_DATE = len("2026-11-21")
_ROWS_ARE: Mapping[Interval, str] = {"hour": "Hour", "day": "Day", "week": "Week of"}

#: Hook -> what its handlers run after.
_HOOKS = {"end_of_call": "End-of-call", "failed": "A failed run"}


def _colors_of(costs: Iterable[str]) -> dict[str, str]:
    """Return a color for each cost: known ones have theirs, others what is left, by name."""
    colors = {name: _COLOR_OF[name] for name in costs if name in _COLOR_OF}
    left = [each for each in _COLORS if each not in colors.values()]
    others = sorted(name for name in costs if name not in colors)
    return colors | dict(zip(others, [*left, *_COLORS], strict=False))


def _cut(named: Mapping[str, N], most: int) -> tuple[dict[str, N], dict[str, N]]:
    """Split into the first `most` and the rest, unless the rest is a single one."""
    names = list(named)
    first = len(names) if len(names) <= most + 1 else most
    head, tail = names[:first], names[first:]
    return {name: named[name] for name in head}, {name: named[name] for name in tail}


def _duration_marks(durations: Durations) -> Iterator[Mark]:
    named = {"median": durations.median_s, "p90": durations.p90_s}
    for name, value_s in named.items():
        if value_s is not None:
            place = min(value_s / DURATION_STEP_S - 0.5, DURATION_STEPS)
            yield Mark(f"{name} {clock(value_s)}", max(place, -0.5))


def _latencies(bucket: Bucket) -> tuple[Value, ...]:
    latency = bucket.prefetch
    return latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.count


def _no_line(report: Report) -> str | None:
    points = sum(bucket.prefetch.p50_ms is not None for bucket in report.buckets)
    if points > 1:
        return None
    if not report.prefetch.count:
        return "No prefetch was received for these calls."
    return (
        f"Too few prefetches for a line: it takes two {report.interval}s with at least "
        f"{LEAST_SAMPLES} each."
    )


def _handler(each: HandlerFigures) -> Row:
    counts = (each.runs, each.attempts, each.failed_attempts, each.failed_runs)
    return Row(
        each.handler,
        each.handler,
        (_HOOKS.get(each.hook, each.hook), *counts, each.p50_ms, each.p95_ms),
    )

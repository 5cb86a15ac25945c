"""The analytics page: the figures of a period beside those of the period before, and six charts.

In its address, `range` names a period that ends now; `from` and `to` are dates or times in the
time zone and replace it; a date in `to` is the last day. `agent` may repeat, `source` is as in
the list of calls, `tz` is the name of a time zone, `split` is how costs are divided, `interval`
the length of a bar, and `by` a key of metadata or of `keep`, by whose values calls and results are
compared. Invalid values are left out.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from itertools import groupby
from threading import Lock
from typing import Literal, NamedTuple, TypeAlias

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..call_log.queries.analytics import Report, Scope, Split, Tile, Tiles, read_report
from ..call_log.queries.buckets import INTERVALS, last_days
from ..call_log.queries.divisions import metadata_keys
from .call_filters import Params, every, read_filter, read_time
from .charts import Chart, Charts, Unit, as_csv, formatted
from .endpoints import Endpoints, OperatorRequest
from .formats import amount, iso
from .pages import PageRequest, zone_named

Range: TypeAlias = Literal["24h", "7d", "30d", "90d", "12mo"]


class Span(NamedTuple):
    """A range: its label, its words in a sentence, and its calendar days up to today."""

    label: str
    words: str
    days: int


RANGES: Mapping[Range, Span] = {
    "24h": Span("24 h", "24 hours", 1),
    "7d": Span("7 d", "7 days", 7),
    "30d": Span("30 d", "30 days", 30),
    "90d": Span("90 d", "90 days", 90),
    "12mo": Span("12 mo", "12 months", 365),
}
DEFAULT_RANGE: Range = "30d"
_KEY_CHARS = 200


@dataclass(frozen=True, slots=True)
class Question:
    """The period and the options of a report, and the same as parameters without the defaults.

    `range` is None if the period was chosen by dates; `refusal` is why the dates were not taken.
    """

    range: Range | None
    scope: Scope
    params: Params
    refusal: str | None = None

    @property
    def key(self) -> str:
        """The same for the same question at another time."""
        period = self.range or (self.scope.since, self.scope.until)
        return repr((period, str(self.scope.zone), sorted(self.params.items())))


def read_question(query: Mapping[str, str], *, now: datetime, zone: tzinfo) -> Question:
    """Read the question of a query string; `zone` is the operator's."""
    zone = zone_named(query.get("tz", "")) or zone
    split: Split = "provider" if query.get("split") == "provider" else "type"
    interval = next((each for each in INTERVALS if each == query.get("interval")), None)
    scope = _dated_scope(query, now, zone)
    refusal = _refusal(query, zone) if scope is None else None
    range_ = None if scope else _range(query.get("range"))
    scope = scope or _scope(range_ or DEFAULT_RANGE, now, zone)
    scope = replace(
        scope,
        agents=every(query, "agent"),
        source=read_filter(query).source,
        split=split,
        interval=interval,
        by=query.get("by", "").strip()[:_KEY_CHARS] or None,
    )
    return Question(range_, scope, _params(query, scope, range_), refusal)


def _refusal(query: Mapping[str, str], zone: tzinfo) -> str | None:
    """Return why no period begins and ends with these dates; None if there are none."""
    given = {name: query[name] for name in ("from", "to") if query.get(name)}
    unread = [text for text in given.values() if read_time(text, zone) is None]
    if unread:
        return f"“{unread[0][:40]}” is not a date. Write it like 2026-11-21."
    if not given:
        return None
    return (
        f"No period of at most ten years begins and ends like this: {' to '.join(given.values())}."
    )


def _params(query: Mapping[str, str], scope: Scope, range_: Range | None) -> Params:
    named: dict[str, str | list[str] | None] = {
        "range": range_ if range_ != DEFAULT_RANGE else None,
        "from": None if range_ else query.get("from") or iso(scope.since),
        "to": None if range_ else query.get("to"),
        "agent": list(scope.agents),
        "source": scope.source if scope.source != "real" else None,
        "tz": str(scope.zone) if query.get("tz") == str(scope.zone) else None,
        "split": scope.split if scope.split != "type" else None,
        "interval": scope.interval,
        "by": scope.by,
    }
    return {name: value for name, value in named.items() if value}


def _dated_scope(query: Mapping[str, str], now: datetime, zone: tzinfo) -> Scope | None:
    since = read_time(query.get("from"), zone)
    until = read_time(query.get("to"), zone, end_of_day=True)
    if not since and not until:
        return None
    until = min(until or now, now)
    try:
        return Scope(since=since or until - timedelta(days=30), until=until, zone=zone)
    except ValueError:
        return None


def _scope(range_: Range, now: datetime, zone: tzinfo) -> Scope:
    if range_ == "24h":
        return Scope(since=now - timedelta(hours=24), until=now, zone=zone)
    since, until = last_days(RANGES[range_].days, now=now, zone=zone)
    return Scope(since=since, until=until, zone=zone)


def _range(text: str | None) -> Range:
    return next((each for each in RANGES if each == text), DEFAULT_RANGE)


Verdict: TypeAlias = Literal["better", "worse"]

#: A sparkline is drawn in a box of 100 by 34, with a margin at the top and the bottom.
_WIDTH, _HIGHEST, _LOWEST = 100, 4, 30

_SUFFIXES = {"ms": "ms", "credits": "credits"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A tile: its figure, that of the period before, and that of each bucket.

    `of` is the whole that the figure is a part of, in `of_what`; `detail` is a line below,
    `without` the text if there is no figure. Only if `less_is_better` has a change a verdict, and
    only if the share of the whole agrees.
    """

    name: str
    label: str
    unit: Unit
    tile: Tile
    of: Tile | None = None
    of_what: str = ""
    less_is_better: bool = False
    detail: str = ""
    without: str = "None"

    @property
    def text(self) -> str:
        value = self.tile.value
        return self.without if value is None else formatted(value, self.unit)

    @property
    def is_idle(self) -> bool:
        """Tell whether there is nothing to tell, now and before."""
        return not self.tile.value and not self.tile.before

    @property
    def suffix(self) -> str:
        """The small text after the figure."""
        if self.of is not None:
            return f"of {self.of.value or 0:,.0f} {self.of_what}"
        return "" if self.tile.value is None else _SUFFIXES.get(self.unit, "")

    @property
    def was(self) -> str | None:
        """The figure of the period before, if there was one."""
        if self.tile.before is None:
            return None
        return formatted(self.tile.before, self.unit) + (" ms" if self.unit == "ms" else "")

    @property
    def change(self) -> str | None:
        """The change of the figure: of amounts in percent, else in its own unit."""
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
        """Whether the change is better or worse, if that is clear."""
        change = self.change or ""
        if not self.less_is_better or not change.startswith(("+", "−")):
            return None
        is_more = change.startswith("+")
        if not self._is_clear(is_more):
            return None
        return "worse" if is_more else "better"

    def _is_clear(self, is_more: bool) -> bool:
        """Tell whether the share of the whole, if there is one, changed in the same direction."""
        if self.of is None:
            return True
        now = _share(self.tile.value, self.of.value)
        before = _share(self.tile.before, self.of.before)
        return now is not None and before is not None and (now > before) is is_more

    @property
    def strokes(self) -> tuple[str, ...]:
        """The sparkline as SVG points, one text for each part without a gap."""
        return tuple(_strokes(self.tile.series))


def figures(tiles: Tiles) -> tuple[Figure, ...]:
    """Return the tiles in their order on the page."""
    return (
        Figure("calls", "Calls", "count", tiles.calls),
        Figure("error_rate", "Error rate", "share", tiles.error_rate, less_is_better=True),
        Figure("median_duration", "Median duration", "s", tiles.median_duration_s),
        Figure(
            "cost", "Cost", "credits", tiles.cost, detail=_cost_detail(tiles), without="Not sent"
        ),
        Figure("prefetch_p95", "Prefetch p95", "ms", tiles.prefetch_p95_ms, less_is_better=True),
        Figure(
            "handler_failures",
            "Handler failures",
            "count",
            tiles.handler_failures,
            of=tiles.handler_attempts,
            of_what="attempts",
            less_is_better=True,
        ),
    )


def _cost_detail(tiles: Tiles) -> str:
    rates = {"a call": tiles.cost_per_call.value, "a minute": tiles.cost_per_minute.value}
    parts = (f"{formatted(rate, 'credits')} {per}" for per, rate in rates.items() if rate)
    return ", ".join(parts)


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _signed(number: float, unit: str = "", *, digits: int = 0) -> str:
    size = amount(abs(number), digits)
    if not float(size.replace(",", "")):
        return f"±0{unit}"
    return f"{'+' if number > 0 else '−'}{size}{unit}"


def _strokes(series: Sequence[float | None]) -> Iterator[str]:
    values = [value for value in series if value is not None]
    if len(values) < 2:
        return
    least, span = min(values), max(values) - min(values)
    step = _WIDTH / (len(series) - 1)

    def point(place: int, value: float) -> str:
        height = (value - least) / span if span else 0
        return f"{place * step:.1f} {_LOWEST - (_LOWEST - _HIGHEST) * height:.1f}"

    for is_gap, part in groupby(enumerate(series), key=lambda each: each[1] is None):
        points = [point(place, value) for place, value in part if value is not None]
        if not is_gap and len(points) > 1:
            yield " ".join(points)


#: A report that took longer is kept, and answers the same question until it is too old.
SLOW_S = 2.0
KEPT_FOR = timedelta(minutes=5)
_MOST_KEPT = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """A report, its question and its time."""

    question: Question
    report: Report
    made_at: datetime


@dataclass(frozen=True, slots=True)
class AnalyticsView:
    """What the analytics page shows.

    `period` is the length of the period before, which is compared; `read_at` is when the figures
    were read if that was not now. `is_anything` is false if there was no call.
    """

    params: Params
    range: Range | None
    zone: str
    since: datetime
    until: datetime
    days: str
    period: str
    agents: tuple[str, ...]
    agent: tuple[str, ...]
    split: str
    interval: str
    by: str
    #: The metadata keys to compare by, those of `keep` first.
    keys: tuple[str, ...]
    is_anything: bool
    refusal: str | None
    read_at: datetime | None
    tiles: tuple[Figure, ...]
    charts: tuple[Chart, ...]

    @property
    def ranges(self) -> Mapping[Range, Span]:
        """The periods to choose from."""
        return RANGES


class AnalyticsPage:
    """Builds the page and its charts, and keeps slow reports; `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self._lock = Lock()

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes of the page and of each chart as CSV."""
        yield from endpoints.page("/analytics", "analytics", self.show)
        yield endpoints.file("/analytics/{chart}.csv", "analytics_csv", self._csv)

    def show(self, request: PageRequest) -> AnalyticsView:
        """Build the page that the query string describes."""
        answer = self._answer(request)
        scope, report = answer.question.scope, answer.report
        mask = request.settings.mask
        return AnalyticsView(
            params=answer.question.params,
            range=answer.question.range,
            zone=str(scope.zone),
            since=report.since,
            until=report.until,
            days=_days(report),
            period=_period(answer.question),
            agents=request.log.agents(),
            agent=scope.agents,
            split=scope.split,
            interval=report.interval,
            by=scope.by or "",
            keys=tuple(key for key in request.log.ask(metadata_keys) if mask.line(key) == key),
            is_anything=bool(report.tiles.calls.value),
            refusal=answer.question.refusal,
            read_at=None if answer.made_at == request.now else answer.made_at,
            tiles=figures(report.tiles),
            charts=_charts(answer, request),
        )

    def _csv(self, request: OperatorRequest) -> Response:
        page_request = request.page_request()
        charts = _charts(self._answer(page_request), page_request)
        name = page_request.path["chart"]
        chart = next((each for each in charts if each.name == name), None)
        if chart is None:
            raise HTTPException(404)
        headers = {"Content-Disposition": f'attachment; filename="{chart.name}.csv"'}
        return Response(as_csv(chart), media_type="text/csv", headers=headers)

    def _answer(self, request: PageRequest) -> Answer:
        question = read_question(request.query, now=request.now, zone=request.zone)
        with self._lock:
            kept = self._kept.get(question.key)
        if kept and request.now - kept.made_at < KEPT_FOR:
            return kept
        began_s = self._clock()
        answer = Answer(question, request.log.ask(read_report, scope=question.scope), request.now)
        if self._clock() - began_s > SLOW_S:
            self._keep(answer)
        return answer

    def _keep(self, answer: Answer) -> None:
        with self._lock:
            self._kept[answer.question.key] = answer
            self._kept.move_to_end(answer.question.key)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)


def _charts(answer: Answer, request: PageRequest) -> tuple[Chart, ...]:
    if not answer.report.tiles.calls.value:
        return ()
    scope = answer.question.scope
    return Charts(answer.report, scope, request.settings.mask).all()


def _days(report: Report) -> str:
    """Return the first and last day of a report in words."""
    # The end is exclusive: a period until midnight ends on the day before.
    first, last = report.since, report.until - timedelta(microseconds=1)
    year = "" if first.year == last.year else ", %Y"
    days = (f"{day:%b} {day.day}{day.strftime(year)}" for day in (first, last))
    return " to ".join(dict.fromkeys(days))


def _period(question: Question) -> str:
    if question.range:
        return RANGES[question.range].words
    days = question.scope.span / timedelta(days=1)
    return f"{days:,.0f} days" if days >= 2 else f"{24 * days:,.0f} hours"

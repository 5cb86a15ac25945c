"""The analytics page: the figures of a period beside those of the period before."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

from ...call_log.analytics.figures import Report
from ..call_filters import Params
from ..pages import Asked
from .chart import Chart
from .charts import Charts
from .question import RANGES, Question, Range, Span, read_question
from .tiles import Figure, figures

#: A report that took longer is not made again for the same question as long as it is kept.
SLOW_S = 2.0
KEPT_FOR = timedelta(minutes=5)
_KEPT = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """A report, what it was an answer to, and when that was asked."""

    question: Question
    report: Report
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class AnalyticsView:
    """What the analytics page shows.

    `period` is how long the time before is that is compared; `read_at` tells that the figures were
    kept since then, because they take long. Without `is_anything` there was no call.
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
    is_anything: bool
    read_at: datetime | None
    tiles: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    live_count: int

    @property
    def ranges(self) -> Mapping[Range, Span]:
        """The periods to choose from."""
        return RANGES


class AnalyticsPage:
    """Builds the page and its charts; `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._slow: OrderedDict[object, Answer] = OrderedDict()
        self._lock = Lock()

    def show(self, asked: Asked) -> AnalyticsView:
        """Build the page that the query string asks for."""
        answer = self._answer(asked)
        scope, report = answer.question.scope, answer.report
        return AnalyticsView(
            params=answer.question.params,
            range=answer.question.range,
            zone=str(scope.zone),
            since=report.since,
            until=report.until,
            days=_days(report),
            period=_period(answer.question),
            agents=asked.log.agents(),
            agent=scope.agents,
            split=scope.split,
            interval=report.interval,
            is_anything=bool(report.tiles.calls.value),
            read_at=None if answer.asked_at == asked.now else answer.asked_at,
            tiles=figures(report.tiles),
            charts=_charts(answer, asked),
            live_count=asked.log.live_count(now=asked.now),
        )

    def chart(self, asked: Asked) -> Chart | None:
        """Build one chart of the page, or None if there is no such one."""
        charts = _charts(self._answer(asked), asked)
        return next((each for each in charts if each.name == asked.path["chart"]), None)

    def _answer(self, asked: Asked) -> Answer:
        question = read_question(asked.query, now=asked.now, zone=asked.zone)
        with self._lock:
            kept = self._slow.get(question.key)
        if kept and asked.now - kept.asked_at < KEPT_FOR:
            return kept
        began_s = self._clock()
        answer = Answer(question, asked.log.report(question.scope), asked.now)
        if self._clock() - began_s > SLOW_S:
            self._keep(answer)
        return answer

    def _keep(self, answer: Answer) -> None:
        with self._lock:
            self._slow[answer.question.key] = answer
            self._slow.move_to_end(answer.question.key)
            while len(self._slow) > _KEPT:
                self._slow.popitem(last=False)


def _charts(answer: Answer, asked: Asked) -> tuple[Chart, ...]:
    charts = Charts(
        answer.report,
        agents=answer.question.scope.agents,
        split=answer.question.scope.split,
        slow_prefetch_ms=asked.settings.slow_prefetch_ms,
        mask=asked.settings.mask,
    )
    return charts.all() if answer.report.tiles.calls.value else ()


def _days(report: Report) -> str:
    """Name the first and the last day of a report."""
    # The end is no part of it: a period until midnight ends on the day before.
    first, last = report.since, report.until - timedelta(microseconds=1)
    year = "" if first.year == last.year else ", %Y"
    days = (f"{day:%b} {day.day}{day.strftime(year)}" for day in (first, last))
    return " to ".join(dict.fromkeys(days))


def _period(question: Question) -> str:
    if question.range:
        return RANGES[question.range].words
    days = question.scope.span / timedelta(days=1)
    return f"{days:,.0f} days" if days >= 2 else f"{24 * days:,.0f} hours"

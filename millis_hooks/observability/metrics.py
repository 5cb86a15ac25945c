"""Turns what was counted into what Prometheus takes. Every metric there is has its name here.

What is shown, and where it comes from.

`GET /metrics`: who may read it, and in which of Prometheus' two formats.

What the service counted, for Prometheus to collect at `/metrics`.

prometheus-client is imported for the first who asks: most services start more often than
they are watched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hmac import compare_digest
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..call_log import CallLog
from ..call_log.counts import AttemptCounts, Histogram, RunnerStatus, WebhookCounts
from ..call_log.health import Backlog, read_backlog
from ..exceptions import StorageError
from ..settings import Settings
from ..version import __version__
from .loop_lag import LoopLag

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Runner(Protocol):
    """What is asked of the runner of handlers."""

    @property
    def counts(self) -> AttemptCounts: ...

    @property
    def status(self) -> RunnerStatus: ...

    @property
    def handlers(self) -> list[tuple[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts of a service that count; `webhooks` by kind, `loops` by name."""

    webhooks: Mapping[str, WebhookCounts]
    runner: Runner
    call_log: CallLog
    loops: Mapping[str, LoopLag]
    now: Callable[[], datetime]


PREFIX = "millis_hooks_"
_ROLES = ("working", "standby", "stopped")


class ServiceCollector(Collector):
    """Reads the numbers of a service. Blocks: some are in the call log."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Describe nothing: the registry would read the call log to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield _gauge("info", "Which version runs.", ("version",), [((__version__,), 1)])
        yield from self._of_webhooks()
        yield from self._of_attempts()
        yield from self._of_writer()
        yield from self._of_loops()
        yield from self._of_runner()
        yield from self._of_file()
        yield from self._of_backlog()

    def _of_webhooks(self) -> Iterator[Metric]:
        webhooks = self._sources.webhooks
        prefetch, end_of_call = webhooks["prefetch"], webhooks["end_of_call"]
        outcomes = [
            ((kind, outcome), count)
            for kind, counts in webhooks.items()
            for outcome, count in counts.outcomes.copy().items()
        ]
        missed = [((name,), count) for name, count in prefetch.missed_budget.copy().items()]
        yield _counter(
            "deliveries", "Requests to the webhooks, by outcome.", ("kind", "outcome"), outcomes
        )
        yield _counter(
            "prefetch_budget_misses",
            "Prefetch handlers that took longer than their budget.",
            ("handler",),
            missed,
        )
        yield _histogram(
            "prefetch_duration_seconds",
            "From a prefetch read to its answer ready.",
            prefetch.seconds,
        )
        yield _histogram(
            "store_duration_seconds",
            "From the end of a call read to its bytes synced.",
            end_of_call.seconds,
        )

    def _of_attempts(self) -> Iterator[Metric]:
        counts = self._sources.runner.counts
        labels = ("hook", "handler", "outcome")
        outcomes = counts.outcomes.copy().items()
        yield _counter("attempts", "Attempts at runs that ended, by outcome.", labels, outcomes)
        yield _histogram("attempt_duration_seconds", "What attempts took.", counts.seconds)

    def _of_writer(self) -> Iterator[Metric]:
        log = self._sources.call_log
        counts = log.writer.counts
        yield _histogram("batch_deliveries", "Deliveries written in one commit.", counts.batches)
        yield _histogram("commit_duration_seconds", "What such commits took.", counts.seconds)
        yield _single("writer_waiting", "Who waits for the next commit.", log.writer.waiting)
        yield _counter(
            "database_errors",
            "What the database refused to write or to read.",
            ("operation",),
            [(("write",), counts.failed), (("read",), log.read_errors)],
        )
        lost = [((), counts.lost)]
        yield _counter("lost_records", "Records of prefetches that were not kept.", (), lost)
        yield _single("live_pages", "Open pages that follow what happens.", log.news.listeners)

    def _of_loops(self) -> Iterator[Metric]:
        lag = HistogramMetricFamily(
            f"{PREFIX}loop_lag_seconds",
            "How late event loops came to what was due.",
            labels=("loop",),
        )
        loops = self._sources.loops.items()
        for name, measured in loops:
            lag.add_metric((name,), _buckets(measured.seconds), measured.seconds.sum)
        yield lag
        stalled = [((name,), measured.overdue_s) for name, measured in loops]
        yield _gauge("loop_stalled_seconds", "For how long a loop is late now.", ("loop",), stalled)

    def _of_runner(self) -> Iterator[Metric]:
        status = self._sources.runner.status
        roles = [((role,), int(role == status.role)) for role in _ROLES]
        yield _gauge("runner_role", "1 for what this process does about runs.", ("role",), roles)
        yield _single("handlers_at_work", "Attempts that are at work.", status.at_work)
        yield _single("handlers_late", "Handlers that were given up and do not end.", status.late)
        yield _gauge(
            "handler_hung",
            "1 for a handler all of whose places are taken by calls that do not return.",
            ("hook", "handler"),
            [(key, int(key in status.hung)) for key in self._sources.runner.handlers],
        )

    def _of_file(self) -> Iterator[Metric]:
        if not self._sources.call_log.database.is_file:
            return
        path = self._sources.call_log.database.path
        size = sum(map(_size, (path, path.with_name(f"{path.name}-wal"))))
        yield _single("call_log_bytes", "Size of the call log and what is written ahead.", size)
        try:
            free = shutil.disk_usage(path.parent).free
        except OSError:
            return
        yield _single("disk_free_bytes", "What is left on the call log's disk.", free)

    def _of_backlog(self) -> Iterator[Metric]:
        is_damaged = self._sources.call_log.damage is not None
        meaning = "1 since the call log was found damaged."
        yield _single("call_log_damaged", meaning, int(is_damaged))
        try:
            with self._sources.call_log.database.reader.connect() as connection:
                backlog = read_backlog(connection)
        except SQLAlchemyError:
            yield _single("call_log_readable", "Whether the call log could be read.", 0)
            return
        yield _single("call_log_readable", "Whether the call log could be read.", 1)
        labels = ("hook", "handler", "state")
        runs = [((each.hook, each.handler, each.state), each.number) for each in backlog.runs]
        yield _gauge("runs", "Runs that nobody is done with, by state.", labels, runs)
        yield from self._of_queues(backlog)

    def _of_queues(self, backlog: Backlog) -> Iterator[Metric]:
        lengths = [(("runs",), backlog.pending), (("processing",), backlog.unprocessed)]
        ages = [
            (("runs",), self._age_s(backlog.pending_since)),
            (("processing",), self._age_s(backlog.unprocessed_since)),
        ]
        yield _gauge("queue_length", "What could begin now, and has not.", ("queue",), lengths)
        yield _gauge("queue_age_seconds", "For how long the first of it waits.", ("queue",), ages)

    def _age_s(self, since: datetime | None) -> float:
        if since is None:
            return 0.0
        return max((self._sources.now() - since).total_seconds(), 0.0)


#: The values of a metric, each under its labels.
Values = Iterable[tuple[tuple[str, ...], float]]


def _counter(name: str, meaning: str, labels: tuple[str, ...], values: Values) -> Metric:
    family = CounterMetricFamily(PREFIX + name, meaning, labels=labels)
    for under, value in values:
        family.add_metric(under, value)
    return family


def _gauge(name: str, meaning: str, labels: tuple[str, ...], values: Values) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=labels)
    for under, value in values:
        family.add_metric(under, value)
    return family


def _single(name: str, meaning: str, value: float) -> Metric:
    return _gauge(name, meaning, (), [((), value)])


def _histogram(name: str, meaning: str, counted: Histogram) -> Metric:
    return HistogramMetricFamily(
        PREFIX + name, meaning, buckets=_buckets(counted), sum_value=counted.sum
    )


def _buckets(counted: Histogram) -> list[tuple[str, float]]:
    return [("+Inf" if isinf(bound) else str(bound), n) for bound, n in counted.cumulated()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


_WHO_MAY = (
    "Who may read the metrics: whoever brings the token of MILLIS_HOOKS_METRICS_TOKEN as "
    "`Authorization: Bearer <token>`, and operators who are signed in."
)
_KEPT_BY_NOBODY = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class MetricsEndpoint:
    """An ASGI application for one path."""

    def __init__(
        self, settings: Settings, sources: Sources, is_operator: Callable[[Scope], bool]
    ) -> None:
        """Ask `is_operator`, which may block, whether a request is of somebody signed in."""
        self._token = settings.metrics_token
        self._is_open = settings.metrics_open
        self._sources = sources
        self._is_operator = is_operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await run_in_threadpool(self._answer, scope)
        except StorageError as error:  # nobody can be looked up now
            response = PlainTextResponse(str(error), 503, headers=_KEPT_BY_NOBODY)
        await response(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Ask with GET.", 405, headers={"Allow": "GET, HEAD"})
        headers = Headers(scope=scope)
        if not self._may_read(scope, headers.get("authorization")):
            asks = {"WWW-Authenticate": "Bearer"} | _KEPT_BY_NOBODY
            return PlainTextResponse(_WHO_MAY, 401, headers=asks)
        return self._exposition(headers.get("accept", ""))

    def _may_read(self, scope: Scope, authorization: str | None) -> bool:
        if self._is_open:
            return True
        if authorization is None:
            return self._is_operator(scope)
        scheme, _, token = authorization.partition(" ")
        wanted = self._token.get_secret_value() if self._token is not None else ""
        is_token = compare_digest(token.strip().encode(), wanted.encode())
        return bool(wanted) and scheme.lower() == "bearer" and is_token

    def _exposition(self, accept: str) -> Response:
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        made = Response(encode(self._registry), headers=_KEPT_BY_NOBODY)
        made.headers["Content-Type"] = content_type
        return made

    @cached_property
    def _registry(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry, ProcessCollector

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(ServiceCollector(self._sources))
        return registry

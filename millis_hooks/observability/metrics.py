"""Counts for Prometheus: every metric of an application, its registry, and `GET /metrics`.

Events are counted as they happen. States (who waits, how large the call log is) are read when
Prometheus asks.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest
from pathlib import Path
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..call_log.change_feed import ChangeFeed
from ..call_log.database import Database
from ..call_log.health import Backlog, read_backlog
from ..call_log.writer import StorageObserver, Writer
from ..exceptions import StorageError
from ..settings import Settings
from ..version import __version__

PREFIX = "millis_hooks_"
#: Bounds of durations, in seconds: from an immediate answer to a handler that is given up.
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)
_LONG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: Bounds of the number of deliveries in a commit.
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Seconds between two measures of a loop.
LAG_EVERY_S = 0.5

Role = Literal["working", "standby", "stopped"]
_ROLES: tuple[Role, ...] = ("working", "standby", "stopped")


class Metrics:
    """The counters and histograms of one application, in a registry of their own.

    Each may be changed by any thread.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.deliveries = self._counter(
            "deliveries", "Requests to the webhooks, by outcome.", "kind", "outcome"
        )
        self.budget_misses = self._counter(
            "prefetch_budget_misses",
            "Prefetch handlers that took longer than their budget.",
            "handler",
        )
        self.prefetch_s = self._histogram(
            "prefetch_duration_seconds", "From a prefetch read to its answer ready.", _SHORT_S
        )
        self.function_s = self._histogram(
            "function_duration_seconds",
            "From a request for a function read to its answer ready.",
            _SHORT_S,
            "function",
        )
        self.store_s = self._histogram(
            "store_duration_seconds", "From an end-of-call read to its bytes synced.", _SHORT_S
        )
        self.attempts = self._counter(
            "attempts", "Attempts at runs that ended, by outcome.", "hook", "handler", "outcome"
        )
        self.attempt_s = self._histogram(
            "attempt_duration_seconds", "The duration of attempts.", _LONG_S
        )
        self._loop_lag_s = self._histogram(
            "loop_lag_seconds", "How late event loops ran what was due.", _SHORT_S, "loop"
        )
        self.storage: StorageObserver = _StorageMetrics(self)
        self.loops: dict[str, LoopLag] = {}
        ProcessCollector(registry=self.registry)

    def outcomes(self, kind: str, outcomes: Iterable[str]) -> Mapping[str, Counter]:
        """Return the counter of each outcome of a webhook; all of them are shown from now on."""
        return {outcome: self.deliveries.labels(kind, outcome) for outcome in outcomes}

    def expect_attempts(self, handlers: Iterable[tuple[str, str]], outcomes: Iterable[str]) -> None:
        """Show these counters from now on, so that Prometheus sees the first increase."""
        possible = tuple(outcomes)
        for hook, name in handlers:
            for outcome in possible:
                self.attempts.labels(hook, name, outcome)

    def count_attempt(self, hook: str, handler: str, outcome: str, duration_s: float) -> None:
        """Count an attempt at a run that ended."""
        self.attempts.labels(hook, handler, outcome).inc()
        self.attempt_s.observe(duration_s)

    def watch(self, **loops: asyncio.AbstractEventLoop | None) -> None:
        """Measure the lag of running loops, by name; one that has two names is measured once."""
        names = {loop: name for name, loop in reversed(loops.items()) if loop is not None}
        for loop, name in names.items():
            self.loops[name] = LoopLag(loop, self._loop_lag_s.labels(name).observe)
            self.loops[name].start()

    def stop(self) -> None:
        """End the measuring of loops."""
        for lag in self.loops.values():
            lag.stop()

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, bounds: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(PREFIX + name, meaning, labels, buckets=bounds, registry=self.registry)


class _StorageMetrics(StorageObserver):
    def __init__(self, metrics: Metrics) -> None:
        self._batches = metrics._histogram(
            "batch_deliveries", "Deliveries written in one commit.", _BATCHES
        )
        self._commit_s = metrics._histogram(
            "commit_duration_seconds", "The duration of such commits.", _SHORT_S
        )
        errors = metrics._counter(
            "database_errors", "Errors of the database, by operation.", "operation"
        )
        self._writes, self._reads = errors.labels("write"), errors.labels("read")
        self._lost = metrics._counter(
            "lost_records", "Records of prefetches and functions that were not kept."
        )

    def committed(self, deliveries: int, seconds: float) -> None:
        self._batches.observe(deliveries)
        self._commit_s.observe(seconds)

    def write_failed(self) -> None:
        self._writes.inc()

    def read_failed(self) -> None:
        self._reads.inc()

    def lost(self, records: int) -> None:
        self._lost.inc(records)


class LoopLag:
    """Measures again and again how late a running loop runs what is due."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        observe: Callable[[float], None],
        *,
        every_s: float = LAG_EVERY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call `observe` with each lag, in seconds."""
        self._loop = loop
        self._observe = observe
        self._every_s = every_s
        self._monotonic = monotonic
        self._due_at = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False

    @property
    def overdue_s(self) -> float:
        """How late the next measure is already: for so long a blocked loop is stuck."""
        return 0.0 if self._is_stopped else max(self._monotonic() - self._due_at, 0.0)

    def start(self) -> None:
        """Begin; from any thread."""
        self._loop.call_soon_threadsafe(self._schedule)

    def stop(self) -> None:
        """End; from any thread, also after the loop has ended."""
        self._is_stopped = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _measure(self) -> None:
        self._observe(max(self._monotonic() - self._due_at, 0.0))
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_stopped:
            self._due_at = self._monotonic() + self._every_s
            self._timer = self._loop.call_later(self._every_s, self._measure)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


@dataclass(frozen=True, slots=True)
class RunnerStatus:
    """The state of a runner: `late` counts handlers that were given up and still run.

    `hung` has the hook and name of the handlers whose places are all taken by such calls.
    """

    role: Role
    at_work: int
    late: int
    hung: tuple[tuple[str, str], ...] = ()


class RunnerState(Protocol):
    """The part of a runner that is shown."""

    @property
    def status(self) -> RunnerStatus: ...

    @property
    def handlers(self) -> list[tuple[str, str]]: ...


class StateCollector(Collector):
    """Reads the states of a service when Prometheus asks. Blocks: some are in the call log."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        feed: ChangeFeed,
        runner: RunnerState,
        *,
        is_damaged: Callable[[], bool],
        loops: Mapping[str, LoopLag],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._writer = writer
        self._feed = feed
        self._runner = runner
        self._is_damaged = is_damaged
        self._loops = loops
        self._now = now

    def describe(self) -> Iterable[Metric]:
        """Describe nothing: the registry would read the call log to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        yield _gauge("info", "The version that runs.", ("version",), [((__version__,), 1)])
        yield _single(
            "writer_waiting", "Writes that wait for the next commit.", self._writer.waiting
        )
        yield _single("live_pages", "Open pages that follow changes.", self._feed.subscribers)
        stalled = [((name,), lag.overdue_s) for name, lag in self._loops.items()]
        yield _gauge("loop_stalled_seconds", "For how long a loop is late now.", ("loop",), stalled)
        yield from self._of_runner()
        yield from self._of_file()
        yield from self._of_backlog()

    def _of_runner(self) -> Iterator[Metric]:
        status = self._runner.status
        roles = [((role,), int(role == status.role)) for role in _ROLES]
        yield _gauge("runner_role", "1 for the role of this process in runs.", ("role",), roles)
        yield _single("handlers_at_work", "Attempts that are running.", status.at_work)
        yield _single("handlers_late", "Handlers that were given up and still run.", status.late)
        yield _gauge(
            "handler_hung",
            "1 for a handler whose places are all taken by calls that do not return.",
            ("hook", "handler"),
            [(key, int(key in status.hung)) for key in self._runner.handlers],
        )

    def _of_file(self) -> Iterator[Metric]:
        if not self._database.is_file:
            return
        path = self._database.path
        size = sum(map(_size, (path, path.with_name(f"{path.name}-wal"))))
        yield _single("call_log_bytes", "Size of the call log and its write-ahead log.", size)
        with suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            yield _single("disk_free_bytes", "Free space on the disk of the call log.", free)

    def _of_backlog(self) -> Iterator[Metric]:
        is_damaged = int(self._is_damaged())
        yield _single("call_log_damaged", "1 since the call log was found damaged.", is_damaged)
        meaning = "Whether the call log could be read."
        try:
            with self._database.reader.connect() as connection:
                backlog = read_backlog(connection)
        except SQLAlchemyError:
            yield _single("call_log_readable", meaning, 0)
            return
        yield _single("call_log_readable", meaning, 1)
        runs = [((each.hook, each.handler, each.state), each.number) for each in backlog.runs]
        labels = ("hook", "handler", "state")
        yield _gauge("runs", "Runs that are not over, or failed, by state.", labels, runs)
        yield from self._of_queues(backlog)

    def _of_queues(self, backlog: Backlog) -> Iterator[Metric]:
        lengths = [(("runs",), backlog.pending), (("processing",), backlog.unprocessed)]
        ages = [
            (("runs",), self._age_s(backlog.pending_since)),
            (("processing",), self._age_s(backlog.unprocessed_since)),
        ]
        yield _gauge("queue_length", "Work that could begin now.", ("queue",), lengths)
        yield _gauge("queue_age_seconds", "For how long the first waits.", ("queue",), ages)

    def _age_s(self, since: datetime | None) -> float:
        return 0.0 if since is None else max((self._now() - since).total_seconds(), 0.0)


#: The values of a metric, each under its labels.
Values = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, meaning: str, labels: tuple[str, ...], values: Values) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _single(name: str, meaning: str, value: float) -> Metric:
    return _gauge(name, meaning, (), [((), value)])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


_UNAUTHORIZED = (
    "The metrics need the token of MILLIS_HOOKS_METRICS_TOKEN as `Authorization: Bearer <token>`, "
    "or an operator who is signed in."
)
_NOT_CACHED = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class MetricsEndpoint:
    """The ASGI application of `/metrics`, in both formats of Prometheus."""

    def __init__(
        self,
        settings: Settings,
        registry: CollectorRegistry,
        is_operator: Callable[[Scope], bool],
    ) -> None:
        """Admit requests for which `is_operator`, which may block, returns True."""
        self._token = settings.metrics_token
        self._is_open = settings.metrics_open
        self._registry = registry
        self._is_operator = is_operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await run_in_threadpool(self._answer, scope)
        except StorageError as error:  # operators cannot be looked up now
            response = PlainTextResponse(str(error), 503, headers=_NOT_CACHED)
        await response(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Use GET.", 405, headers={"Allow": "GET, HEAD"})
        headers = Headers(scope=scope)
        if not self._is_authorized(scope, headers.get("authorization")):
            challenge = {"WWW-Authenticate": "Bearer"} | _NOT_CACHED
            return PlainTextResponse(_UNAUTHORIZED, 401, headers=challenge)
        encode, content_type = choose_encoder(headers.get("accept", ""))
        response = Response(encode(self._registry), headers=_NOT_CACHED)
        response.headers["Content-Type"] = content_type
        return response

    def _is_authorized(self, scope: Scope, authorization: str | None) -> bool:
        if self._is_open:
            return True
        if authorization is None:
            return self._is_operator(scope)
        scheme, _, token = authorization.partition(" ")
        expected = self._token.get_secret_value() if self._token is not None else ""
        is_token = compare_digest(token.strip().encode(), expected.encode())
        return bool(expected) and scheme.lower() == "bearer" and is_token

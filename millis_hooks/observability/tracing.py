"""Tracing of calls with OpenTelemetry: one trace from the prefetch to the last attempt at a run.

Imported only where tracing is switched on, and needs the extra `otel`. Spans are masked like logs:
they carry ids, outcomes, names of handlers, and errors as `error_report` describes them.

The end-of-call comes minutes after its prefetch, and its handlers maybe days after that. So the
context of a delivery, as W3C writes it (https://www.w3.org/TR/trace-context/), is stored in its
row, where an attempt reads it. An end-of-call, which must not wait for a query, finds that of the
prefetch in memory; `traces_going_on` reads those back after a restart.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Engine, select

from ..call_log.deliveries import Kind
from ..call_log.tables import BEST_OUTCOMES, calls, deliveries
from ..masking.error_report import describe_failure
from ..version import __version__
from .log_records import shown_id

#: Calls that are going on whose traces are remembered.
MOST_REMEMBERED = 10_000
#: What sending the last spans may take when the service stops.
FLUSH_MS = 3_000

_W3C = TraceContextTextMapPropagator()
_HEADERS = ("traceparent", "tracestate")
#: Outcomes that are not an error.
_GOOD = frozenset(BEST_OUTCOMES)


class Tracing:
    """Begins the spans of a service. May be used from any thread."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        """Trace to `provider`; without one to the process's, which is made if there is none.

        Where that sends its spans the variables OTEL_* say.
        """
        self._provider = provider or _provider()
        self._tracer = self._provider.get_tracer("millis_hooks", __version__)
        self._going_on: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, calls: Iterable[tuple[str, str]]) -> None:
        """Remember the contexts of calls that are going on, by session id; the oldest are lost."""
        with self._lock:
            for session_id, context in calls:
                self._going_on[session_id] = context
                self._going_on.move_to_end(session_id)
            while len(self._going_on) > MOST_REMEMBERED:
                self._going_on.popitem(last=False)

    def delivery(
        self, kind: Kind, session_id: str | None, headers: Iterable[tuple[bytes, bytes]]
    ) -> DeliverySpan:
        """Begin the span of a delivery: in its call's trace, in its sender's, or in its own."""
        sent = _context_in(headers)
        remembered = self._remembered(session_id) if kind != "prefetch" else None
        parent = _context_of(remembered) if remembered else sent
        sender = trace.get_current_span(sent).get_span_context()
        span = self._tracer.start_span(
            kind.replace("_", "-"),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_given({"millis.session_id": shown_id(session_id)}),
            links=[Link(sender)] if remembered and sender.is_valid else (),
        )
        begun = DeliverySpan(self._tracer, span)
        if kind == "prefetch" and session_id is not None and begun.context is not None:
            self.remember([(session_id, begun.context)])
        return begun

    def attempt(
        self, context: str | None, *, run_id: int, handler: str, number: int, session_id: str | None
    ) -> AbstractContextManager[None]:
        """Return what an attempt runs within; `context` is that of the delivery it is about."""
        attributes = {
            "millis.session_id": shown_id(session_id),
            "millis.run_id": run_id,
            "millis.handler": handler,
            "millis.attempt": number,
        }
        parent = _context_of(context)
        return _within(self._tracer, f"run {handler}", parent, SpanKind.CONSUMER, attributes)

    def close(self) -> None:
        """Send what is left. Blocks a little; the tracing of the process continues."""
        if isinstance(self._provider, TracerProvider):
            self._provider.force_flush(FLUSH_MS)

    def _remembered(self, session_id: str | None) -> str | None:
        with self._lock:
            return self._going_on.get(session_id) if session_id is not None else None


class DeliverySpan:
    """The span of one delivery; `context` is what its row keeps, None where nothing is traced."""

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._as_parent())
        self.context = carrier.get("traceparent")

    def handler(self, name: str) -> AbstractContextManager[None]:
        """Return what a prefetch handler runs within."""
        attributes = {"millis.handler": name}
        parent = self._as_parent()
        return _within(self._tracer, f"handler {name}", parent, SpanKind.INTERNAL, attributes)

    def end(self, outcome: str) -> None:
        """End the span; any outcome but the best is an error."""
        self._span.set_attribute("millis.outcome", outcome)
        if outcome not in _GOOD:
            self._span.set_status(Status(StatusCode.ERROR, outcome))
        self._span.end()

    def _as_parent(self) -> Context:
        return trace.set_span_in_context(self._span, Context())


@contextmanager
def _within(
    tracer: trace.Tracer,
    name: str,
    parent: Context,
    kind: SpanKind,
    attributes: Mapping[str, Any],
) -> Iterator[None]:
    """Make a span the current one, so that what the code within traces belongs to it."""
    with tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes=_given(attributes),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            failure = describe_failure(error)
            attributes = {
                "exception.type": failure.error_type,
                "exception.message": failure.message,
                "exception.stacktrace": failure.traceback,
            }
            span.add_event("exception", attributes)
            span.set_status(Status(StatusCode.ERROR, str(failure)))
            raise


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _context_in(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    return _W3C.extract({name: carrier[name] for name in _HEADERS if name in carrier}, Context())


def _context_of(traceparent: str | None) -> Context:
    return _W3C.extract({"traceparent": traceparent} if traceparent else {}, Context())


def _provider() -> trace.TracerProvider:
    provider = trace.get_tracer_provider()
    if not isinstance(provider, trace.ProxyTracerProvider):
        return provider
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    made = TracerProvider(resource=_resource())
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(made)  # what handlers trace by themselves goes the same way
    return made


def _resource() -> Resource:
    resource = Resource.create()
    is_named = not str(resource.attributes[SERVICE_NAME]).startswith("unknown_service")
    return resource if is_named else resource.merge(Resource({SERVICE_NAME: "millis_hooks"}))


def traces_going_on(reader: Engine) -> list[tuple[str, str]]:
    """Return session and context of the newest traced calls without an end, oldest first."""
    c = deliveries.c
    query = (
        select(c.session_id, c.trace)
        .join(calls, calls.c.session_id == c.session_id)
        .where(calls.c.ended_at.is_(None), c.kind == "prefetch", c.trace.is_not(None))
        .order_by(calls.c.received_at.desc())
        .limit(MOST_REMEMBERED)
    )
    with reader.connect() as connection:
        rows = connection.execute(query).all()
    return [(row.session_id, row.trace) for row in reversed(rows)]

"""Requests to the webhooks, from their arrival to the record of the answer or the rejection.

Raw ASGI: a webhook is answered ahead of any router, because a caller is waiting on the line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from starlette.types import Scope, Send

from ..call_log.deliveries import Delivery
from ..call_log.rejections import Rejection
from ..call_log.sanitize import clean_text
from ..exceptions import DeliveryError, HandlerError, MethodNotAllowedError
from ..handlers.handler_call import NOTHING_AROUND, Around, Handler, HandlerResult
from ..masking.error_report import describe_failure
from ..observability.log_records import deliveries_log, log_delivery, log_refusal, shown_id
from ..observability.metrics import Metrics
from ..protocol.test_marks import Mark, MarkOf, Received
from ..settings import Hook, Settings
from .auth import Gate, Grant

if TYPE_CHECKING:
    from prometheus_client import Histogram

    from ..observability.tracing import DeliverySpan, Tracing

MAX_REASON_CHARS = 2000

#: The key in a scope's `extensions` of a function of the server, which is called when the peer has
#: sent an accepted secret. Such a connection is kept longer, and closed last.
BROUGHT_SECRET = "millis_hooks.brought_secret"


def report_secret(scope: Mapping[str, Any]) -> None:
    """Tell the server that this request carried an accepted secret, if it wants to know."""
    report = scope.get("extensions", {}).get(BROUGHT_SECRET)
    if report is not None:
        report()


#: What became of a prefetch and why, on the answer to a test only.
OUTCOME_HEADER = b"x-millis-hooks-outcome"
REASON_HEADER = b"x-millis-hooks-reason"
RETRY_AFTER = (b"retry-after", b"5")
JSON = (b"content-type", b"application/json")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")


async def reply(
    send: Send,
    status_code: int,
    body: bytes,
    *headers: tuple[bytes, bytes],
    content_type: tuple[bytes, bytes] = JSON,
) -> None:
    """Send a whole response, by default of JSON."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status_code,
            "headers": [content_type, _NO_SNIFFING, length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


def take_query(scope: Scope) -> bytes:
    """Return the query string and take it out of the scope.

    Servers write access lines from the scope, and the query holds phone numbers and metadata.
    """
    query: bytes = scope["query_string"]
    scope["query_string"] = b""
    return query


#: The most bytes of path, query and headers together; servers have limits of their own as well.
MOST_HEAD_BYTES = 32 * 1024


def head_bytes(scope: Scope) -> int:
    """Return how many bytes the path, the query and the headers of a request have."""
    headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
    size = sum(map(len, chain.from_iterable(headers))) + 4 * len(headers)
    return len(scope["path"]) + len(scope["query_string"]) + size


@dataclass(frozen=True, slots=True)
class Records:
    """Where the requests to the webhooks of a service are recorded, counted and traced."""

    #: Takes answered requests, and must not wait.
    record: Callable[[Delivery], None]
    #: Takes rejected requests, and must not wait.
    note: Callable[[Rejection], None]
    metrics: Metrics
    mark_of: MarkOf
    tracing: Tracing | None = None


@dataclass(slots=True)
class Answered:
    """An answer, and what its record says about it."""

    body: bytes
    outcome: str
    reasons: list[str] = field(default_factory=list)
    content_type: tuple[bytes, bytes] = JSON
    #: What handlers kept, as JSON.
    kept: str | None = None


class Webhook:
    """One of the webhooks: who may call it, and what is counted and recorded of it."""

    def __init__(
        self,
        settings: Settings,
        hook: Hook,
        methods: tuple[str, ...],
        records: Records,
        *,
        outcomes: Iterable[str],
    ) -> None:
        self.hook = hook
        self.methods = methods
        self.records = records
        self.gate = Gate(settings, hook)
        self._outcomes = records.metrics.outcomes(hook, outcomes)

    def count(self, outcome: str) -> None:
        """Count a request, unless there is nothing that this webhook could be called for."""
        if outcome in self._outcomes:
            self._outcomes[outcome].inc()

    async def refuse(self, send: Send, error: DeliveryError) -> None:
        """Send the short reason to the sender."""
        # The rest of a body that was not read must not be taken for the next request.
        headers = [(b"connection", b"close")] if error.status_code in (413, 431, 503) else []
        if error.status_code == 503:
            headers.append(RETRY_AFTER)
        if isinstance(error, MethodNotAllowedError):
            headers.append((b"allow", ", ".join(self.methods).encode()))
        await reply(send, error.status_code, to_json({"error": error.detail}), *headers)

    def note(
        self,
        scope: Scope,
        error: DeliveryError,
        *,
        query: bytes,
        path_secret: bytes | None = None,
        brought_secret: bool,
    ) -> None:
        """Have a rejected request recorded, with the whole reason."""
        client = scope.get("client")
        self.records.note(
            Rejection(
                received_at=datetime.now(UTC),
                webhook=self.hook,
                method=scope["method"],
                status_code=error.status_code,
                reason=str(error),
                client=client[0] if client else None,
                query=query,
                headers=tuple(scope["headers"]),
                path_secret=path_secret,
                brought_secret=brought_secret,
            )
        )


class Request:
    """A request to a webhook; its query is taken out of the scope."""

    __slots__ = ("_path_secret", "_span", "grant", "mark", "query", "received_at", "scope",
                 "started", "text", "webhook")  # fmt: skip

    def __init__(self, webhook: Webhook, scope: Scope, path_secret: bytes | None) -> None:
        self.started = time.perf_counter()
        self.received_at = datetime.now(UTC)
        self.webhook = webhook
        self.scope = scope
        self.query = take_query(scope)
        #: The query as it is stored, and so as it is read again.
        self.text = clean_text(self.query.decode("utf-8", "replace")) or ""
        self.grant = Grant()
        self.mark = Mark()
        self._path_secret = path_secret
        self._span: DeliverySpan | None = None

    def admit(self) -> Grant:
        """Return what the secret allows; raises `DeliveryError`."""
        if self.scope["method"] not in self.webhook.methods:
            raise MethodNotAllowedError
        self.grant = self.webhook.gate.admit(
            self.scope["headers"], path_secret=self._path_secret, query=self.query
        )
        report_secret(self.scope)
        return self.grant

    def read_mark(self, session_id: str | None) -> Mark:
        """Return who made the request up, if Millis did not send it; raises `DeliveryError`."""
        headers, secret = self.scope["headers"], self.grant.secret
        self.mark = self.webhook.records.mark_of(headers, session_id, secret)
        return self.mark

    def trace(self, session_id: str | None) -> None:
        """Begin the span, if calls are traced."""
        if (tracing := self.webhook.records.tracing) is not None:
            self._span = tracing.delivery(self.webhook.hook, session_id, self.scope["headers"])

    def around(self, handler: Handler) -> Around:
        """Return what a handler that answers the request runs within."""
        return NOTHING_AROUND if self._span is None else self._span.handler(handler.name)

    def delivery(self, outcome: str, session_id: str | None, **columns: Any) -> Delivery:
        """Return what is stored of the request."""
        columns.setdefault("received_at", self.received_at)
        columns.setdefault("query", self.text or None)
        return Delivery(
            kind=self.webhook.hook,
            session_id=clean_text(session_id) or None,
            outcome=outcome,
            status_code=200,
            source=self.mark.source,
            dry_run=self.mark.dry_run,
            trace=None if self._span is None else self._span.context,
            secret_agent=self.grant.agent_id,
            **columns,
        )

    async def answer(
        self,
        send: Send,
        answer: Answered,
        session_id: str | None,
        duration: Histogram,
        *headers: tuple[bytes, bytes],
        **columns: Any,
    ) -> None:
        """Send an answer, and record it."""
        latency_s = time.perf_counter() - self.started
        if self.mark.source is None:
            duration.observe(latency_s)
        await reply(send, 200, answer.body, *headers, content_type=answer.content_type)
        reason = clean_text("\n".join(answer.reasons), max_chars=MAX_REASON_CHARS) or None
        delivery = self.delivery(
            answer.outcome,
            session_id,
            reason=reason,
            latency_ms=latency_s * 1000,
            answer=answer.body,
            kept=answer.kept,
            **columns,
        )
        self.webhook.records.record(delivery)
        self.end(delivery)

    def end(
        self,
        delivery: Delivery,
        *,
        outcome: str | None = None,
        status_code: int = 200,
        stored_s: float | None = None,
    ) -> None:
        """Count, trace and log what became of the request; `stored_s` is how long it took to store
        a delivery that is not answered before."""
        outcome = outcome or delivery.outcome
        if delivery.source is None:
            self.webhook.count(outcome)
        if self._span is not None:
            self._span.end(outcome)
        if deliveries_log.isEnabledFor(logging.INFO):
            if stored_s is not None:
                delivery = delivery._replace(latency_ms=stored_s * 1000)
            log_delivery(self.scope, delivery, outcome=outcome, status_code=status_code)

    async def refuse(self, send: Send, error: DeliveryError) -> None:
        """Send the short reason to the sender, and record the whole one."""
        gate, headers = self.webhook.gate, self.scope["headers"]
        self.webhook.count("rejected")
        self.note(error, brought_secret=gate.is_secret_in(headers, self.query, self._path_secret))
        await self.webhook.refuse(send, error)
        log_refusal(self.scope, self.webhook.hook, error)

    def note(self, error: DeliveryError, *, brought_secret: bool) -> None:
        """Have the request recorded as rejected."""
        self.webhook.note(
            self.scope,
            error,
            query=self.query,
            path_secret=self._path_secret,
            brought_secret=brought_secret,
        )


def read_result(result: HandlerResult) -> Any:
    """Return what a handler gave; raise `HandlerError` if it failed, or that cannot be read."""
    if isinstance(result.error, HandlerError):
        raise result.error
    if result.error is not None:
        raise HandlerError(str(describe_failure(result.error))) from result.error
    return result.value


def explain(
    logger: logging.Logger, handler: Handler, error: HandlerError, call: Received[Any]
) -> list[str]:
    """Log what went wrong with a handler, and return what the record says: one line, and of
    a rehearsal, which is read on its page and not in the log, the traceback."""
    why = describe_failure(error).message
    cause = None if error.__cause__ is None else describe_failure(error.__cause__)
    if cause is not None and cause.place is not None:
        why = f"{why} ({cause.place})"
    fields = {"handler": handler.name, "session_id": shown_id(call.session_id)}
    extra = {"fields": {"event": f"{handler.hook}_handler_failed", **fields}}
    if cause is None:
        logger.warning("%s handler %s: %s", handler.hook, handler.name, why, extra=extra)
    else:
        words = "%s handler %s failed\n%s"
        logger.warning(words, handler.hook, handler.name, cause.block, extra=extra)
    line = f"{handler.name}: {why}"
    return [line, cause.traceback] if cause is not None and call.sandbox else [line]

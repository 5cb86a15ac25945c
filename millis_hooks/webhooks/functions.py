"""The functions of agents: authenticate, read the arguments, run the function, answer, record.

A caller waits for the agent, so there is always something to speak from: arguments that do not fit,
a function that raises and one that is late are answered with 200 and words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from ..call_log.deliveries import Delivery
from ..call_log.rejections import Rejection
from ..call_log.sanitize import clean_text
from ..exceptions import (
    ClientGoneError,
    DeliveryError,
    HandlerError,
    HandlerTimeoutError,
    MethodNotAllowedError,
    PayloadError,
    UnknownFunctionError,
)
from ..handlers.executor import Executor
from ..handlers.handler_call import NOTHING_AROUND
from ..handlers.routing import DEFAULT_FUNCTION_TIMEOUT_S, Handler, Router
from ..masking.error_report import describe_failure
from ..observability.log_records import deliveries_log, log_delivery, log_refusal
from ..protocol.functions import ArgumentsError, FunctionRequest, Tool
from ..protocol.results import as_object, is_object
from ..protocol.test_marks import MarkOf, of_millis
from ..settings import Settings
from .auth import Gate, Grant
from .bodies import MOST_BYTES, Bodies, Budget, Headers, decode
from .prefetch import MAX_REASON_CHARS, explain, read_result
from .responses import JSON, Refusals, reply, report_secret, take_query

if TYPE_CHECKING:
    from ..observability.metrics import Metrics
    from ..observability.tracing import DeliverySpan, Tracing

logger = logging.getLogger("millis_hooks.functions")

OUTCOMES = ("answered", "invalid", "late", "failed", "rejected", "cut_off")
#: What the agent gets for a function that fails or is late, unless that has words of its own.
FALLBACK = "This does not work at the moment. Tell the caller so, and continue without it."
#: Arguments are short; metadata may be longer.
MOST_BODY_BYTES = 256 * 1024

_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_CONTENT_TYPE_CHARS = 200


@dataclass(slots=True)
class Reply:
    """An answer to an agent, and what its record says about it."""

    body: bytes
    outcome: str
    reasons: list[str] = field(default_factory=list)
    content_type: tuple[bytes, bytes] = JSON


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A request that was admitted."""

    handler: Handler
    tool: Tool
    grant: Grant
    call: FunctionRequest
    query: str
    body: bytes
    content_type: str | None
    source: str | None


class FunctionEndpoint:
    """Answers `GET` and `POST {prefix}/functions/{name}`."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        executor: Executor,
        record: Callable[[Delivery], None],
        note: Callable[[Rejection], None],
        *,
        metrics: Metrics,
        mark_of: MarkOf = of_millis,
        tracing: Tracing | None = None,
    ) -> None:
        """Hand answered requests to `record` and rejected ones to `note`, which must not wait."""
        self._functions = router.functions()
        self._executor = executor
        self._record = record
        self._gate = Gate(settings, "function")
        self._refusals = Refusals("function", "GET, POST", self._gate, note)
        self._mark_of = mark_of
        self._tracing = tracing
        self._max_bytes = min(MOST_BODY_BYTES, settings.max_body_bytes)
        self._bodies = Bodies(Budget(MOST_BYTES), max_bytes=self._max_bytes)
        self._outcomes = metrics.outcomes("function", OUTCOMES) if self._functions else {}
        self._duration_s = {
            each.name: metrics.function_s.labels(each.name) for each in self._functions
        }

    async def __call__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        name: str,
        path_secret: bytes | None = None,
    ) -> None:
        """Answer one request for the function `name`."""
        started = time.perf_counter()
        received_at = datetime.now(UTC)
        query = take_query(scope)
        try:
            received = await self._admit(scope, receive, name, query, path_secret)
        except ClientGoneError:
            self._count("cut_off")
            return
        except DeliveryError as error:
            self._count("rejected")
            await self._refusals.refuse(scope, send, error, query=query, path_secret=path_secret)
            log_refusal(scope, "function", error)
            return
        call, span = received.call, None
        if self._tracing is not None:
            span = self._tracing.delivery("function", call.session_id, scope["headers"])
        answer = await self._answer(received, span)
        latency_s = time.perf_counter() - started
        if not call.is_made_up:
            self._count(answer.outcome)
            self._duration_s[received.tool.name].observe(latency_s)
        await reply(send, 200, answer.body, content_type=answer.content_type)
        delivery = Delivery(
            kind="function",
            function=received.tool.name,
            session_id=clean_text(call.session_id) or None,
            received_at=received_at,
            query=received.query or None,
            content_type=received.content_type,
            body=received.body,
            outcome=answer.outcome,
            reason=clean_text("\n".join(answer.reasons), max_chars=MAX_REASON_CHARS) or None,
            status_code=200,
            latency_ms=latency_s * 1000,
            answer=answer.body,
            source=received.source,
            dry_run=call.dry_run,
            trace=None if span is None else span.context,
            secret_agent=received.grant.agent_id,
        )
        self._record(delivery)
        if span is not None:
            span.end(answer.outcome)
        if deliveries_log.isEnabledFor(logging.INFO):
            log_delivery(scope, delivery)

    def _count(self, outcome: str) -> None:
        if outcome in self._outcomes:
            self._outcomes[outcome].inc()

    async def _admit(
        self, scope: Scope, receive: Receive, name: str, query: bytes, path_secret: bytes | None
    ) -> _Admitted:
        """Return a request that may be answered; raises `DeliveryError`."""
        if scope["method"] not in ("GET", "POST"):
            raise MethodNotAllowedError
        grant = self._gate.admit(scope["headers"], path_secret=path_secret, query=query)
        report_secret(scope)
        handler = self._function(name, grant)
        headers = Headers(scope["headers"])
        body, problems = b"", []
        if scope["method"] == "POST":
            with self._bodies.share() as share:
                body = await self._bodies.receive(headers, receive, share)
            try:
                body = decode(body, headers.content_encoding, max_bytes=self._max_bytes).body
            except PayloadError as error:
                problems.append(str(error))
        text = clean_text(query.decode("utf-8", "replace")) or ""
        content_type = clean_text(headers.content_type, max_chars=_CONTENT_TYPE_CHARS)
        assert handler.tool is not None  # noqa: S101 - all that the router calls functions have one
        call = FunctionRequest.parse(
            name,
            text.encode(),
            body,
            content_type,
            parameters=handler.tool.names,
            agent_id=grant.agent_id,
        )
        mark = self._mark_of(scope["headers"], call.session_id, grant.secret)
        call.mark(source=mark.source, dry_run=mark.dry_run)
        return _Admitted(handler, handler.tool, grant, call, text, body, content_type, mark.source)

    def _function(self, name: str, grant: Grant) -> Handler:
        """Return the function of this name; a secret that is bound to an agent calls its own."""
        known = {each.name: each for each in self._functions if _is_for(each, grant.agent_id)}
        if name not in known:
            raise UnknownFunctionError(known)
        return known[name]

    async def _answer(self, received: _Admitted, span: DeliverySpan | None) -> Reply:
        handler, call = received.handler, received.call
        reasons = [str(problem) for problem in call.problems]
        try:
            call.arguments = received.tool.read(call.raw)
        except ArgumentsError as error:
            return _said(handler, str(error), "invalid", [*reasons, str(error)], name="error")
        result = await self._executor.run(
            handler,
            call,
            timeout_s=handler.timeout_s or DEFAULT_FUNCTION_TIMEOUT_S,
            around=NOTHING_AROUND if span is None else span.handler(handler.name),
        )
        try:
            answer = read_result(result, lambda value: answer_of(handler, value))
        except HandlerError as error:
            reasons.append(explain(handler, error, call.session_id))
            if call.sandbox and error.__cause__ is not None:
                reasons.append(describe_failure(error.__cause__).traceback)
            outcome = "late" if isinstance(error, HandlerTimeoutError) else "failed"
            return _said(handler, handler.fallback or FALLBACK, outcome, reasons)
        answer.reasons = reasons + answer.reasons
        return answer


def _is_for(handler: Handler, agent_id: str | None) -> bool:
    agents = handler.accepted.get("agent_id")
    return agents is None or agent_id is None or agent_id in agents


def _said(
    handler: Handler, words: str, outcome: str, reasons: list[str], *, name: str = "result"
) -> Reply:
    """Return words of ours as the function answers: as text, or as JSON under this name."""
    if handler.answer == "text":
        return Reply(words.encode(), outcome, reasons, _TEXT)
    return Reply(to_json({name: words}), outcome, reasons)


def answer_of(handler: Handler, value: object) -> Reply:
    """Return what a function gave as it is sent: an object as it is, all else as `result`.

    What cannot be sent as JSON is left out, and noted. Raises `HandlerError` if that is all.
    """
    if handler.answer == "text" and isinstance(value, str):
        return Reply(value.encode("utf-8", "replace"), "answered", content_type=_TEXT)
    left_out: list[str] = []
    sent: Any = value if is_object(value) else {"result": "Done." if value is None else value}
    plain = as_object(sent, "", left_out)
    if left_out and not plain:
        raise HandlerError(f"The answer cannot be sent as JSON: {'; '.join(left_out)}.")
    if left_out:
        logger.warning("function %s: left out %s", handler.name, "; ".join(left_out))
    return Reply(to_json(plain), "answered", [f"{each}; it was left out" for each in left_out])

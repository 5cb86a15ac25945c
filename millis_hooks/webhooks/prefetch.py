"""The prefetch webhook: authenticate, parse, run the handlers within the budget, answer, record.

A caller is waiting for the first word: whatever the team's code does, an answer goes out in time.
The record of it is queued and never waited for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.types import Receive, Scope, Send

from ..call_log.deliveries import Delivery
from ..call_log.rejections import Rejection
from ..call_log.sanitize import clean_text
from ..exceptions import (
    DeliveryError,
    HandlerError,
    HandlerTimeoutError,
    MethodNotAllowedError,
)
from ..handlers.executor import Executor
from ..handlers.handler_call import NOT_WANTED, NOTHING_AROUND, HandlerResult
from ..handlers.routing import Handler, Router
from ..masking.error_report import describe_failure
from ..observability.log_records import deliveries_log, log_delivery, log_refusal, shown_id
from ..protocol.prefetch import PrefetchRequest
from ..protocol.test_marks import MarkOf, of_millis
from ..settings import Settings
from .auth import Gate, Grant
from .prefetch_answer import Answer, merge, read_answer
from .prefetch_cache import Given, Key, PrefetchCache, key_of
from .responses import (
    OUTCOME_HEADER,
    REASON_HEADER,
    Refusals,
    reply,
    report_secret,
    take_query,
)

if TYPE_CHECKING:
    from ..observability.metrics import Metrics
    from ..observability.tracing import DeliverySpan, Tracing

logger = logging.getLogger("millis_hooks.prefetch")

T = TypeVar("T")

MAX_REASON_CHARS = 2000
_MAX_HEADER_CHARS = 500
OUTCOMES = ("fresh", "cached", "last_good", "default", "late", "failed", "rejected")


@dataclass(slots=True)
class Prepared:
    """An answer, and what its record says about it."""

    body: bytes
    outcome: str
    reasons: list[str] = field(default_factory=list)
    kept: str | None = None


class PrefetchEndpoint:
    """Answers `GET {prefix}/prefetch`."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        executor: Executor,
        record: Callable[[Delivery], None],
        note: Callable[[Rejection], None],
        *,
        default: bytes | None,
        metrics: Metrics,
        mark_of: MarkOf = of_millis,
        cache: PrefetchCache | None = None,
        tracing: Tracing | None = None,
        remember: Callable[[PrefetchRequest[Any, Any]], None] = lambda call: None,
    ) -> None:
        """Hand answered requests to `record`, rejected ones to `note`, and each call to `remember`,
        which must not wait.

        `default` is the answer to fall back to, as JSON.
        """
        self._settings = settings
        self._router = router
        self._executor = executor
        self._record = record
        self._gate = Gate(settings, "prefetch")
        self._refusals = Refusals("prefetch", "GET", self._gate, note)
        self._default = default
        self._mark_of = mark_of
        self._tracing = tracing
        self._remember = remember
        self.cache = cache or PrefetchCache()
        self._keeps_last = settings.prefetch_fallback == "last_good"
        self._renewing: dict[Key, asyncio.Task[None]] = {}
        named = [handler.name for handler in router if handler.hook == "prefetch"]
        self._outcomes = metrics.outcomes("prefetch", OUTCOMES)
        self._prefetch_s = metrics.prefetch_s
        self._budget_misses = {name: metrics.budget_misses.labels(name) for name in named}

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, path_secret: bytes | None = None
    ) -> None:
        """Answer one request."""
        started = time.perf_counter()
        received_at = datetime.now(UTC)
        query = take_query(scope)
        text = clean_text(query.decode("utf-8", "replace")) or ""
        try:
            grant = self._admit(scope, path_secret, query)
            # What is stored is what is read again when it is processed.
            call = PrefetchRequest.parse(text.encode(), own_numbers=self._settings.own_numbers)
            grant.require_agent(call.agent_id)
            mark = self._mark_of(scope["headers"], call.session_id, grant.secret)
        except DeliveryError as error:
            await self._refuse(scope, send, error, query=query, path_secret=path_secret)
            return
        call.mark(source=mark.source, dry_run=mark.dry_run)
        self._remember(call)
        span = None
        if self._tracing is not None:
            span = self._tracing.delivery("prefetch", call.session_id, scope["headers"])
        prepared = await self._prepare(call, span)
        latency_s = time.perf_counter() - started
        if not call.is_made_up:
            self._outcomes[prepared.outcome].inc()
            self._prefetch_s.observe(latency_s)
        await reply(send, 200, prepared.body, *_explained(call, prepared))
        delivery = Delivery(
            kind="prefetch",
            session_id=clean_text(call.session_id) or None,
            received_at=received_at,
            query=text,
            outcome=prepared.outcome,
            reason=clean_text("\n".join(prepared.reasons), max_chars=MAX_REASON_CHARS) or None,
            status_code=200,
            latency_ms=latency_s * 1000,
            answer=prepared.body,
            source=mark.source,
            dry_run=mark.dry_run,
            trace=None if span is None else span.context,
            secret_agent=grant.agent_id,
            kept=prepared.kept,
        )
        self._record(delivery)
        if span is not None:
            span.end(prepared.outcome)
        if deliveries_log.isEnabledFor(logging.INFO):
            log_delivery(scope, delivery)

    async def _refuse(self, scope: Scope, send: Send, error: DeliveryError, **request: Any) -> None:
        self._outcomes["rejected"].inc()
        await self._refusals.refuse(scope, send, error, **request)
        log_refusal(scope, "prefetch", error)

    def _admit(self, scope: Scope, path_secret: bytes | None, query: bytes) -> Grant:
        if scope["method"] != "GET":
            raise MethodNotAllowedError
        grant = self._gate.admit(scope["headers"], path_secret=path_secret, query=query)
        report_secret(scope)
        return grant

    async def _prepare(
        self, call: PrefetchRequest[dict[str, str]], span: DeliverySpan | None
    ) -> Prepared:
        handlers = self._router.matching("prefetch", call)
        calls = [call.copy() for _ in handlers]  # a handler may change its own
        results = await self._run(handlers, calls, span)
        answers: list[Answer] = []
        errors: list[HandlerError] = []
        reasons = [str(problem) for problem in call.problems]
        for handler, own_call, result in zip(handlers, calls, results, strict=True):
            reasons += [str(problem) for problem in own_call.problems[len(call.problems) :]]
            try:
                read = self._read(result, call)
                _log_notes(handler, read)
                for answer in read:
                    answer.keep = {**own_call._variants, **answer.keep}
                answers += read
            except HandlerError as error:
                errors.append(error)
                reasons.append(explain(handler, error, call.session_id))
                if call.sandbox and error.__cause__ is not None:
                    # A rehearsal is read on its page, not in the log.
                    reasons.append(describe_failure(error.__cause__).traceback)
                if isinstance(error, HandlerTimeoutError) and not call.is_made_up:
                    self._budget_misses[handler.name].inc()
        if errors and not answers:
            return self._fall_back(call, errors, reasons)
        answer = merge(answers)
        values = [result.value for result in results if result.value is not NOT_WANTED]
        if values and all(isinstance(value, Given) for value in values):
            return self._prepared(call, answer, "cached", reasons)
        # An answer to a rehearsal is not for the real caller.
        if self._keeps_last and not errors and not call.sandbox:
            self.cache.keep(call, answer.encode(), answer.encode_keep())
        return self._prepared(call, answer, "fresh", reasons + answer.notes)

    def _prepared(
        self, call: PrefetchRequest[Any], answer: Answer, outcome: str, reasons: list[str]
    ) -> Prepared:
        """Return an answer, completed with the declared variables."""
        answer.complete(call, self._settings.variables)
        return Prepared(answer.encode(), outcome, reasons, answer.encode_keep())

    async def _run(
        self,
        handlers: Sequence[Handler],
        calls: Sequence[PrefetchRequest[dict[str, str]]],
        span: DeliverySpan | None,
    ) -> list[HandlerResult]:
        """Run the handlers side by side, each on its call and within its budget."""
        running = [
            (self._call if handler.cache_s is None else self._call_or_recall)(handler, call, span)
            for handler, call in zip(handlers, calls, strict=True)
        ]
        return [await running[0]] if len(running) == 1 else await asyncio.gather(*running)

    async def _call(
        self,
        handler: Handler,
        call: PrefetchRequest[Any],
        span: DeliverySpan | None,
        *,
        spent_s: float = 0.0,
    ) -> HandlerResult:
        budget_s = handler.timeout_s or self._settings.prefetch_budget_s
        return await self._executor.run(
            handler,
            call,
            timeout_s=max(budget_s - spent_s, 0.0),
            around=NOTHING_AROUND if span is None else span.handler(handler.name),
        )

    async def _call_or_recall(
        self, handler: Handler, call: PrefetchRequest[Any], span: DeliverySpan | None
    ) -> HandlerResult:
        """Return what the handler last answered under this key, or call it."""
        began = time.perf_counter()
        found = await self._key_of(handler, call)
        if found.value is NOT_WANTED or isinstance(found.error, HandlerTimeoutError):
            return found
        if not isinstance(found.value, str):
            spent_s = time.perf_counter() - began
            return await self._call(handler, call, span, spent_s=spent_s)
        # Rehearsals have answers of their own.
        key = (handler.name, call.sandbox, call.agent_id, found.value)
        cache_s = handler.cache_s or 0.0
        given = self.cache.get(key, handler.stale_s or cache_s)
        if given is None:
            result = await self._call(handler, call, span, spent_s=time.perf_counter() - began)
            with suppress(HandlerError):  # it is told where the answer is read
                self._keep(key, call, result)
            return result
        if self.cache.age_s(given) > cache_s and key not in self._renewing:
            renewing = asyncio.create_task(self._renew(handler, call, key))
            self._renewing[key] = renewing
        return HandlerResult(given)

    async def _key_of(self, handler: Handler, call: PrefetchRequest[Any]) -> HandlerResult:
        """Return under which key the answer is kept, None for none; `NOT_WANTED` as `when=` says.

        What the team wrote runs where its handlers do. If it raises, the handler is called.
        """
        if handler.key is None and handler.when is None:
            return HandlerResult(key_of(handler, call))
        keyed = replace(handler, function=partial(key_of, handler), is_async=False)
        found = await self._call(keyed, call.copy(), None)
        if isinstance(found.error, Exception) and not isinstance(found.error, HandlerTimeoutError):
            explain(
                handler, HandlerError(f"key=: {describe_failure(found.error)}"), call.session_id
            )
        return found

    def _keep(self, key: Key, call: PrefetchRequest[Any], result: HandlerResult) -> None:
        """Keep what a handler answered; raises `HandlerError` if it failed."""
        for answer in self._read(result, call):
            answer.keep = {**call._variants, **answer.keep}
            self.cache.put(key, answer.encode(), answer.encode_keep())

    async def _renew(self, handler: Handler, call: PrefetchRequest[Any], key: Key) -> None:
        try:
            self._keep(key, call, await self._call(handler, call, None))
        except HandlerError as error:
            explain(handler, error, call.session_id)
        finally:
            del self._renewing[key]

    def _read(self, result: HandlerResult, call: PrefetchRequest[Any]) -> list[Answer]:
        """Return the handler's answer, if it gave one; raise `HandlerError` if it failed."""
        settings = self._settings
        read_one = partial(
            read_answer,
            call=call,
            max_chars=settings.extra_prompt_max_chars,
            variables=settings.variables,
        )

        def read(value: object) -> list[Answer]:
            if isinstance(value, Given):
                return [Answer.of(value.answer, value.kept)]
            return [] if value is NOT_WANTED else [read_one(value)]

        return read_result(result, read)

    def _fall_back(
        self,
        call: PrefetchRequest[Any],
        errors: Sequence[HandlerError],
        reasons: list[str],
    ) -> Prepared:
        """Choose the answer when no handler has given one."""
        last_good = self.cache.find(call) if self._keeps_last else None
        if last_good is not None:
            answer = Answer.of(last_good.answer, last_good.kept)
            return self._prepared(call, answer, "last_good", reasons)
        if self._settings.prefetch_fallback != "empty" and self._default is not None:
            return self._prepared(call, Answer.of(self._default), "default", reasons)
        late = any(isinstance(error, HandlerTimeoutError) for error in errors)
        return self._prepared(call, Answer(), "late" if late else "failed", reasons)


def read_result(result: HandlerResult, read: Callable[[object], T]) -> T:
    """Return what a handler gave, read; raise `HandlerError` if it failed, or it cannot be read."""
    if isinstance(result.error, HandlerError):
        raise result.error
    if result.error is not None:
        raise HandlerError(str(describe_failure(result.error))) from result.error
    try:
        return read(result.value)
    except HandlerError:
        raise
    except Exception as error:  # a dict of the team's own may do anything when it is read
        raise HandlerError(str(describe_failure(error))) from error


def _explained(call: PrefetchRequest[Any], prepared: Prepared) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell the sender of a test what became of it; Millis gets none."""
    if not call.is_made_up:
        return []
    lines = [each for each in prepared.reasons if "\n" not in each]  # no tracebacks
    reason = "; ".join(lines)[:_MAX_HEADER_CHARS].encode("ascii", "backslashreplace")
    return [(OUTCOME_HEADER, prepared.outcome.encode()), (REASON_HEADER, reason)]


def _log_notes(handler: Handler, answers: Sequence[Answer]) -> None:
    """Warn of what is left out of an answer, and of names that Millis ignores."""
    notes = [note for answer in answers for note in answer.warnings]
    if notes:
        logger.warning("prefetch handler %s: %s", handler.name, "; ".join(notes))


def explain(handler: Handler, error: HandlerError, session_id: str | None) -> str:
    """Log what went wrong with a handler, and return it in one line."""
    why = describe_failure(error).message
    cause = None if error.__cause__ is None else describe_failure(error.__cause__)
    if cause is not None and cause.place is not None:
        why = f"{why} ({cause.place})"
    fields = {"handler": handler.name, "session_id": shown_id(session_id)}
    extra = {"fields": {"event": f"{handler.hook}_handler_failed", **fields}}
    if cause is None:
        logger.warning("%s handler %s: %s", handler.hook, handler.name, why, extra=extra)
    else:
        words = "%s handler %s failed\n%s"
        logger.warning(words, handler.hook, handler.name, cause.block, extra=extra)
    return f"{handler.name}: {why}"

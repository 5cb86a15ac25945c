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
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from starlette.types import Receive, Scope, Send

from ..exceptions import DeliveryError, HandlerError, HandlerTimeoutError
from ..handlers.executor import Executor
from ..handlers.handler_call import NOT_WANTED, NOTHING_AROUND, Around, Handler, HandlerResult
from ..handlers.routing import Router
from ..masking.error_report import describe_failure
from ..protocol.prefetch import PrefetchRequest
from ..settings import Settings
from .prefetch_answer import Answer, merge, read_answer
from .prefetch_cache import Given, Key, PrefetchCache, key_of
from .responses import (
    OUTCOME_HEADER,
    REASON_HEADER,
    Answered,
    Records,
    Request,
    Webhook,
    explain,
    read_result,
)

logger = logging.getLogger("millis_hooks.prefetch")

_MAX_HEADER_CHARS = 500
OUTCOMES = ("fresh", "cached", "last_good", "default", "late", "failed", "rejected")

#: Returns what a handler runs within.
_AroundOf: TypeAlias = Callable[[Handler], Around]


class PrefetchEndpoint:
    """Answers `GET {prefix}/prefetch`."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        executor: Executor,
        records: Records,
        *,
        default: bytes | None,
        remember: Callable[[PrefetchRequest[Any, Any]], None],
    ) -> None:
        """Hand each call to `remember`, which must not wait.

        `default` is the answer to fall back to, as JSON.
        """
        self._settings = settings
        self.webhook = Webhook(settings, "prefetch", ("GET",), records, outcomes=OUTCOMES)
        self._router = router
        self._executor = executor
        self._default = default
        self._remember = remember
        self.cache = PrefetchCache()
        self._keeps_last = settings.prefetch_fallback == "last_good"
        self._renewing: dict[Key, asyncio.Task[None]] = {}
        named = [handler.name for handler in router if handler.hook == "prefetch"]
        self._prefetch_s = records.metrics.prefetch_s
        self._budget_misses = {name: records.metrics.budget_misses.labels(name) for name in named}

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, path_secret: bytes | None = None
    ) -> None:
        """Answer one request."""
        request = Request(self.webhook, scope, path_secret)
        try:
            grant = request.admit()
            # What is stored is what is read again when it is processed.
            query, own_numbers = request.text.encode(), self._settings.own_numbers
            call = PrefetchRequest.parse(query, own_numbers=own_numbers)
            grant.require_agent(call.agent_id)
            mark = request.read_mark(call.session_id)
        except DeliveryError as error:
            await request.refuse(send, error)
            return
        call.mark(source=mark.source, dry_run=mark.dry_run)
        self._remember(call)
        request.trace(call.session_id)
        answer = await self._prepare(call, request.around)
        headers = _explained(answer) if call.is_made_up else ()
        await request.answer(
            send, answer, call.session_id, self._prefetch_s, *headers, query=request.text
        )

    async def _prepare(self, call: PrefetchRequest[dict[str, str]], around: _AroundOf) -> Answered:
        handlers = self._router.matching("prefetch", call)
        calls = [call.copy() for _ in handlers]  # a handler may change its own
        results = await self._run(handlers, calls, around)
        answers: list[Answer] = []
        errors: list[HandlerError] = []
        reasons = [str(problem) for problem in call.problems]
        for handler, own_call, result in zip(handlers, calls, results, strict=True):
            reasons += [str(problem) for problem in own_call.problems[len(call.problems) :]]
            try:
                read = _read(result)
                _log_notes(handler, read)
                for answer in read:
                    answer.keep = {**own_call._variants, **answer.keep}
                answers += read
            except HandlerError as error:
                errors.append(error)
                reasons += explain(logger, handler, error, call)
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
    ) -> Answered:
        """Return an answer, completed with the declared variables."""
        answer.complete(call, self._settings.variables)
        return Answered(answer.encode(), outcome, reasons, kept=answer.encode_keep())

    async def _run(
        self,
        handlers: Sequence[Handler],
        calls: Sequence[PrefetchRequest[dict[str, str]]],
        around: _AroundOf,
    ) -> list[HandlerResult]:
        """Run the handlers side by side, each on its call and within its budget."""
        running = [
            (self._call if handler.cache_s is None else self._call_or_recall)(handler, call, around)
            for handler, call in zip(handlers, calls, strict=True)
        ]
        return [await running[0]] if len(running) == 1 else await asyncio.gather(*running)

    async def _call(
        self,
        handler: Handler,
        call: PrefetchRequest[Any],
        around: _AroundOf,
        *,
        spent_s: float = 0.0,
    ) -> HandlerResult:
        most, variables = self._settings.extra_prompt_max_chars, self._settings.variables
        return await self._executor.run(
            handler,
            call,
            timeout_s=max(self._budget_s(handler) - spent_s, 0.0),
            around=around(handler),
            read=partial(read_answer, call=call, max_chars=most, variables=variables),
        )

    def _budget_s(self, handler: Handler) -> float:
        return handler.timeout_s or self._settings.prefetch_budget_s

    async def _call_or_recall(
        self, handler: Handler, call: PrefetchRequest[Any], around: _AroundOf
    ) -> HandlerResult:
        """Return what the handler last answered under this key, or call it."""
        began = time.perf_counter()
        found = await self._key_of(handler, call)
        if found.value is NOT_WANTED or isinstance(found.error, HandlerTimeoutError):
            return found
        if not isinstance(found.value, str):
            spent_s = time.perf_counter() - began
            return await self._call(handler, call, around, spent_s=spent_s)
        # Rehearsals have answers of their own.
        key = (handler.name, call.sandbox, call.agent_id, found.value)
        cache_s = handler.cache_s or 0.0
        given = self.cache.get(key, handler.stale_s or cache_s)
        if given is None:
            result = await self._call(handler, call, around, spent_s=time.perf_counter() - began)
            with suppress(HandlerError):  # it is reported where the answer is read
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
        timeout_s = self._budget_s(handler)
        found = await self._executor.run(keyed, call.copy(), timeout_s=timeout_s)
        if found.error is not None and not isinstance(found.error, HandlerTimeoutError):
            why = HandlerError(f"The function of key= raised {describe_failure(found.error)}")
            explain(logger, handler, why, call)
        return found

    def _keep(self, key: Key, call: PrefetchRequest[Any], result: HandlerResult) -> None:
        """Keep what a handler answered; raises `HandlerError` if it failed."""
        for answer in _read(result):
            answer.keep = {**call._variants, **answer.keep}
            self.cache.put(key, answer.encode(), answer.encode_keep())

    async def _renew(self, handler: Handler, call: PrefetchRequest[Any], key: Key) -> None:
        try:
            self._keep(key, call, await self._call(handler, call, _untraced))
        except HandlerError as error:
            explain(logger, handler, error, call)
        finally:
            del self._renewing[key]

    def _fall_back(
        self,
        call: PrefetchRequest[Any],
        errors: Sequence[HandlerError],
        reasons: list[str],
    ) -> Answered:
        """Choose the answer when no handler has given one."""
        last_good = self.cache.find(call) if self._keeps_last else None
        if last_good is not None:
            answer = Answer.of(last_good.answer, last_good.kept)
            return self._prepared(call, answer, "last_good", reasons)
        if self._settings.prefetch_fallback != "empty" and self._default is not None:
            return self._prepared(call, Answer.of(self._default), "default", reasons)
        late = any(isinstance(error, HandlerTimeoutError) for error in errors)
        return self._prepared(call, Answer(), "late" if late else "failed", reasons)


def _read(result: HandlerResult) -> list[Answer]:
    """Return the handler's answer, if it gave one; raise `HandlerError` if it failed."""
    value = read_result(result)
    if value is NOT_WANTED:
        return []
    return [Answer.of(value.answer, value.kept) if isinstance(value, Given) else value]


def _untraced(_handler: Handler) -> Around:
    return NOTHING_AROUND


def _explained(answer: Answered) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell the sender of a test what became of it; Millis gets none."""
    lines = [each for each in answer.reasons if "\n" not in each]  # no tracebacks
    reason = "; ".join(lines)[:_MAX_HEADER_CHARS].encode("ascii", "backslashreplace")
    return [(OUTCOME_HEADER, answer.outcome.encode()), (REASON_HEADER, reason)]


def _log_notes(handler: Handler, answers: Sequence[Answer]) -> None:
    """Warn of what is left out of an answer, and of names that Millis ignores."""
    notes = [note for answer in answers for note in answer.warnings]
    if notes:
        logger.warning("prefetch handler %s: %s", handler.name, "; ".join(notes))

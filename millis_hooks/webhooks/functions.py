"""The functions of agents: authenticate, read the arguments, run the function, answer, record.

A caller waits for the agent, so there is always something to speak from: arguments that do not fit,
a function that raises and one that is late are answered with 200 and words.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from ..exceptions import (
    ClientGoneError,
    DeliveryError,
    HandlerError,
    HandlerTimeoutError,
    PayloadError,
    UnknownFunctionError,
)
from ..handlers.executor import Executor
from ..handlers.handler_call import DEFAULT_FUNCTION_TIMEOUT_S, Handler
from ..handlers.routing import Router
from ..protocol.functions import ArgumentsError, FunctionRequest, Tool
from ..protocol.results import as_object, is_object
from ..settings import Settings
from .auth import Grant
from .bodies import MOST_BYTES, Bodies, Budget, Headers, decode
from .responses import Answered, Records, Request, Webhook, explain, read_result

logger = logging.getLogger("millis_hooks.functions")

OUTCOMES = ("answered", "invalid", "late", "failed", "rejected", "cut_off")
#: What the agent gets for a function that fails or is late, unless that has words of its own.
FALLBACK = "This does not work at the moment. Tell the caller so, and continue without it."
#: Arguments are short; metadata may be longer.
MOST_BODY_BYTES = 256 * 1024

_TEXT = (b"content-type", b"text/plain; charset=utf-8")


class _Admitted(NamedTuple):
    """A request that was admitted."""

    handler: Handler
    tool: Tool
    call: FunctionRequest
    body: bytes
    content_type: str | None


class FunctionEndpoint:
    """Answers `GET` and `POST {prefix}/functions/{name}`."""

    def __init__(
        self, settings: Settings, router: Router, executor: Executor, records: Records
    ) -> None:
        self._functions = router.functions()
        self._executor = executor
        outcomes = OUTCOMES if self._functions else ()
        self.webhook = Webhook(settings, "function", ("GET", "POST"), records, outcomes=outcomes)
        self._max_bytes = min(MOST_BODY_BYTES, settings.max_body_bytes)
        self._bodies = Bodies(Budget(MOST_BYTES), max_bytes=self._max_bytes)
        self._duration_s = {
            each.name: records.metrics.function_s.labels(each.name) for each in self._functions
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
        request = Request(self.webhook, scope, path_secret)
        try:
            received = await self._admit(request, receive, name)
        except ClientGoneError:
            self.webhook.count("cut_off")
            return
        except DeliveryError as error:
            await request.refuse(send, error)
            return
        session_id = received.call.session_id
        request.trace(session_id)
        await request.answer(
            send,
            await self._answer(received, request),
            session_id,
            self._duration_s[name],
            function=name,
            content_type=received.content_type,
            body=received.body,
        )

    async def _admit(self, request: Request, receive: Receive, name: str) -> _Admitted:
        """Return a request that may be answered; raises `DeliveryError`."""
        grant = request.admit()
        handler = self._function(name, grant)
        headers = Headers(request.scope["headers"])
        body = b""
        if request.scope["method"] == "POST":
            with self._bodies.share() as share:
                body = await self._bodies.receive(headers, receive, share)
            with suppress(PayloadError):  # it is reported where the arguments are read
                body = decode(body, headers.content_encoding, max_bytes=self._max_bytes).body
        assert handler.tool is not None  # noqa: S101 - all that the router calls functions have one
        call = FunctionRequest.parse(
            name,
            request.text.encode(),
            body,
            headers.stored_content_type,
            parameters=handler.tool.names,
            agent_id=grant.agent_id,
        )
        mark = request.read_mark(call.session_id)
        call.mark(source=mark.source, dry_run=mark.dry_run)
        return _Admitted(handler, handler.tool, call, body, headers.stored_content_type)

    def _function(self, name: str, grant: Grant) -> Handler:
        """Return the function of this name; a secret that is bound to an agent calls its own."""
        known = {each.name: each for each in self._functions if _is_for(each, grant.agent_id)}
        if name not in known:
            raise UnknownFunctionError(known)
        return known[name]

    async def _answer(self, received: _Admitted, request: Request) -> Answered:
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
            around=request.around(handler),
            read=partial(answer_of, handler),
        )
        try:
            answer: Answered = read_result(result)
        except HandlerError as error:
            reasons += explain(logger, handler, error, call)
            outcome = "late" if isinstance(error, HandlerTimeoutError) else "failed"
            return _said(handler, handler.fallback or FALLBACK, outcome, reasons)
        answer.reasons = reasons + answer.reasons
        return answer


def _is_for(handler: Handler, agent_id: str | None) -> bool:
    agents = handler.accepted.get("agent_id")
    return agents is None or agent_id is None or agent_id in agents


def _said(
    handler: Handler, words: str, outcome: str, reasons: list[str], *, name: str = "result"
) -> Answered:
    """Return our words in the form of the function's answers: as text, or as JSON by this name."""
    if handler.answer == "text":
        return Answered(words.encode(), outcome, reasons, _TEXT)
    return Answered(to_json({name: words}), outcome, reasons)


def answer_of(handler: Handler, value: object) -> Answered:
    """Return what a function gave as it is sent: an object as it is, all else as `result`.

    What cannot be sent as JSON is left out, and noted. Raises `HandlerError` if that is all.
    """
    if handler.answer == "text" and isinstance(value, str):
        return Answered(value.encode("utf-8", "replace"), "answered", content_type=_TEXT)
    left_out: list[str] = []
    sent: Any = value if is_object(value) else {"result": "Done." if value is None else value}
    plain = as_object(sent, "", left_out)
    if left_out and not plain:
        raise HandlerError(f"The answer cannot be sent as JSON: {'; '.join(left_out)}.")
    if left_out:
        logger.warning("function %s: left out %s", handler.name, "; ".join(left_out))
    return Answered(to_json(plain), "answered", [f"{each}; it was left out" for each in left_out])

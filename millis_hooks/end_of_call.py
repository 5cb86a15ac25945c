"""The end-of-call webhook: authenticate, read bounded, store raw, acknowledge.

The bytes are on disk before the 200 goes out. What they say is looked at later, and nothing in them
can make us refuse them: only what is unauthenticated, too large or broken as HTTP is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from .auth import Gate, Grant
from .call_log.deliveries import Delivery
from .call_log.rejections import Rejection
from .call_log.values import clean_text
from .content_encoding import decode
from .counts import WebhookCounts
from .events import identify
from .exceptions import (
    DeliveryError,
    MethodNotAllowedError,
    PayloadError,
    PayloadTooLargeError,
    StorageError,
)
from .lines import deliveries_log, log_delivery, log_refusal
from .marks import MarkOf, of_millis
from .peer import tell_of_secret
from .replies import Refusals, reply, take_query
from .settings import Settings

if TYPE_CHECKING:
    from .tracing import Tracing

logger = logging.getLogger("millis_hooks.end_of_call")

OUTCOMES = ("stored", "unparsed", "rejected", "not_stored", "cut_off")
ACKNOWLEDGED = b'{"received":true}'
_NOT_STORED = b'{"error":"not stored, send it again"}'


class ClientGoneError(Exception):
    """The sender left before the body was complete."""


class EndOfCallEndpoint:
    """Answers `POST {prefix}/end-of-call`."""

    def __init__(
        self,
        settings: Settings,
        store: Callable[[Delivery], Awaitable[None]],
        note: Callable[[Rejection], None],
        *,
        mark_of: MarkOf = of_millis,
        tracing: Tracing | None = None,
    ) -> None:
        """Acknowledge once `store` returns; refusals go to `note`, which must not wait."""
        self._settings = settings
        self._store = store
        self._mark_of = mark_of
        self._tracing = tracing
        self._gate = Gate(settings, "end_of_call")
        self._refusals = Refusals("end_of_call", "POST", note)
        self.counts = WebhookCounts(OUTCOMES)

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, path_secret: bytes | None = None
    ) -> None:
        """Answer one request."""
        query = take_query(scope)
        try:
            delivery = await self._read(scope, query, receive, path_secret)
        except DeliveryError as error:
            self.counts.outcomes["rejected"] += 1
            await self._refusals.refuse(scope, send, error, query=query, path_secret=path_secret)
            log_refusal(scope, "end_of_call", error)
        except ClientGoneError:
            self.counts.outcomes["cut_off"] += 1
            logger.warning("an end-of-call was cut off by its sender")
        else:
            await self._take(delivery, scope, send)

    async def _take(self, delivery: Delivery, scope: Scope, send: Send) -> None:
        """Store a delivery, and acknowledge it if that went well."""
        span = None
        if self._tracing is not None:
            span = self._tracing.delivery("end_of_call", delivery.session_id, scope["headers"])
            delivery = delivery._replace(trace=span.context)
        outcome, began = delivery.outcome, time.perf_counter()
        try:
            await self._store(delivery)
        except StorageError as error:
            outcome = "not_stored"
            logger.error("an end-of-call was NOT stored and not acknowledged: %s", error)
            await reply(send, 503, _NOT_STORED, (b"retry-after", b"5"))
            log_delivery(scope, delivery, outcome=outcome, status_code=503)
        else:
            taken_s = time.perf_counter() - began
            self.counts.seconds.add(taken_s)
            await reply(send, 200, ACKNOWLEDGED)
            if deliveries_log.isEnabledFor(logging.INFO):
                log_delivery(scope, delivery._replace(latency_ms=taken_s * 1000))
        self.counts.outcomes[outcome] += 1
        if span is not None:
            span.end(outcome)

    async def _read(
        self, scope: Scope, query: bytes, receive: Receive, path_secret: bytes | None
    ) -> Delivery:
        if scope["method"] != "POST":
            raise MethodNotAllowedError
        grant = self._gate.admit(scope["headers"], path_secret=path_secret)
        tell_of_secret(scope)
        headers = dict(scope["headers"])
        received = await self._receive(headers, receive)
        received_at = datetime.now(UTC)
        body, session_id, reason = self._understand(received, headers, grant)
        content_type = headers.get(b"content-type")
        mark = self._mark_of(scope["headers"], session_id)
        return Delivery(
            kind="end_of_call",
            session_id=session_id,
            received_at=received_at,
            outcome="stored" if reason is None else "unparsed",
            reason=clean_text(reason),
            status_code=200,
            content_type=_text(content_type),
            query=clean_text(query.decode("utf-8", "replace")) or None,
            answer=ACKNOWLEDGED,
            body=body,
            source=mark.source,
            dry_run=mark.dry_run,
        )

    async def _receive(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read the body; raises `PayloadTooLargeError` over the limit."""
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared[:19]) > self._settings.max_body_bytes:
            raise PayloadTooLargeError
        return await _read_all(receive, self._settings.max_body_bytes)

    def _understand(
        self, received: bytes, headers: dict[bytes, bytes], grant: Grant
    ) -> tuple[bytes, str | None, str | None]:
        """Return the body decoded, the session it is about, and why there is none if so.

        What cannot be decoded stays as received. Raises `PayloadTooLargeError` if it gets too
        large, and `AuthenticationError` if it is another agent's.
        """
        coding = headers.get(b"content-encoding")
        try:
            body = received
            if coding is not None:
                max_bytes = self._settings.max_body_bytes
                body = decode(received, coding.decode("latin-1"), max_bytes=max_bytes)
        except PayloadError as error:
            return received, None, str(error)
        try:
            identity = identify(body)
        except PayloadError as error:
            return body, None, str(error)
        grant.require_agent(identity.agent_id)
        return body, clean_text(identity.session_id), None


def _text(header: bytes | None) -> str | None:
    return None if header is None else clean_text(header.decode("latin-1"), max_chars=200)


async def _read_all(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise PayloadTooLargeError
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)

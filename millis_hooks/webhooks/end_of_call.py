"""The end-of-call webhook: authenticate, read within bounds, store the raw bytes, acknowledge.

The bytes are on disk before the 200 goes out. Processing comes later, and no content of a body can
have it refused: only what is unauthenticated, too large or broken as HTTP is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from ..call_log.change_feed import Change
from ..call_log.deliveries import Delivery
from ..call_log.rejections import Rejection
from ..call_log.sanitize import clean_text
from ..exceptions import ClientGoneError, DeliveryError, MethodNotAllowedError, StorageError
from ..observability.log_records import deliveries_log, log_delivery, log_refusal
from ..protocol.test_marks import MarkOf, of_millis
from ..settings import Settings
from .auth import Gate, Grant
from .bodies import MOST_BYTES, Bodies, Budget, Headers, Reading, Share
from .responses import RETRY_AFTER, Refusals, reply, report_secret, take_query

if TYPE_CHECKING:
    from ..observability.metrics import Metrics
    from ..observability.tracing import Tracing

logger = logging.getLogger("millis_hooks.end_of_call")

OUTCOMES = ("stored", "unparsed", "rejected", "not_stored", "cut_off")
ACKNOWLEDGED = b'{"received":true}'
_CONTENT_TYPE_CHARS = 200
_NOT_STORED = b'{"error":"not stored, send it again"}'


class EndOfCallEndpoint:
    """Answers `POST {prefix}/end-of-call`."""

    def __init__(
        self,
        settings: Settings,
        store: Callable[[Delivery], Awaitable[None]],
        note: Callable[[Rejection], None],
        *,
        metrics: Metrics,
        agent_of: Callable[[str], str | None] = lambda session_id: None,
        tell: Callable[[Iterable[Change]], None] = lambda changes: None,
        mark_of: MarkOf = of_millis,
        tracing: Tracing | None = None,
    ) -> None:
        """Acknowledge once `store` returns; rejections go to `note`, which must not wait.

        `agent_of` returns the agent of a known session; it may block. `tell` announces bodies that
        could not be read; others are announced when they are processed.
        """
        self._settings = settings
        self._store = store
        self._agent_of = agent_of
        self._tell = tell
        self._mark_of = mark_of
        self._tracing = tracing
        self._gate = Gate(settings, "end_of_call")
        self._refusals = Refusals("end_of_call", "POST", self._gate, note)
        max_bytes = settings.max_body_bytes
        self._bodies = Bodies(Budget(max(MOST_BYTES, max_bytes)), max_bytes=max_bytes)
        self._outcomes = metrics.outcomes("end_of_call", OUTCOMES)
        self._store_s = metrics.store_s

    def close(self) -> None:
        """End the thread that reads large bodies. Blocks while it reads."""
        self._bodies.close()

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, path_secret: bytes | None = None
    ) -> None:
        """Answer one request."""
        query = take_query(scope)
        with self._bodies.share() as share:
            try:
                delivery = await self._read(scope, query, receive, path_secret, share)
            except ClientGoneError as error:
                self._outcomes["cut_off"].inc()
                self._refusals.note(
                    scope, error, query=query, path_secret=path_secret, brought_secret=True
                )
                logger.warning("an end-of-call was cut off by its sender")
            except DeliveryError as error:
                self._outcomes["rejected"].inc()
                if error.status_code == 503:
                    logger.error("an end-of-call was NOT stored and not acknowledged: %s", error)
                await self._refusals.refuse(
                    scope, send, error, query=query, path_secret=path_secret
                )
                log_refusal(scope, "end_of_call", error)
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
            await reply(send, 503, _NOT_STORED, RETRY_AFTER)
            log_delivery(scope, delivery, outcome=outcome, status_code=503)
        else:
            taken_s = time.perf_counter() - began
            if delivery.source is None:
                self._store_s.observe(taken_s)
            await reply(send, 200, ACKNOWLEDGED)
            if outcome == "unparsed":
                self._tell([Change("unparsed", delivery.session_id)])
            if deliveries_log.isEnabledFor(logging.INFO):
                log_delivery(scope, delivery._replace(latency_ms=taken_s * 1000))
        if delivery.source is None:
            self._outcomes[outcome].inc()
        if span is not None:
            span.end(outcome)

    async def _read(
        self, scope: Scope, query: bytes, receive: Receive, path_secret: bytes | None, share: Share
    ) -> Delivery:
        if scope["method"] != "POST":
            raise MethodNotAllowedError
        grant = self._gate.admit(scope["headers"], path_secret=path_secret, query=query)
        report_secret(scope)
        headers = Headers(scope["headers"])
        received = await self._bodies.receive(headers, receive, share)
        received_at = datetime.now(UTC)
        reading = await self._bodies.read(received, headers.content_encoding, share)
        session_id = await self._session_of(reading, grant)
        mark = self._mark_of(scope["headers"], session_id, grant.secret)
        return Delivery(
            kind="end_of_call",
            session_id=session_id,
            received_at=received_at,
            outcome="stored" if reading.identity else "unparsed",
            reason=clean_text(reading.reason),
            status_code=200,
            content_type=clean_text(headers.content_type, max_chars=_CONTENT_TYPE_CHARS),
            query=clean_text(query.decode("utf-8", "replace")) or None,
            answer=ACKNOWLEDGED,
            body=reading.body,
            source=mark.source,
            dry_run=mark.dry_run,
            secret_agent=grant.agent_id,
        )

    async def _session_of(self, reading: Reading, grant: Grant) -> str | None:
        """Return the session of a body. Raises `AuthenticationError` if the call, or the session as
        it was stored before, belongs to another agent than the secret."""
        if reading.identity is None:
            return None
        session_id, agent_id = reading.identity
        grant.require_agent(agent_id)
        if grant.agent_id is not None:
            grant.require_session(await asyncio.to_thread(self._agent_of, session_id))
        return clean_text(session_id)

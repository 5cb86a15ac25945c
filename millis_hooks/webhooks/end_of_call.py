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

from starlette.types import Receive, Scope, Send

from ..call_log.change_feed import Change
from ..call_log.deliveries import Delivery
from ..call_log.sanitize import clean_text
from ..exceptions import ClientGoneError, DeliveryError, StorageError
from ..settings import Settings
from .auth import Grant
from .bodies import MOST_BYTES, Bodies, Budget, Headers, Reading, Share
from .responses import RETRY_AFTER, Records, Request, Webhook, reply

logger = logging.getLogger("millis_hooks.end_of_call")

OUTCOMES = ("stored", "unparsed", "rejected", "not_stored", "cut_off")
ACKNOWLEDGED = b'{"received":true}'
_NOT_STORED = b'{"error":"not stored, send it again"}'


class EndOfCallEndpoint:
    """Answers `POST {prefix}/end-of-call`."""

    def __init__(
        self,
        settings: Settings,
        store: Callable[[Delivery], Awaitable[None]],
        records: Records,
        *,
        agent_of: Callable[[str], str | None],
        tell: Callable[[Iterable[Change]], None],
    ) -> None:
        """Acknowledge once `store` returns.

        `agent_of` returns the agent of a known session; it may block. `tell` announces bodies that
        could not be read; others are announced when they are processed.
        """
        self.webhook = Webhook(settings, "end_of_call", ("POST",), records, outcomes=OUTCOMES)
        self._store = store
        self._agent_of = agent_of
        self._tell = tell
        max_bytes = settings.max_body_bytes
        self._bodies = Bodies(Budget(max(MOST_BYTES, max_bytes)), max_bytes=max_bytes)
        self._store_s = records.metrics.store_s

    def close(self) -> None:
        """End the thread that reads large bodies. Blocks while it reads."""
        self._bodies.close()

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, path_secret: bytes | None = None
    ) -> None:
        """Answer one request."""
        request = Request(self.webhook, scope, path_secret)
        with self._bodies.share() as share:
            try:
                delivery = await self._read(request, receive, share)
            except ClientGoneError as error:
                self.webhook.count("cut_off")
                request.note(error, brought_secret=True)
                logger.warning("an end-of-call was cut off by its sender")
            except DeliveryError as error:
                if error.status_code == 503:
                    logger.error("an end-of-call was NOT stored and not acknowledged: %s", error)
                await request.refuse(send, error)
            else:
                await self._take(request, delivery, send)

    async def _take(self, request: Request, delivery: Delivery, send: Send) -> None:
        """Store a delivery, and acknowledge it if that went well."""
        began = time.perf_counter()
        try:
            await self._store(delivery)
        except StorageError as error:
            logger.error("an end-of-call was NOT stored and not acknowledged: %s", error)
            await reply(send, 503, _NOT_STORED, RETRY_AFTER)
            request.end(delivery, outcome="not_stored", status_code=503)
            return
        taken_s = time.perf_counter() - began
        if delivery.source is None:
            self._store_s.observe(taken_s)
        await reply(send, 200, ACKNOWLEDGED)
        if delivery.outcome == "unparsed":
            self._tell([Change("unparsed", delivery.session_id)])
        request.end(delivery, stored_s=taken_s)

    async def _read(self, request: Request, receive: Receive, share: Share) -> Delivery:
        request.admit()
        headers = Headers(request.scope["headers"])
        received = await self._bodies.receive(headers, receive, share)
        received_at = datetime.now(UTC)
        reading = await self._bodies.read(received, headers.content_encoding, share)
        session_id = await self._session_of(reading, request.grant)
        request.read_mark(session_id)
        request.trace(session_id)
        return request.delivery(
            "stored" if reading.identity else "unparsed",
            session_id,
            received_at=received_at,
            reason=clean_text(reading.reason),
            content_type=headers.stored_content_type,
            answer=ACKNOWLEDGED,
            body=reading.body,
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

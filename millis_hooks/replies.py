"""What the webhooks answer with: short JSON, never an echo of what came.

Raw ASGI: a webhook is answered ahead of any router, because somebody is waiting on the line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from starlette.types import Scope, Send

from .call_log.deliveries import Delivery, Kind
from .exceptions import DeliveryError, MethodNotAllowedError

#: Refusals written to the call log per minute; a flood of them must not fill the disk.
MAX_REFUSALS_PER_MINUTE = 60

_JSON = (b"content-type", b"application/json")


async def reply(send: Send, status_code: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole response of JSON."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status_code,
            "headers": [_JSON, length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Refusals:
    """Answers refused deliveries and writes down why, without anything that came with them."""

    def __init__(self, kind: Kind, method: str, record: Callable[[Delivery], None]) -> None:
        self._kind = kind
        self._allow = (b"allow", method.encode())
        self._record = record
        self._minute = 0.0
        self._recorded = 0

    async def refuse(self, send: Send, error: DeliveryError) -> None:
        """Tell the sender the short truth and the log the whole one."""
        answer = b'{"error":"%s"}' % error.detail.encode()
        if self._may_record():
            self._record(
                Delivery(
                    kind=self._kind,
                    received_at=datetime.now(UTC),
                    outcome="rejected",
                    reason=str(error),
                    status_code=error.status_code,
                    answer=answer,
                )
            )
        await reply(send, error.status_code, answer, *self._headers(error))

    def _headers(self, error: DeliveryError) -> list[tuple[bytes, bytes]]:
        if isinstance(error, MethodNotAllowedError):
            return [self._allow]
        # The rest of a body that was not read must not be taken for the next request.
        return [(b"connection", b"close")] if error.status_code == 413 else []

    def _may_record(self) -> bool:
        minute = time.monotonic() // 60
        if minute != self._minute:
            self._minute, self._recorded = minute, 0
        self._recorded += 1
        return self._recorded <= MAX_REFUSALS_PER_MINUTE


def take_query(scope: Scope) -> bytes:
    """Return the query string and take it out of the scope.

    Servers write access lines from the scope, and the query holds phone numbers and metadata.
    """
    query: bytes = scope["query_string"]
    scope["query_string"] = b""
    return query

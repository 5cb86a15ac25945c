"""JSON responses of the webhooks, rejections and their records, and the head of a request.

Raw ASGI: a webhook is answered ahead of any router, because a caller is waiting on the line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json
from starlette.types import Scope, Send

from ..call_log.deliveries import Kind
from ..call_log.rejections import Rejection
from ..exceptions import DeliveryError, MethodNotAllowedError
from .auth import Gate

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


class Refusals:
    """Answers rejected requests to one webhook, and has them recorded with the reason."""

    def __init__(
        self, kind: Kind, method: str, gate: Gate, note: Callable[[Rejection], None]
    ) -> None:
        """`kind` is the webhook, which takes `method`; `note` must not wait."""
        self._kind = kind
        self._gate = gate
        self._allow = (b"allow", method.encode())
        self._note = note

    async def refuse(
        self,
        scope: Scope,
        send: Send,
        error: DeliveryError,
        *,
        query: bytes,
        path_secret: bytes | None,
    ) -> None:
        """Send the short reason to the sender, and record the whole one."""
        brought_secret = self._gate.is_secret_in(scope["headers"], query, path_secret)
        self.note(scope, error, query=query, path_secret=path_secret, brought_secret=brought_secret)
        await self.answer(send, error)

    async def answer(self, send: Send, error: DeliveryError) -> None:
        """Send the short reason to the sender."""
        answer = to_json({"error": error.detail})
        await reply(send, error.status_code, answer, *self._headers(error))

    def note(
        self,
        scope: Scope,
        error: DeliveryError,
        *,
        query: bytes,
        path_secret: bytes | None = None,
        brought_secret: bool,
    ) -> None:
        """Have the rejected request recorded."""
        client = scope.get("client")
        self._note(
            Rejection(
                received_at=datetime.now(UTC),
                webhook=self._kind,
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

    def _headers(self, error: DeliveryError) -> list[tuple[bytes, bytes]]:
        if isinstance(error, MethodNotAllowedError):
            return [self._allow]
        # The rest of a body that was not read must not be taken for the next request.
        close = [(b"connection", b"close")] if error.status_code in (413, 431, 503) else []
        return [*close, RETRY_AFTER] if error.status_code == 503 else close


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
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return len(scope["path"]) + len(scope["query_string"]) + headers

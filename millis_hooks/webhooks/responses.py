"""What the webhooks answer with: short JSON, never an echo of what came.

Raw ASGI: a webhook is answered ahead of any router, because somebody is waiting on the line.

How an application tells its server that the peer of a request brought a secret: by a function in
the `extensions` of the request's scope. Such a connection is kept longer, and closed last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope, Send

from ..call_log.deliveries import Kind
from ..call_log.rejections import Rejection
from ..exceptions import DeliveryError, MethodNotAllowedError
from .auth import Gate

BROUGHT_SECRET = "millis_hooks.brought_secret"


def tell_of_secret(scope: Mapping[str, Any]) -> None:
    """Tell the server that this request carried an accepted secret; other servers are not told."""
    tell = scope.get("extensions", {}).get(BROUGHT_SECRET)
    if tell is not None:
        tell()


RETRY_AFTER = (b"retry-after", b"5")
_JSON = (b"content-type", b"application/json")
_AS_IT_SAYS = (b"x-content-type-options", b"nosniff")


async def reply(send: Send, status_code: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole response of JSON."""
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": status_code,
            "headers": [_JSON, _AS_IT_SAYS, length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": body})


class Refusals:
    """Answers refused deliveries, and has written down why."""

    def __init__(
        self, kind: Kind, method: str, gate: Gate, note: Callable[[Rejection], None]
    ) -> None:
        """Refuse on the webhook `kind`, which takes `method`; `note` must not wait."""
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
        """Tell the sender the short truth and the log the whole one."""
        brought_secret = self._gate.is_secret_in(scope["headers"], query, path_secret)
        self.note(scope, error, query=query, path_secret=path_secret, brought_secret=brought_secret)
        await self.answer(send, error)

    async def answer(self, send: Send, error: DeliveryError) -> None:
        """Tell the sender the short truth."""
        answer = b'{"error":"%s"}' % error.detail.encode()
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
        """Have it written down that a request was refused, and why."""
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

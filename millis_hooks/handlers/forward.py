"""An end-of-call handler that posts each call to another system, signed as Standard Webhooks.

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..environment.addresses import without_password
from ..exceptions import RegistrationError
from ..protocol.events import EndOfCall
from .retries import LONGEST_WAIT_S, GiveUp, Retry

if TYPE_CHECKING:
    from httpx2 import AsyncBaseTransport

_EVENT = "call.ended"
_TIMEOUT_S = 20.0
#: Characters of a secret, or the bytes that base64 stands for.
_LEAST_KEY = 16
_BASE64 = "whsec_"
_GONE = 410
_WITH_RETRY_AFTER = frozenset({429, 503})


class ForwardError(Exception):
    """The other system did not accept a call; the run is retried."""


def forward(
    url: str,
    *,
    secret: str,
    transport: AsyncBaseTransport | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Callable[[EndOfCall], Awaitable[None]]:
    """Return an end-of-call handler that posts each call to `url`.

        hooks.on_end_of_call(forward("https://crm.example.com/calls", secret=os.environ["CRM_KEY"]))

    The body is JSON: `type` (`call.ended`), `timestamp`, and `data` with the payload as Millis sent
    it, or as redaction left it, and `sandbox`. `secret` signs it: a text, or `whsec_` and base64.
    The id of the message is the same in every attempt and replay. 2xx is success; 410 gives up; any
    other answer is retried, after the `Retry-After` of 429 and 503. Redirects are not followed, and
    nothing in a call changes the address. A dry run sends nothing. `transport` and `now` are for
    tests. Raises `RegistrationError` for a wrong address or secret.
    """
    host, key = _host_of(url), _key_of(secret)

    async def send(call: EndOfCall) -> None:
        if call.dry_run:
            return
        from httpx2 import AsyncClient  # slow to import, and needed by few

        sent_at = now()
        body = json.dumps(
            {
                "type": _EVENT,
                "timestamp": sent_at.isoformat(),
                "data": {**call.raw, "session_id": call.session_id, "sandbox": call.sandbox},
            }
        ).encode()
        headers = signed(key, message_id(call.idempotency_key), int(sent_at.timestamp()), body)
        async with (
            AsyncClient(transport=transport, timeout=_TIMEOUT_S) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            _check(host, response.status_code, response.headers.get("retry-after", ""))

    send.__name__ = f"forward to {host}"
    return send


def message_id(idempotency_key: str) -> str:
    """Return the id of a message: stable for a handler and a call, and without a dot."""
    return f"msg_{hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]}"


def signed(key: bytes, message: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a message: its id, its time in Unix seconds, and their signature."""
    content = b"%s.%d.%s" % (message.encode(), timestamp, body)
    signature = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    return {
        "content-type": "application/json",
        "webhook-id": message,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def _check(host: str, status_code: int, retry_after: str) -> None:
    if 200 <= status_code < 300:
        return
    if status_code == _GONE:
        raise GiveUp(f"{host} answered 410: it takes no more calls")
    if status_code in _WITH_RETRY_AFTER and re.fullmatch(r"\d{1,7}", retry_after):
        raise Retry(min(int(retry_after), LONGEST_WAIT_S), f"{host} answered {status_code}")
    raise ForwardError(f"{host} answered {status_code}")


def _host_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except (ValueError, AttributeError):
        host = None
    if not host or " " in url or not url.isprintable() or ".." in host:
        raise RegistrationError(
            f"forward({without_password(repr(url))}): expected an address such as "
            "https://crm.example.com/calls."
        )
    return host


def _key_of(secret: Any) -> bytes:
    if not isinstance(secret, str) or len(secret.strip()) < _LEAST_KEY:
        raise RegistrationError(
            f"forward(secret=...): give it a text of at least {_LEAST_KEY} characters."
        )
    if not secret.startswith(_BASE64):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(_BASE64), validate=True)
    except binascii.Error:
        key = b""
    if len(key) < _LEAST_KEY:
        raise RegistrationError(
            f"forward(secret=...): what follows {_BASE64} is not base64 of at least {_LEAST_KEY} "
            "bytes."
        )
    return key

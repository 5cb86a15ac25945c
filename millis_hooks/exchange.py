"""Sends one request to a public address, and says in plain words what went wrong on the way.

Nothing of the answer is shown to anybody: who asks learns its status, and whether it is ours.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .exceptions import AuthenticationError

if TYPE_CHECKING:
    from httpx2 import Client, HTTPError, Request

#: How long an answer may take to arrive, in seconds.
DEADLINE_S = 10.0
#: Our own answers to the webhooks are far smaller; the rest of a larger one is not read.
_MAX_ANSWER_BYTES = 64 * 1024
_REFUSED = b'{"error":"%s"}' % AuthenticationError.detail.encode()


@dataclass(frozen=True, slots=True)
class Told:
    """What a person is told: what was found, and what to do about it."""

    found: str
    advice: str


#: What may go wrong, by a short name. In braces: `host`, `prefix`, `header`, `status`.
TROUBLES: Mapping[str, Told] = {
    "no_name": Told(
        "DNS does not know the name {host}.",
        "Correct the address. A name that is new may need a few minutes to be known.",
    ),
    "link_local": Told(
        "{host} is an address of the network card alone: nothing was sent there.",
        "Give the address by which Millis reaches the service from outside.",
    ),
    "refused": Told(
        "{host} refuses the connection: nothing listens there.",
        "Start the service, and the tunnel or the proxy in front of it; look at the port.",
    ),
    "no_connection": Told(
        "No connection to {host} could be made in time.",
        "Look at the firewall, and at the port.",
    ),
    "late": Told(
        "{host} took the request and gives no answer.",
        "Look at the firewall and the proxy: it may forward to something that does not run.",
    ),
    "certificate": Told(
        "The certificate of {host} is not to be trusted, has run out, or is of another name.",
        "Have a certificate made that everybody trusts, as Let's Encrypt does.",
    ),
    "no_tls": Told(
        "{host} does not speak TLS.",
        "Have something in front of the service do TLS, or correct the port.",
    ),
    "no_http": Told(
        "What listens at {host} does not speak HTTP, or breaks off.",
        "Correct the port. The log of the proxy may say why.",
    ),
    "broken": Told(
        "The request to {host} came to nothing.",
        "Start the service, and see that DNS names it.",
    ),
    "redirect": Told(
        "{host} sends callers on to another address ({status}).",
        "Give Millis the address it sends them on to: a webhook may not be sent on.",
    ),
    "secret_lost": Told(
        "The service was reached, and the secret did not arrive with the request (401).",
        "Have the proxy pass the header {header} on as it is. Is it another service, with other "
        "secrets?",
    ),
    "guarded": Told(
        "Something in front of the service asks for a password of its own (401).",
        "Let requests to {prefix}/ pass without: the service asks for its secret itself.",
    ),
    "forbidden": Told(
        "Something in front of the service refuses the request (403).",
        "Let requests to {prefix}/ pass; Millis sends them from addresses that are not published.",
    ),
    "not_found": Told(
        "{host} answers, and knows no such path (404).",
        "Have the proxy pass {prefix}/ on as it is, and see that MILLIS_HOOKS_PREFIX is the same.",
    ),
    "too_many": Told(
        "Something in front of the service finds the requests too many (429).",
        "Take {prefix}/ out of its limits: a refused end-of-call is lost.",
    ),
    "gateway": Told(
        "The proxy at {host} answers, and does not reach the service ({status}).",
        "Start the service, and have the proxy forward to its address and port.",
    ),
    "cannot_store": Told(
        "The service was reached, and cannot take it now (503).",
        "Its log says why; /readyz and `millis-hooks doctor` may too.",
    ),
    "elsewhere": Told(
        "{host} answered 200, and nothing arrived here.",
        "The address is of another program, or of a service with another call log. Correct it.",
    ),
    "odd": Told(
        "{host} answered {status}, where 200 is due.",
        "The logs of the proxy and of the service may say why.",
    ),
}

_BY_STATUS = {
    401: "guarded",
    403: "forbidden",
    404: "not_found",
    429: "too_many",
    502: "gateway",
    503: "cannot_store",
    504: "gateway",
}
#: What a client's error comes from, the more exact first.
_BY_CAUSE: tuple[tuple[type[Exception], str], ...] = (
    (socket.gaierror, "no_name"),
    (ssl.SSLCertVerificationError, "certificate"),
    (ssl.SSLError, "no_tls"),
    (ConnectionRefusedError, "refused"),
)


@dataclass(frozen=True, slots=True)
class Exchange:
    """How a request ended: `trouble` names what went wrong, and is None where all went well."""

    trouble: str | None
    status_code: int | None = None
    latency_ms: float | None = None


def exchange(client: Client, request: Request, *, deadline_s: float = DEADLINE_S) -> Exchange:
    """Send one request and wait for its answer. Blocks.

    `client` must not follow redirects. How long DNS may take is for the system to say.
    """
    import httpx2

    began = time.perf_counter()
    try:
        response = client.send(request, stream=True)
        try:
            body = _beginning(response.iter_bytes(), began + deadline_s)
        finally:
            response.close()
    except httpx2.HTTPError as error:
        return Exchange(trouble_of(error))
    if body is None:
        return Exchange("late")
    latency_ms = (time.perf_counter() - began) * 1000
    return Exchange(_trouble_with(response.status_code, body), response.status_code, latency_ms)


def trouble_of(error: HTTPError) -> str:
    """Name what kept an answer from coming."""
    import httpx2

    causes = list(_causes(error))
    for kind, trouble in _BY_CAUSE:
        if any(isinstance(cause, kind) for cause in causes):
            return trouble
    if "CERTIFICATE" in str(error).upper():
        return "certificate"
    if isinstance(error, httpx2.ConnectTimeout):
        return "no_connection"
    if isinstance(error, httpx2.TimeoutException):
        return "late"
    return "no_http" if isinstance(error, httpx2.RemoteProtocolError) else "broken"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _beginning(chunks: Iterator[bytes], deadline: float) -> bytes | None:
    """Read what there is, up to a limit; None if it is still coming at the deadline."""
    body = b""
    for chunk in chunks:
        if time.perf_counter() > deadline:
            return None
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return body


def _trouble_with(status_code: int, body: bytes) -> str | None:
    if status_code == 200:
        return None
    if status_code == 401 and body == _REFUSED:
        return "secret_lost"
    if 300 <= status_code < 400:
        return "redirect"
    return _BY_STATUS.get(status_code, "odd")

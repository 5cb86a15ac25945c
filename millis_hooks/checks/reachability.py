"""Checks from outside: whether Millis can reach the service, and nobody else gets in.

Only what is harmless is sent: nothing that a handler would be called for.

Sends one request to a public address, and says in plain words what went wrong on the way.

Nothing of the answer is shown to anybody: who asks learns its status, and whether it is ours.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..exceptions import AuthenticationError
from . import Finding, bad, ok, warn
from .machine import judge

if TYPE_CHECKING:
    from httpx2 import Client, HTTPError, Request, Response

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


_SOON = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the service is; whole web addresses."""

    base: str
    prefetch: str
    end_of_call: str
    is_local: bool


def examine_reach(client: Client, at: Addresses, now: Callable[[], datetime]) -> Iterator[Finding]:
    """Knock at every door. `client` must not follow redirects."""
    alive = _get(client, f"{at.base}/healthz")
    if isinstance(alive, Finding):
        yield alive
        return
    answered_at = now()
    yield from _encryption(client, at, answered_at)
    yield _alive(at, alive)
    yield from _clock(alive, answered_at)
    yield _ready(_get(client, f"{at.base}/readyz"))
    yield from _doors(client, at)


def _get(client: Client, address: str, method: str = "GET") -> Response | Finding:
    import httpx2

    try:
        return client.request(method, address)
    except httpx2.HTTPError as error:
        trouble = trouble_of(error)
        told = TROUBLES[trouble]
        found = told.found.format(host=urlsplit(address).netloc)
        name = "certificate" if trouble == "certificate" else "reach"
        return bad(name, f"{found} ({error})", told.advice)


def _encryption(client: Client, at: Addresses, now: datetime) -> Iterator[Finding]:
    if urlsplit(at.base).scheme == "https":
        ends_at = _end_of_certificate(client, at)
        if ends_at is not None:
            yield examine_certificate(ends_at, now)
    elif not at.is_local:
        yield bad(
            "encryption",
            "http: the secret and every call travel in the clear",
            "Put something that does TLS in front, and give Millis https addresses.",
        )


def _end_of_certificate(client: Client, at: Addresses) -> datetime | None:
    import httpx2

    with (
        suppress(httpx2.HTTPError),
        client.stream("GET", f"{at.base}/healthz") as response,  # while the connection is open
    ):
        stream: Any = response.extensions.get("network_stream")
        tls = stream.get_extra_info("ssl_object") if stream is not None else None
        certificate = tls.getpeercert() if tls is not None else {}
        if "notAfter" in certificate:
            return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    return None


def examine_certificate(ends_at: datetime, now: datetime) -> Finding:
    """Look at the day on which a certificate ends."""
    found = f"good until {ends_at:%Y-%m-%d}"
    if ends_at - now < _SOON:
        return warn("certificate", found, "Have it renewed: Millis will not deliver without.")
    return ok("certificate", found)


def _alive(at: Addresses, response: Response) -> Finding:
    if response.is_redirect:
        return bad(
            "reach",
            f"{at.base} sends callers on to {response.headers.get('location')}",
            "Give Millis the address it sends them on to: a webhook may not be sent on.",
        )
    if response.status_code != 200 or "alive" not in response.text:
        return bad(
            "reach",
            f"{at.base}/healthz is answered with {response.status_code}, and not by this service",
            "Correct the address, or have the proxy pass this path to the service.",
        )
    return ok("reach", f"{at.base} is answered by the service")


def _clock(response: Response, now: datetime) -> Iterator[Finding]:
    try:
        told = parsedate_to_datetime(response.headers.get("date", ""))
    except ValueError:
        return
    told = told.replace(tzinfo=told.tzinfo or UTC)
    yield judge(told - now, "the clock of what answers there")


def _ready(response: Response | Finding) -> Finding:
    if isinstance(response, Finding):
        return response
    if response.status_code != 200:
        return bad(
            "readiness",
            f"/readyz is answered with {response.status_code}: {response.text[:200]}",
            "The log of the service says what keeps it from storing calls.",
        )
    return ok("readiness", "it can store calls and run handlers")


def _doors(client: Client, at: Addresses) -> Iterator[Finding]:
    """Knock without the secret. Where one door stands open, the other is left alone: behind it a
    call would be stored."""
    for name, method, address in (
        ("prefetch", "GET", at.prefetch),
        ("end of call", "POST", at.end_of_call),
    ):
        answer = _get(client, address, method)
        finding = answer if isinstance(answer, Finding) else _door(name, address, answer)
        yield finding
        if finding.state == "bad":
            return


def _door(name: str, address: str, response: Response) -> Finding:
    if response.status_code == 401:
        return ok(name, f"{address} is closed without the secret; try it: millis-hooks send")
    if response.status_code == 200:
        advice = "Set MILLIS_HOOKS_SECRETS, and unset MILLIS_HOOKS_INSECURE."
        return bad(name, f"{address} is open to everybody", advice)
    return bad(
        name,
        f"{address} is answered with {response.status_code} where 401 is due",
        "See that MILLIS_HOOKS_PREFIX is the service's, and that the proxy passes this path on.",
    )

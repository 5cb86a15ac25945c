"""Checks from outside: whether Millis can reach the service, and nobody else gets in.

Only what is harmless is sent: nothing that a handler would be called for.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..exchange import TROUBLES, trouble_of
from ..finding import Finding, bad, ok, warn
from .clock import judge

if TYPE_CHECKING:
    from httpx2 import Client, Response

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

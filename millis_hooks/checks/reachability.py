"""Checks over HTTP: whether the service can be reached, and is closed without its secret.

`check_reachability` sends only harmless requests; `send` sends any one, for the connection test of
the Setup page. Of an answer only its status is shown.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..environment.addresses import is_loopback
from ..settings import Hook, Settings
from ..webhooks import webhook_url
from . import CheckResult, bad, ok, warn

if TYPE_CHECKING:  # pages import this module, and few of them send requests
    from httpx2 import Client, HTTPError, Request, Response

#: How long to wait for each part of an answer, in seconds.
TIMEOUT_S = 10.0
_EXPIRES_SOON = timedelta(days=14)


class Problem(NamedTuple):
    """What went wrong with a request, and what to do about it."""

    message: str
    advice: str


#: By name. In braces: `host`, `prefix`, `header`, `status`.
PROBLEMS: Mapping[str, Problem] = {
    "unknown_host": Problem(
        "DNS does not know the name {host}.",
        "Correct the address. A new name may need a few minutes to be known.",
    ),
    "link_local": Problem(
        "{host} is a link-local address: nothing was sent there.",
        "Give the address by which Millis reaches the service from outside.",
    ),
    "no_connection": Problem(
        "No connection to {host}: nothing listens there, or a firewall is in the way.",
        "Start the service, and the tunnel or proxy in front of it; check the port and firewall.",
    ),
    "certificate": Problem(
        "The certificate of {host} is not trusted, has expired, or has another name.",
        "Get a publicly trusted certificate, for example from Let's Encrypt.",
    ),
    "no_answer": Problem(
        "{host} gives no answer in time, or one that is not HTTP, or not TLS.",
        "Check the port, and where the proxy forwards to; its log may say more.",
    ),
    "redirect": Problem(
        "{host} redirects to another address ({status}).",
        "Give Millis the address it redirects to: it follows no redirects.",
    ),
    "unauthorized": Problem(
        "The request was refused: the secret did not arrive, or is another service's (401).",
        "Let the proxy forward the header {header} unchanged, and ask for no password of its own "
        "below {prefix}/.",
    ),
    "blocked": Problem(
        "Something in front of the service refuses the request ({status}).",
        "Exempt {prefix}/ from its rules and limits: Millis' addresses are not published, and a "
        "refused end-of-call is lost.",
    ),
    "not_found": Problem(
        "{host} answers, but does not know the path (404).",
        "Let the proxy forward {prefix}/ unchanged, and check MILLIS_HOOKS_PREFIX.",
    ),
    "gateway": Problem(
        "The proxy at {host} answers, but does not reach the service ({status}).",
        "Start the service, and let the proxy forward to its address and port.",
    ),
    "unavailable": Problem(
        "The service was reached, but cannot store calls now (503).",
        "Its log says why; so may /readyz and `millis-hooks doctor`.",
    ),
    "other_service": Problem(
        "{host} answered 200, but nothing arrived here.",
        "The address belongs to another program, or to a service with another call log.",
    ),
    "unexpected": Problem(
        "{host} answered {status} instead of 200.",
        "The logs of the proxy and of the service may say why.",
    ),
}
_BY_STATUS = {
    401: "unauthorized",
    403: "blocked",
    404: "not_found",
    429: "blocked",
    502: "gateway",
    503: "unavailable",
    504: "gateway",
}


@dataclass(frozen=True, slots=True)
class SendResult:
    """How a request ended: `problem` is a name in `PROBLEMS`, None if it was answered 200."""

    problem: str | None
    status_code: int | None = None
    latency_ms: float | None = None


def send(client: Client, request: Request) -> SendResult:
    """Send a request and wait for the head of its answer. Blocks.

    `client` must not follow redirects.
    """
    import httpx2

    began = time.perf_counter()
    try:
        response = client.send(request, stream=True)
        response.close()
    except httpx2.HTTPError as error:
        return SendResult(problem_of(error))
    latency_ms = (time.perf_counter() - began) * 1000
    return SendResult(_status_problem(response.status_code), response.status_code, latency_ms)


def _status_problem(status_code: int) -> str | None:
    if status_code == 200:
        return None
    if 300 <= status_code < 400:
        return "redirect"
    return _BY_STATUS.get(status_code, "unexpected")


def problem_of(error: HTTPError) -> str:
    """Return the problem that kept an answer from arriving."""
    import httpx2

    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "unknown_host"
    if "CERTIFICATE" in str(error).upper() or any(
        isinstance(cause, ssl.SSLCertVerificationError) for cause in causes
    ):
        return "certificate"
    is_tls = any(isinstance(cause, ssl.SSLError) for cause in causes)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and not is_tls:
        return "no_connection"
    return "no_answer"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_reachability(
    client: Client, settings: Settings, base: str, now: Callable[[], datetime]
) -> Iterator[CheckResult]:
    """Check `/healthz`, `/readyz`, the path of pages, and both webhooks without the secret.

    `base` is the address of the service. `client` must not follow redirects.
    """
    alive = _get(client, f"{base}/healthz")
    if isinstance(alive, CheckResult):
        yield alive
        return
    yield from _encryption(alive, base, now())
    yield _alive(base, alive)
    yield _ready(_get(client, f"{base}/readyz"))
    yield from _path(client, base)
    yield from _closed(client, settings, base)


def _get(client: Client, url: str, method: str = "GET") -> Response | CheckResult:
    import httpx2

    try:
        with client.stream(method, url) as response:
            response.extensions["certificate"] = _certificate(response)  # while it is connected
            response.read()
            return response
    except httpx2.HTTPError as error:
        problem = problem_of(error)
        message, advice = PROBLEMS[problem]
        name = "certificate" if problem == "certificate" else "reach"
        return bad(name, f"{message.format(host=urlsplit(url).netloc)} ({error})", advice)


def _certificate(response: Response) -> dict[str, Any]:
    stream: Any = response.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    return (tls and tls.getpeercert()) or {}


def _encryption(response: Response, base: str, now: datetime) -> Iterator[CheckResult]:
    expires = response.extensions["certificate"].get("notAfter")
    if expires is not None:
        yield check_certificate(datetime.fromtimestamp(ssl.cert_time_to_seconds(expires), UTC), now)
    elif base.startswith("http:") and not is_loopback(urlsplit(base).hostname):
        yield bad(
            "encryption",
            "http: the secret and every call travel unencrypted",
            "Put a proxy with TLS in front, and give Millis https addresses.",
        )


def check_certificate(expires_at: datetime, now: datetime) -> CheckResult:
    """Check when a certificate expires."""
    message = f"valid until {expires_at:%Y-%m-%d}"
    if expires_at - now < _EXPIRES_SOON:
        return warn("certificate", message, "Renew it: Millis does not deliver without.")
    return ok("certificate", message)


def _alive(base: str, response: Response) -> CheckResult:
    if response.is_redirect:
        message = f"{base} redirects to {response.headers.get('location')}"
        return bad("reach", message, PROBLEMS["redirect"].advice)
    if response.status_code != 200 or "alive" not in response.text:
        return bad(
            "reach",
            f"{base}/healthz is answered with {response.status_code}, and not by this service",
            "Correct the address, or let the proxy forward this path to the service.",
        )
    return ok("reach", f"{base} is answered by the service")


def _ready(response: Response | CheckResult) -> CheckResult:
    if isinstance(response, CheckResult):
        return response
    if response.status_code != 200:
        return bad(
            "readiness",
            f"/readyz is answered with {response.status_code}: {response.text[:200]}",
            "The service's log says why it cannot store calls.",
        )
    return ok("readiness", "it can store calls and run handlers")


def _path(client: Client, base: str) -> Iterator[CheckResult]:
    """Check that pages know the path that a proxy may have removed: without it no link works."""
    path = urlsplit(base).path
    if not path:
        return
    answer = _get(client, f"{base}/calls")
    if isinstance(answer, CheckResult) or not answer.is_redirect:
        return
    location = answer.headers.get("location", "")
    if not urlsplit(location).path.startswith(f"{path}/"):
        yield warn(
            "path",
            f"{base}/calls leads to {location[:200]}: the pages do not know their path",
            f"Set MILLIS_HOOKS_PUBLIC_URL={base} for the service, and restart it.",
        )


def _closed(client: Client, settings: Settings, base: str) -> Iterator[CheckResult]:
    """Call both webhooks without the secret; after an open one stop, because an open end-of-call
    webhook would store a call."""
    hooks: tuple[tuple[Hook, str], ...] = (("prefetch", "GET"), ("end_of_call", "POST"))
    for hook, method in hooks:
        url = webhook_url(settings, hook, base)
        answer = _get(client, url, method)
        result = (
            answer
            if isinstance(answer, CheckResult)
            else _webhook(hook.replace("_", "-"), url, answer)
        )
        yield result
        if result.state == "bad":
            return


def _webhook(name: str, url: str, response: Response) -> CheckResult:
    if response.status_code == 401:
        return ok(name, f"{url} is closed without the secret; try it: millis-hooks send")
    if response.status_code == 200:
        advice = "Set MILLIS_HOOKS_SECRETS, and unset MILLIS_HOOKS_INSECURE."
        return bad(name, f"{url} is open to anyone", advice)
    return bad(
        name,
        f"{url} is answered with {response.status_code} instead of 401",
        "Check MILLIS_HOOKS_PREFIX, and that the proxy forwards this path to the service.",
    )

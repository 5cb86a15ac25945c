"""The connection test: a sample of each webhook, sent through the public address like Millis'."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..call_log.queries import Queries
from ..call_log.queries.requests import has_arrived, open_session
from ..checks import CheckResult, bad, ok
from ..checks.reachability import PROBLEMS, TIMEOUT_S, SendResult, send
from ..environment.addresses import is_loopback, leads_to_link_local
from ..protocol.samples import AGENT_ID, end_of_call_body, prefetch_query, push_id
from ..protocol.test_marks import TEST_SOURCE
from ..settings import Hook, Settings
from ..webhooks import Marker, secret_for, secret_header, webhook_url
from .formats import read_number

if TYPE_CHECKING:
    from httpx2 import Client, Request

#: By this metadata, handlers can recognize a test.
METADATA = {"millis_hooks_test": "setup"}

_PATIENCE_S, _PAUSE_S = 2.0, 0.05
_NAMES: Mapping[str, str] = {"prefetch": "Test prefetch", "end_of_call": "Test end-of-call"}


@dataclass(frozen=True, slots=True)
class WebhookTest:
    """The result of a test, and the session of the call that it made, if it arrived."""

    result: CheckResult
    session_id: str | None = None


class ConnectionTest:
    """Sends the tests; blocks until the result is known."""

    def __init__(
        self,
        settings: Settings,
        *,
        make_client: Callable[[str], Client] | None = None,
    ) -> None:
        """`make_client` returns an HTTP client for a host; it must not follow redirects."""
        self._settings = settings
        self._mark = Marker(settings, "test")
        self._make_client = make_client or _client

    def send(
        self, log: Queries, hook: Hook, base: str, agent_id: str | None, now: datetime
    ) -> dict[str, object]:
        """Send a test to the service at `base`, and return its result for `read_test`.

        An end-of-call ends the call of the last test prefetch, if that has not ended.
        """
        agent = agent_id or AGENT_ID
        session_id = self._session(log, hook, agent, now)
        try:
            with self._make_client(urlsplit(base).hostname or "") as client:
                result = send(client, self._request(client, hook, base, agent, session_id))
        except _LinkLocalError:
            result = SendResult("link_local")
        if result.problem is None and not _is_here(log, hook, session_id):
            result = SendResult("other_service", result.status_code)
        return _params(hook, result, session_id)

    def _session(self, log: Queries, hook: Hook, agent_id: str, now: datetime) -> str:
        unended = None
        if hook == "end_of_call":
            unended = log.ask(open_session, source=TEST_SOURCE, agent_id=agent_id)
        return unended or push_id(now)

    def _request(
        self, client: Client, hook: Hook, base: str, agent_id: str, session_id: str
    ) -> Request:
        secret = secret_for(self._settings, hook, agent_id)
        url = webhook_url(self._settings, hook, base)
        headers = secret_header(self._settings, secret)
        headers |= self._mark(session_id, url, headers.items())
        if hook == "prefetch":
            query = prefetch_query(session_id=session_id, agent_id=agent_id, metadata=METADATA)
            return client.build_request("GET", f"{url}?{query}", headers=headers)
        body = end_of_call_body(
            session_id=session_id, agent_id=agent_id, metadata=dict(METADATA), duration_s=1
        )
        headers["content-type"] = "application/json"
        return client.build_request("POST", url, headers=headers, content=body)


def read_test(query: Mapping[str, str], settings: Settings, host: str) -> WebhookTest | None:
    """Read the result of a test from an address; None if it has none."""
    name, result = _NAMES.get(query.get("tested", "")), query.get("result", "")
    if name is None or (result != "ok" and result not in PROBLEMS):
        return None
    if result == "ok":
        latency_ms = read_number(query.get("ms", ""), digits=6) or 0
        message = f"It arrived, and was answered 200 in {latency_ms:,} ms."
        return WebhookTest(ok(name, message), query.get("session"))
    values = {
        "host": host,
        "prefix": settings.prefix,
        "header": settings.secret_header,
        "status": read_number(query.get("status", ""), digits=3) or "no status",
    }
    message, advice = (text.format_map(values) for text in PROBLEMS[result])
    return WebhookTest(bad(name, message, advice))


def _params(hook: Hook, result: SendResult, session_id: str) -> dict[str, object]:
    if result.problem is None:
        ms = round(result.latency_ms or 0)
        return {"tested": hook, "result": "ok", "ms": ms, "session": session_id}
    status = {} if result.status_code is None else {"status": result.status_code}
    return {"tested": hook, "result": result.problem, **status}


def _is_here(log: Queries, hook: Hook, session_id: str) -> bool:
    """Wait until the test is stored: a prefetch is answered first, and stored a moment later."""
    pause = threading.Event()
    for _ in range(round(_PATIENCE_S / _PAUSE_S)):
        if log.ask(has_arrived, kind=hook, session_id=session_id):
            return True
        pause.wait(_PAUSE_S)
    return log.ask(has_arrived, kind=hook, session_id=session_id)


class _LinkLocalError(Exception):
    """A link-local address: never the service's, and clouds serve secrets there."""


def _client(host: str) -> Client:
    import httpx2

    if leads_to_link_local(host):
        raise _LinkLocalError
    # A proxy cannot reach a service on this machine.
    outside = not is_loopback(host)
    return httpx2.Client(timeout=TIMEOUT_S, trust_env=outside, follow_redirects=False)

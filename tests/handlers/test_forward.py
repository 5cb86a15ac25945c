"""`forward` posts calls to another system, signed as Standard Webhooks."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx2
import pytest

from millis_hooks import MillisHooks, RegistrationError, forward
from millis_hooks.testing import HooksClient

SECRET = "whsec_" + base64.b64encode(b"a key of 24 bytes exactly").decode()
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ADDRESS = "https://crm.example.com/calls"


class Crm(httpx2.AsyncBaseTransport):
    """Takes messages, and answers as it is told."""

    def __init__(self) -> None:
        self.messages: list[httpx2.Request] = []
        self.answer = httpx2.Response(204)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        self.messages.append(request)
        return self.answer


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.fixture
def client(crm: Crm) -> Iterator[HooksClient]:
    hooks = MillisHooks()
    hooks.on_end_of_call(forward(ADDRESS, secret=SECRET, transport=crm, now=lambda: NOW))
    with HooksClient(hooks) as client:
        yield client


def test_a_call_is_posted_with_a_signature_and_a_stable_id(client: HooksClient, crm: Crm) -> None:
    call = client.end_of_call(metadata={"tier": "gold"})
    assert call.run("forward to crm.example.com").state == "succeeded"
    (message,) = crm.messages
    identity, timestamp = message.headers["webhook-id"], message.headers["webhook-timestamp"]
    content = f"{identity}.{timestamp}.".encode() + message.content
    expected = base64.b64encode(hmac.digest(b"a key of 24 bytes exactly", content, "sha256"))
    assert message.headers["webhook-signature"] == f"v1,{expected.decode()}"
    assert (str(message.url), timestamp) == (ADDRESS, str(int(NOW.timestamp())))
    body = json.loads(message.content)
    assert (body["type"], body["data"]["metadata"]) == ("call.ended", {"tier": "gold"})
    assert body["data"]["session_id"] == call.call.session_id


HOSTILE = "https://evil.example/@{0}\r\nhost: evil.example"


def test_nothing_in_a_call_changes_where_it_goes(client: HooksClient, crm: Crm) -> None:
    client.end_of_call(
        session_id=HOSTILE, agent_id=HOSTILE, metadata={"url": HOSTILE, HOSTILE: HOSTILE}
    )
    (message,) = crm.messages
    assert (str(message.url), message.headers["host"]) == (ADDRESS, "crm.example.com")
    assert set(message.headers) <= SENT


#: The headers of a message.
SENT = {
    *("host", "accept", "accept-encoding", "connection", "user-agent", "content-length"),
    *("content-type", "webhook-id", "webhook-timestamp", "webhook-signature"),
}


def test_a_secret_in_the_address_stays_out_of_logs_and_runs(
    crm: Crm, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = MillisHooks()
    address = "https://user:hidden1@crm.example.com/hidden2?key=hidden3"
    hooks.on_end_of_call(forward(address, secret=SECRET, transport=crm))
    crm.answer = httpx2.Response(500, text="hidden4")
    with HooksClient(hooks) as client:
        run = client.end_of_call().run("forward to crm.example.com")
    assert "hidden" not in repr(run) + caplog.text
    with pytest.raises(RegistrationError) as refused:
        forward("ftp://user:hidden1@crm.example.com", secret=SECRET)
    assert "hidden" not in str(refused.value)


def test_a_dry_run_posts_nothing(client: HooksClient, crm: Crm) -> None:
    assert client.end_of_call(dry_run=True).run("forward to crm.example.com").state == "succeeded"
    assert crm.messages == []


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (httpx2.Response(500), "retrying"),
        (httpx2.Response(429, headers={"retry-after": "30"}), "retrying"),
        (
            httpx2.Response(503, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
            "retrying",
        ),
        (httpx2.Response(307, headers={"location": "http://169.254.169.254/"}), "retrying"),
        (httpx2.Response(410), "failed"),
    ],
)
def test_an_answer_that_is_not_2xx_is_retried_unless_the_address_is_gone(
    client: HooksClient, crm: Crm, answer: httpx2.Response, state: str
) -> None:
    crm.answer = answer
    assert client.end_of_call().run("forward to crm.example.com").state == state
    assert {str(message.url) for message in crm.messages} == {ADDRESS}


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("crm.example.com", SECRET),
        ("ftp://crm.example.com", SECRET),
        ("https://crm example.com", SECRET),
        ("https://crm..example.com", SECRET),
        (ADDRESS, " " * 16),
        (ADDRESS, "whsec_" + base64.b64encode(b"short").decode() + "===="),
        (ADDRESS, "short"),
        (ADDRESS, "whsec_not base64 at all"),
    ],
)
def test_a_wrong_address_or_secret_is_refused_at_import(url: str, secret: str) -> None:
    with pytest.raises(RegistrationError, match="forward"):
        forward(url, secret=secret)

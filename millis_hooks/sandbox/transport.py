"""How the sandbox sends requests: over HTTP, or into an ASGI application without sockets.

Also reads webhooks as an agent's configuration has them, an address, or an address with headers;
and sends what handlers of a sandbox call ask of Millis' API to the sandbox's own API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from ..environment.addresses import is_loopback
from ..exceptions import MillisHooksError, MillisUnreachableError
from ..handlers.made_up_calls import Answers, MillisRequest
from ..protocol.reading import Json

if TYPE_CHECKING:
    import httpx2
    from pydantic import SecretStr
    from starlette.types import ASGIApp

#: The address of an application in the same process; RFC 6761 reserves `.test`.
IN_PROCESS = "http://receiver.test"

#: The path of the sandbox's API, below the address of the application.
API_PATH = "/sandbox/api"

#: Longer answers are refused.
MAX_ANSWER_BYTES = 1024 * 1024

#: An agent's keys for the two webhooks.
PREFETCH, END_OF_CALL = "extra_prompt_webhook", "session_data_webhook"


class TransportError(MillisHooksError):
    """A request got no answer; the message says why in a few words."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. `query` is an encoded query string, appended to the one `url` may have."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    query: bytes = b""
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status_code: int
    body: bytes = b""
    content_type: str | None = None

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


class Transport(Protocol):
    """Sends requests."""

    async def send(self, request: Request, *, timeout_s: float) -> Answer:
        """Return the answer; raises `TransportError` if none comes within `timeout_s` seconds."""


@dataclass(frozen=True, slots=True)
class HttpTransport:
    """Sends through a client of httpx2; what is below `base` goes into the application."""

    client: httpx2.AsyncClient
    may_reach: Callable[[str], bool]
    base: str = IN_PROCESS

    async def send(self, request: Request, *, timeout_s: float) -> Answer:
        import httpx2

        try:
            url = self._url_of(request)
            if not self.may_reach(url.host):
                raise TransportError(f"{url.host} is not on this machine")
            # The client's own timeouts are for each read, and an ASGI application has none.
            async with asyncio.timeout(timeout_s):
                return await self._send(request, url)
        except TimeoutError:
            raise TransportError(f"no answer within {timeout_s:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, ValueError) as error:
            raise TransportError(str(error) or type(error).__name__) from error

    def _url_of(self, request: Request) -> httpx2.URL:
        import httpx2

        is_own = request.url.startswith(f"{self.base}/")
        url = httpx2.URL(IN_PROCESS + request.url[len(self.base) :] if is_own else request.url)
        if url.scheme not in {"http", "https"} or not url.host:
            raise TransportError("no http or https address")
        # As bytes: a hostile query must reach the receiver unrepaired.
        query = b"&".join(part for part in (url.query, request.query) if part)
        return url.copy_with(query=query or None)

    async def _send(self, request: Request, url: httpx2.URL) -> Answer:
        headers = [(name.encode(), value.encode()) for name, value in request.headers]
        async with self.client.stream(
            request.method, url, headers=headers, content=request.body
        ) as response:
            body = await _read(response)
        return Answer(response.status_code, body, response.headers.get("content-type"))


@asynccontextmanager
async def over_http(*, anywhere: bool = False) -> AsyncIterator[HttpTransport]:
    """Send over HTTP; to this machine only, unless `anywhere`. No redirect is followed."""
    async with _client(trust_env=anywhere) as client:
        yield HttpTransport(client, may_reach=lambda host: anywhere or is_loopback(host))


@asynccontextmanager
async def in_process(app: ASGIApp, *, anywhere: bool = False) -> AsyncIterator[HttpTransport]:
    """Send requests below `IN_PROCESS` straight into `app`, which is running; others over HTTP."""
    import httpx2

    own_host = httpx2.URL(IN_PROCESS).host
    mounts = {IN_PROCESS: httpx2.ASGITransport(app=app, raise_app_exceptions=False)}
    async with _client(mounts=mounts, trust_env=anywhere) as client:
        yield HttpTransport(
            client, may_reach=lambda host: host == own_host or anywhere or is_loopback(host)
        )


def _client(**options: Any) -> httpx2.AsyncClient:
    import httpx2

    # The callers limit how many sessions run at once.
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(timeout=None, limits=limits, **options)


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise TransportError(f"the answer is over {MAX_ANSWER_BYTES:,} bytes")
    return bytes(body)


class Webhook(NamedTuple):
    """The address of a webhook, and its configured headers."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()


def webhook_of(value: Json) -> Webhook | None:
    """Read `string | {url, headers?} | null`, Millis' `WebhookConfig`; None where there is none."""
    if isinstance(value, str):
        return Webhook(value) if value else None
    if not isinstance(value, dict) or not isinstance(value.get("url"), str) or not value["url"]:
        return None
    return Webhook(str(value["url"]), _headers_of(value.get("headers")))


def webhook_of_tool(tool: Mapping[str, Json]) -> Webhook | None:
    """Read the webhook of a function, Millis' `Function`; None where it has none."""
    url = tool.get("webhook")
    if not isinstance(url, str) or not url:
        return None
    return Webhook(url, _headers_of(tool.get("header")))


def _headers_of(value: Json) -> tuple[tuple[str, str], ...]:
    """Read an object of headers; values that are not text are left out."""
    if not isinstance(value, dict):
        return ()
    return tuple((name, text) for name, text in value.items() if isinstance(text, str))


def sandbox_answers(
    app: ASGIApp, key: SecretStr | None, loop: asyncio.AbstractEventLoop
) -> Answers:
    """Send requests to the sandbox of `app`, on the loop that serves it; `key` is the sandbox's."""
    key_sent = "any-key" if key is None else key.get_secret_value()

    async def send(request: MillisRequest) -> tuple[int, bytes]:
        import httpx2

        _, is_sandbox, rest = urlsplit(request.base_url).path.partition(API_PATH)
        # With the scenario or policy that the address names.
        path = f"{API_PATH}{rest}" if is_sandbox else API_PATH
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
            answer = await client.request(
                request.method,
                f"http://127.0.0.1{path}/{request.path}",
                params=dict(request.query),
                headers={"authorization": key_sent, "content-type": "application/json"},
                content=None if request.body is None else json.dumps(request.body),
            )
        return answer.status_code, answer.content

    async def answer(request: MillisRequest) -> tuple[int, bytes]:
        sending = send(request)
        try:
            # An empty context: a call that starts here does not belong to the handler's call.
            sent = Context().run(asyncio.run_coroutine_threadsafe, sending, loop)
        except RuntimeError:
            sending.close()
            stopped = "The service has stopped, and its sandbox with it."
            raise MillisUnreachableError(stopped) from None
        return await asyncio.wrap_future(sent)

    return answer

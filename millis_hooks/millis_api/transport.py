"""Requests to Millis' API: deadlines, retries, and the error for each kind of failure.

A request that changes nothing is retried. Any other is retried only if Millis cannot have acted
on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from ..environment.addresses import is_loopback, web_address
from ..exceptions import (
    ConfigError,
    MillisApiError,
    MillisBusyError,
    MillisKeyError,
    MillisNotFoundError,
    MillisRefusedError,
    MillisUnreachableError,
    PayloadError,
)
from ..handlers.made_up_calls import Answers, MillisRequest, is_under_pytest, who_answers
from ..protocol.reading import Json, read_json
from ..version import __version__

if TYPE_CHECKING:
    import ssl

    from httpx2 import AsyncBaseTransport, AsyncClient, Request, Response

Method: TypeAlias = Literal["GET", "POST", "PUT"]

#: A request and its retries take no longer than this, in seconds.
DEADLINE_S = 30.0
CONNECT_S = 5.0
ATTEMPTS = 4
#: The first wait before a retry, in seconds; it doubles each time, and up to as much is added.
FIRST_WAIT_S = 0.5
#: A longer `Retry-After`, in seconds, is left to the caller.
LONGEST_WAIT_S = 10.0
#: A hundred calls with their transcripts are a few megabytes.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_UNDER_PYTEST = (
    "Under pytest no request is sent to Millis: it would make real calls. Test the handler by the "
    "fixture `hooks_client`, whose `millis_requests` has the requests. To send them anyway, "
    "run pytest with -p no:millis_hooks."
)
_DETAIL_CHARS = 300
_TOO_MANY_REQUESTS = 429
_UNAVAILABLE = 503
#: Statuses of passing troubles of servers and proxies; None where no answer came.
_TRANSIENT = frozenset({None, 500, 502, _UNAVAILABLE, 504})


class Transport:
    """Sends requests with the API key."""

    def __init__(
        self, base_url: str, api_key: str, *, transport: AsyncBaseTransport | None = None
    ) -> None:
        """Raises `ConfigError` for a malformed key, and for an address without https."""
        self._key = _require_key(api_key)
        self._base_url = _require_private(base_url)
        self._transport = transport
        self._client: AsyncClient | None = None

    async def open(self) -> None:
        """Keep connections open from now on."""
        self._client = await self._make_client()

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def request(
        self,
        method: Method,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        is_repeatable: bool = False,
    ) -> Json:
        """Return Millis' answer. Raises `MillisApiError`. A GET is always repeatable."""
        content = None if body is None else _encode(body)
        answers = self.substitute()
        try:
            if answers is not None:
                value = None if content is None else from_json(content)
                made_up = MillisRequest(method, path, query or {}, value, self._base_url)
                return await self._answered_by(answers, made_up)
            async with self._a_client() as client:
                request = client.build_request(method, path, params=query, content=content)
                return await self._send(client, request, is_repeatable or method == "GET")
        except MillisUnreachableError as error:
            error.may_be_done = error.may_be_done and not (is_repeatable or method == "GET")
            raise

    def substitute(self) -> Answers | None:
        """Return what answers in place of Millis; None if requests are sent to Millis.

        Raises `MillisRefusedError` in a test that would send them.
        """
        if self._transport is not None and _is_in_process(self._transport):
            return None
        answers = who_answers()
        is_network = self._transport is None and not is_loopback(urlsplit(self._base_url).hostname)
        if answers is None and is_network and is_under_pytest():
            raise MillisRefusedError(_UNDER_PYTEST)
        return answers

    async def _answered_by(self, answers: Answers, request: MillisRequest) -> Json:
        try:
            async with asyncio.timeout(DEADLINE_S):
                status, answer = await answers(request)
        except TimeoutError:
            raise _late() from None
        return self._read(status, None, answer)

    async def _send(self, client: AsyncClient, request: Request, is_repeatable: bool) -> Json:
        """Send a request, with retries, until the deadline."""
        import stamina

        failure: MillisApiError | None = None
        attempts = stamina.retry_context(
            on=partial(_retry, is_repeatable=is_repeatable),
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=FIRST_WAIT_S,
            wait_jitter=FIRST_WAIT_S,
            wait_max=LONGEST_WAIT_S,
        )
        answer: Json = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for attempt in attempts:
                    failure = None
                    with attempt:
                        try:
                            answer = await self._send_once(client, request)
                        except MillisApiError as error:
                            failure = error
                            raise
        except TimeoutError:
            raise failure or _late() from None
        return answer

    async def _send_once(self, client: AsyncClient, request: Request) -> Json:
        import httpx2

        try:
            response = await client.send(request, stream=True)
            try:
                answer = await _receive(response)
            finally:
                await response.aclose()
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise MillisUnreachableError(f"Millis cannot be reached: {error}") from error
        except httpx2.HTTPError as error:
            broke = f"The connection to Millis broke: {type(error).__name__}."
            raise MillisUnreachableError(broke, may_be_done=True) from error
        return self._read(response.status_code, response.headers.get("retry-after"), answer)

    def _read(self, status: int, retry_after: str | None, answer: bytes) -> Json:
        """Return an answer as JSON; raises the error of a status that is not a success."""
        if status >= 300:
            raise _status_error(status, _detail(answer, self._key), _retry_after_s(retry_after))
        try:
            return read_json(answer) if answer.strip() else None
        except PayloadError as error:
            not_json = f"Millis answered with something that is {error}."
            raise MillisUnreachableError(not_json, may_be_done=True, status=status) from None

    @asynccontextmanager
    async def _a_client(self) -> AsyncIterator[AsyncClient]:
        if self._client is not None:
            yield self._client
            return
        async with await self._make_client() as client:
            yield client

    async def _make_client(self) -> AsyncClient:
        import httpx2

        parts = urlsplit(self._base_url)
        # It takes tenths of a second, in which the loop would stand still.
        tls = await asyncio.to_thread(_tls) if parts.scheme == "https" else False
        headers = {
            "authorization": self._key,
            "user-agent": f"millis-hooks/{__version__}",
            "content-type": "application/json",
        }
        return httpx2.AsyncClient(
            base_url=f"{self._base_url}/",
            headers=headers,
            verify=tls,
            timeout=httpx2.Timeout(DEADLINE_S, connect=CONNECT_S),
            # A redirect would carry the key to another address.
            follow_redirects=False,
            # A proxy cannot reach an emulator on this machine.
            trust_env=not is_loopback(parts.hostname),
            transport=self._transport,
        )


def _is_in_process(transport: AsyncBaseTransport) -> bool:
    """Tell whether a transport stays in the process, as those of tests do."""
    import httpx2

    return isinstance(transport, httpx2.MockTransport | httpx2.ASGITransport)


@cache
def _tls() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


def _retry(error: Exception, *, is_repeatable: bool) -> bool | float:
    """Return whether to retry after an error: True, or in how many seconds Millis asked for."""
    if isinstance(error, MillisBusyError):
        after_s = error.retry_after_s
        return True if after_s is None else after_s <= LONGEST_WAIT_S and after_s
    if isinstance(error, MillisUnreachableError):
        return error.status in _TRANSIENT and (is_repeatable or not error.may_be_done)
    return False


def _require_key(api_key: str) -> str:
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "The API key cannot be sent. Expected the private key of your account at Millis, alone "
            "and without Bearer."
        )
    return key


def _require_private(base_url: str) -> str:
    try:
        address = web_address(base_url)
    except ValueError as error:
        raise ConfigError(f"The address of Millis' API is wrong: {error}.") from None
    if address.startswith("http:") and not is_loopback(urlsplit(address).hostname):
        raise ConfigError("The address of Millis' API has to begin with https: the key goes there.")
    return address


def _encode(body: Mapping[str, object]) -> bytes:
    try:
        return to_json(dict(body))
    except ValueError as error:
        raise MillisRefusedError(
            f"What was to be sent is not JSON: {type(error).__name__}."
        ) from None


async def _receive(response: Response) -> bytes:
    answer = bytearray()
    async for chunk in response.aiter_bytes():
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            status = response.status_code
            raise MillisUnreachableError(
                "Millis' answer is too long.", may_be_done=True, status=status
            )
    return bytes(answer)


def _late() -> MillisUnreachableError:
    return MillisUnreachableError(
        f"Millis gave no answer within {DEADLINE_S:g} s.", may_be_done=True
    )


def _status_error(status: int, detail: str, after_s: float | None) -> MillisApiError:
    """Return the error of a status: with Millis' detail, and what to do."""
    answered = f"Millis answered {status}{detail and ': '}{detail}."
    if status in {401, 403}:
        advice = "Set MILLIS_HOOKS_API_KEY to the private key of your account, of this region."
        return MillisKeyError(f"{answered} {advice}", status=status)
    if status == 404:
        return MillisNotFoundError(answered, status=status)
    if status in {400, 405, 409, 413, 422}:
        return MillisRefusedError(answered, status=status)
    if status == _TOO_MANY_REQUESTS or (status == _UNAVAILABLE and after_s is not None):
        return MillisBusyError(f"{answered} Try later.", status=status, retry_after_s=after_s)
    return MillisUnreachableError(answered, may_be_done=True, status=status)


def _detail(answer: bytes, key: str) -> str:
    """Return the detail of an error, short, and without the key and the values that were sent."""
    from ..masking.policy import mask_text  # compiles its patterns

    try:
        value = read_json(answer)
    except PayloadError:
        return ""
    detail = value.get("detail") if isinstance(value, dict) else None
    text = _validation_errors(detail) if isinstance(detail, list) else detail
    if not isinstance(text, str):
        return ""
    return mask_text(" ".join(text.replace(key, "•").split()))[:_DETAIL_CHARS].rstrip(".")


def _validation_errors(details: list[Json]) -> str:
    """Return place and message of each error in a 422 of FastAPI's form."""
    errors = []
    for error in details:
        if isinstance(error, dict):
            location = error.get("loc")
            path = ".".join(map(str, location)) if isinstance(location, list) else ""
            errors.append(f"{path}: {error.get('msg')}" if path else str(error.get("msg")))
    return "; ".join(errors)


def _retry_after_s(header: str | None) -> float | None:
    """Read `Retry-After`, seconds or a date; None if it is neither."""
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0) if moment.tzinfo else None

"""One question to Millis and its answer: deadlines, what is asked again, and what went wrong.

Asked again is what changes nothing, and anything else only where Millis cannot have done it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
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

    from httpx2 import AsyncBaseTransport, AsyncClient, HTTPError, Request, Response

Method: TypeAlias = Literal["GET", "POST"]

#: Whoever asks waits no longer than this, in seconds, however often is asked again.
DEADLINE_S = 30.0
CONNECT_S = 5.0
#: How long is waited before each time that is asked again, in seconds, unless Millis says.
WAITS_S = (0.5, 1.0, 2.0)
#: Who is told to come back later than this is told so, in seconds.
LONGEST_WAIT_S = 10.0
#: A hundred calls with all that was said in them are a few megabytes.
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_UNDER_PYTEST = (
    "Under pytest Millis is not asked: it would make real calls. Test the handler by the fixture "
    "`hooks_client`, whose `millis_requests` has what would have been asked. To ask Millis all the "
    "same, run pytest with -p no:millis_hooks."
)
_SAID_CHARS = 300
_TOO_MANY = 429
_AWAY = 503
#: What servers and what stands in front of them answer while they are in trouble.
_PASSING = frozenset({_TOO_MANY, 500, 502, _AWAY, 504})


class _AgainError(Exception):
    """It may be asked again, after `after_s` seconds if Millis said how many."""

    def __init__(self, told: MillisApiError, after_s: float | None = None) -> None:
        self.told = told
        self.after_s = after_s


class MillisRequests:
    """Sends requests that carry the key."""

    def __init__(
        self, base_url: str, api_key: str, *, transport: AsyncBaseTransport | None = None
    ) -> None:
        """Raises `ConfigError` for a key that cannot be one, and for an open address."""
        self._key = _require_key(api_key)
        self._base_url = _require_private(base_url)
        self._transport = transport
        self._client: AsyncClient | None = None

    async def open(self) -> None:
        """Keep connections from now on."""
        self._client = await self._make_client()

    async def close(self) -> None:
        """Close them."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def ask(
        self,
        method: Method,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
        is_repeatable: bool = False,
    ) -> Json:
        """Return what Millis answers. Raises `MillisApiError`.

        A GET may be repeated in any case.
        """
        content = None if body is None else _encode(body)
        repeatable = is_repeatable or method == "GET"
        answers = self.answers_here()
        if answers is not None:
            read = None if content is None else from_json(content)
            asked = MillisRequest(method, path, query or {}, read, self._base_url)
            return await self._answered_here(answers, asked, repeatable)
        async with self._a_client() as client:
            request = client.build_request(method, path, params=query, content=content)
            return await self._ask_until(client, request, repeatable)

    def answers_here(self) -> Answers | None:
        """Return what answers in place of Millis; None where Millis is asked.

        Raises `MillisRefusedError` in a test that would ask Millis itself.
        """
        if self._transport is not None and _is_in_process(self._transport):
            return None
        answers = who_answers()
        is_network = self._transport is None and not is_loopback(urlsplit(self._base_url).hostname)
        if answers is None and is_network and is_under_pytest():
            raise MillisRefusedError(_UNDER_PYTEST)
        return answers

    async def _answered_here(
        self, answers: Answers, asked: MillisRequest, repeatable: bool
    ) -> Json:
        """Ask what answers in place of Millis, which has no need of the key."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                status, answer = await answers(asked)
        except TimeoutError:
            raise _late(may_be_done=not repeatable) from None
        try:
            return self._taken(status, None, answer, repeatable)
        except _AgainError as again:
            raise again.told from None

    async def _ask_until(self, client: AsyncClient, request: Request, repeatable: bool) -> Json:
        """Ask until it is answered, for good or for the time there is."""
        waits_s = iter(WAITS_S)
        told: MillisApiError | None = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    told = None
                    try:
                        return await self._ask_once(client, request, repeatable)
                    except _AgainError as again:
                        told = again.told
                        wait_s = next(waits_s, None)
                        if wait_s is None or (again.after_s or 0) > LONGEST_WAIT_S:
                            raise told from again.__cause__
                        await asyncio.sleep(wait_s if again.after_s is None else again.after_s)
        except TimeoutError:
            raise told or _late(may_be_done=not repeatable) from None

    async def _ask_once(self, client: AsyncClient, request: Request, repeatable: bool) -> Json:
        """Ask; raises `_AgainError` where that may be tried again."""
        import httpx2

        try:
            response = await client.send(request, stream=True)
            try:
                answer = await _read(response, may_be_done=not repeatable)
            finally:
                await response.aclose()
        except httpx2.HTTPError as error:
            raise _failed(error, repeatable) from error
        retry_after = response.headers.get("retry-after")
        return self._taken(response.status_code, retry_after, answer, repeatable)

    def _taken(self, status: int, retry_after: str | None, answer: bytes, repeatable: bool) -> Json:
        """Read an answer; raises what one that is no success comes to."""
        if status >= 300:
            raise self._refused(status, retry_after, answer, repeatable)
        try:
            return read_json(answer) if answer.strip() else None
        except PayloadError as error:
            raise MillisUnreachableError(
                f"Millis answered with something that is {error}.",
                may_be_done=not repeatable,
                status=status,
            ) from None

    def _refused(
        self, status: int, retry_after: str | None, answer: bytes, repeatable: bool
    ) -> Exception:
        """Return what an answer that is no success comes to."""
        after_s = _retry_after_s(retry_after)
        told = _told(status, _said(answer, self._key), after_s, may_be_done=not repeatable)
        not_done = status == _TOO_MANY or (status == _AWAY and after_s is not None)
        if not_done or (repeatable and status in _PASSING):
            return _AgainError(told, after_s)
        return told

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
        # Some tenths of a second, on a loop that others wait for.
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
            # Where it leads is for nobody else to say: the key would go there.
            follow_redirects=False,
            # A proxy for the outside cannot reach a stand-in on this machine.
            trust_env=not is_loopback(parts.hostname),
            transport=self._transport,
        )


def _is_in_process(transport: AsyncBaseTransport) -> bool:
    """Tell whether a transport cannot leave the process: one that tests give themselves."""
    import httpx2

    return isinstance(transport, httpx2.MockTransport | httpx2.ASGITransport)


@cache
def _tls() -> ssl.SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


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
            f"What was to be sent is no JSON: {type(error).__name__}."
        ) from None


async def _read(response: Response, *, may_be_done: bool) -> bytes:
    answer = bytearray()
    async for chunk in response.aiter_bytes():
        answer += chunk
        if len(answer) > MAX_ANSWER_BYTES:
            raise MillisUnreachableError(
                "Millis' answer is too long to be read.", may_be_done=may_be_done
            )
    return bytes(answer)


def _failed(error: HTTPError, repeatable: bool) -> Exception:
    """Return what a connection that failed comes to."""
    import httpx2

    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return _AgainError(MillisUnreachableError(f"Millis cannot be reached: {error}"))
    what = f"The connection to Millis broke: {type(error).__name__}."
    told = MillisUnreachableError(what, may_be_done=not repeatable)
    return _AgainError(told) if repeatable else told


def _late(*, may_be_done: bool) -> MillisUnreachableError:
    return MillisUnreachableError(
        f"Millis gave no answer within {DEADLINE_S:g} s.", may_be_done=may_be_done
    )


def _told(status: int, said: str, after_s: float | None, *, may_be_done: bool) -> MillisApiError:
    """Return the error for an answer: its status, what Millis said, and what to do."""
    answered = f"Millis answered {status}{said and ': '}{said}."
    if status in {401, 403}:
        advice = "Set MILLIS_HOOKS_API_KEY to the private key of your account, of this region."
        return MillisKeyError(f"{answered} {advice}", status=status)
    if status == 404:
        return MillisNotFoundError(answered, status=status)
    if status in {400, 405, 409, 413, 422}:
        return MillisRefusedError(answered, status=status)
    if status == _TOO_MANY or (status == _AWAY and after_s is not None):
        return MillisBusyError(f"{answered} Try later.", status=status, retry_after_s=after_s)
    return MillisUnreachableError(answered, may_be_done=may_be_done, status=status)


def _said(answer: bytes, key: str) -> str:
    """Return what an error says of itself, short and without what it was told."""
    from ..masking.policy import mask_text  # compiles its patterns

    try:
        value = read_json(answer)
    except PayloadError:
        return ""
    detail = value.get("detail") if isinstance(value, dict) else None
    said = _faults(detail) if isinstance(detail, list) else detail
    if not isinstance(said, str):
        return ""
    return mask_text(" ".join(said.replace(key, "•").split()))[:_SAID_CHARS].rstrip(".")


def _faults(details: list[Json]) -> str:
    """Return where and what the faults are, of a 422 as FastAPI makes it; not what was sent."""
    told = []
    for fault in details:
        if not isinstance(fault, dict):
            continue
        place = fault.get("loc")
        where = ".".join(map(str, place)) if isinstance(place, list) else ""
        told.append(f"{where}: {fault.get('msg')}" if where else str(fault.get("msg")))
    return "; ".join(told)


def _retry_after_s(header: str | None) -> float | None:
    """Read `Retry-After`: seconds, or a moment."""
    if not header:
        return None
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0) if moment.tzinfo else None

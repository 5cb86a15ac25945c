"""A client of Millis' HTTP API: starts calls, ends them, and reads Millis' call logs.

Source: the OpenAPI file in Millis' documentation, and what public clients of it handle. The key
goes out bare, without `Bearer`, as in Millis' own samples.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, TypedDict, Unpack
from urllib.parse import quote, urlsplit

from ..environment.addresses import is_loopback
from ..exceptions import (
    ConfigError,
    MillisNotFoundError,
    MillisRefusedError,
    MillisUnreachableError,
)
from ..handlers.made_up_calls import is_in_a_test
from ..handlers.retries import GiveUp
from ..protocol.call_status import UNDER_WAY
from ..protocol.events import EndOfCall
from ..protocol.reading import Json, WireModel, describe, identifier
from .transport import Transport

if TYPE_CHECKING:
    from types import TracebackType

    from httpx2 import AsyncBaseTransport

    from ..settings import Settings

Region: TypeAlias = Literal["us", "eu"]

BASE_URLS: dict[Region, str] = {
    "us": "https://api-west.millis.ai",
    "eu": "https://api-eu-west.millis.ai",
}
#: Millis gives at most so many entries at once.
PAGE_SIZE = 100
#: More pages are not read in one go: 100,000 calls.
MAX_PAGES = 1_000

#: The entries in an answer: of `/call-logs`, and of `/agents/{id}/call-histories`.
_LISTS = ("histories", "items")
#: What people write between the digits of a telephone number.
_BETWEEN = re.compile(r"[\s().\-/]")
_E164 = re.compile(r"\+[1-9][0-9]{5,14}")
_AGAIN = "Millis' call logs do not end: a page has only calls that were on an earlier one."
_ENDLESS = (
    f"Millis' call logs have more than {MAX_PAGES:,} pages. What was read until now is kept; begin "
    "with a later --since."
)
_NO_KEY = (
    "Millis' API needs a key. Set MILLIS_HOOKS_API_KEY to the private key of your account there."
)


class CallMayHaveBegunError(MillisUnreachableError, GiveUp):
    """Nobody knows whether Millis makes the call: look before you call anybody twice.

    Where a handler raises it, its run is parked, for a person to look.
    """

    def __init__(self, error: MillisUnreachableError) -> None:
        told = f"{error} The call may have begun."
        super().__init__(told, may_be_done=True, status=error.status)


class StartedCall(WireModel):
    """A call that Millis was asked to make; its end-of-call will have the same `session_id`."""

    session_id: str | None = None
    call_id: str | None = None


class LoggedCall(EndOfCall):
    """A call in Millis' call logs: as an `EndOfCall`, but it may not be over yet."""

    @property
    def is_over(self) -> bool:
        """Whether the call has ended, or never came about."""
        return self.call_status not in UNDER_WAY


@dataclass(frozen=True, slots=True)
class CallLogPage:
    """Some calls of Millis' call logs; of `unreadable` entries nobody knows which call they are."""

    calls: tuple[LoggedCall, ...]
    unreadable: int = 0


class CallLogFilters(TypedDict, total=False):
    """Which calls of Millis' call logs; times are aware."""

    since: datetime
    until: datetime
    agent_id: str
    call_status: str
    phone_number: str


class MillisApi:
    """Asks Millis, with one key and in one region; every method raises `MillisApiError`.

    It may be used on any event loop, and from plain functions by `asyncio.run`: each request then
    has a connection of its own. `async with` keeps connections open, on the loop it is entered on.

    For a call that Millis did not make, and in tests, Millis is not asked, and no key is sent: see
    `in_place_of_millis`.
    """

    def __init__(
        self,
        api_key: str,
        region: Region = "us",
        *,
        base_url: str | None = None,
        own_numbers: frozenset[str] = frozenset(),
        remember: Callable[[StartedCall], Awaitable[None]] | None = None,
        transport: AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url` stands in for the region's address, and `transport` for the network.

        `remember` is told of each call that was started. Raises `ConfigError` for a key that cannot
        be one, and for an address over which others could read it.
        """
        self.base_url = (base_url or BASE_URLS[region]).rstrip("/")
        self._transport = Transport(self.base_url, api_key, transport=transport)
        self._own_numbers = own_numbers
        self._remember = remember

    @property
    def is_stand_in(self) -> bool:
        """Whether something on this machine answers: calls there are rehearsed."""
        return is_loopback(urlsplit(self.base_url).hostname)

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        remember: Callable[[StartedCall], Awaitable[None]] | None = None,
    ) -> MillisApi:
        """Return the client that is set up; raises `ConfigError` if none is.

        A test needs no key, as Millis is not asked in it.
        """
        if settings.api_key is None and not is_in_a_test():
            raise ConfigError(_NO_KEY)
        return cls(
            settings.api_key.get_secret_value() if settings.api_key else "no-key-in-a-test",
            settings.api_region,
            base_url=settings.api_url,
            own_numbers=settings.own_numbers,
            remember=remember,
        )

    async def __aenter__(self) -> Self:
        await self._transport.open()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._transport.close()

    async def start_outbound_call(
        self,
        from_phone: str | None,
        to_phone: str | None,
        *,
        metadata: Mapping[str, Json] | None = None,
        include_metadata_in_prompt: bool | None = None,
        agent_id: str | None = None,
        agent_config: Mapping[str, Json] | None = None,
        session_continuation: Mapping[str, Json] | None = None,
    ) -> StartedCall:
        """Have Millis call `to_phone` from one of your agent's numbers.

        It is asked again only where it cannot have begun the call. Raises `CallMayHaveBegunError`
        where that is not known.
        """
        body = {
            "from_phone": _e164("from_phone", from_phone),
            "to_phone": _e164("to_phone", to_phone),
            "metadata": metadata,
            "include_metadata_in_prompt": include_metadata_in_prompt,
            "agent_id": agent_id,
            "agent_config": agent_config,
            "session_continuation": session_continuation,
        }
        try:
            started = await self._start("start_outbound_call", body)
        except MillisUnreachableError as error:
            if error.may_be_done:
                raise CallMayHaveBegunError(error) from error
            raise
        if self._remember is not None and self._transport.substitute() is None:
            await self._remember(started)
        return started

    async def register_call(
        self,
        *,
        agent_id: str | None = None,
        agent_config: Mapping[str, Json] | None = None,
        metadata: Mapping[str, Json] | None = None,
        include_metadata_in_prompt: bool | None = None,
        from_phone: str | None = None,
        to_phone: str | None = None,
        session_continuation: Mapping[str, Json] | None = None,
    ) -> StartedCall:
        """Announce a call that is then made by your own means."""
        return await self._start(
            "register_call",
            {
                "agent_id": agent_id,
                "agent_config": agent_config,
                "metadata": metadata,
                "include_metadata_in_prompt": include_metadata_in_prompt,
                "from_phone": from_phone,
                "to_phone": to_phone,
                "session_continuation": session_continuation,
            },
        )

    async def terminate(self, session_id: str, message: str | None = None) -> None:
        """End a call that is under way; the agent says `message` first, if there is one."""
        path = f"sessions/{_segment(session_id)}/terminate"
        body = {} if message is None else {"message": message}
        await self._transport.request("POST", path, body=body, is_repeatable=True)

    async def call_log(self, session_id: str) -> LoggedCall:
        """Return what Millis' call log has of a session; raises `MillisNotFoundError` if nothing.

        Of an agent that keeps no data there is nothing.
        """
        found = await self._transport.request("GET", f"call-logs/{_segment(session_id)}")
        if not isinstance(found, dict):
            raise _odd(found)
        told = identifier(found.get("session_id")) or session_id
        if told != session_id:
            raise MillisUnreachableError("Millis answered about another call than was asked about.")
        return self._logged({**found, "session_id": told})

    async def call_logs(self, **filters: Unpack[CallLogFilters]) -> AsyncIterator[LoggedCall]:
        """Go through the calls in Millis' call logs."""
        async for page in self.pages(**filters):
            for call in page.calls:
                yield call

    async def pages(self, **filters: Unpack[CallLogFilters]) -> AsyncIterator[CallLogPage]:
        """Go through Millis' call logs page by page, of at most `PAGE_SIZE` calls.

        Raises `MillisUnreachableError` where they do not end: where a page has no call that was not
        on one before, and after `MAX_PAGES`.
        """
        query = _query(filters)
        cursors: set[str] = set()
        known: set[str] = set()
        for _ in range(MAX_PAGES):
            answer = await self._call_logs(query)
            page = self._page(answer)
            yield page
            cursor = answer.get("next_cursor")
            if isinstance(cursor, bool) or not isinstance(cursor, int | float | str):
                return
            if str(cursor) in cursors or not (page.calls or page.unreadable):
                return  # it would go on for ever
            listed = {call.session_id for call in page.calls}
            if listed and listed <= known:
                raise MillisUnreachableError(_AGAIN)
            known |= listed
            cursors.add(str(cursor))
            query["start_after_ts"] = str(cursor)
        raise MillisUnreachableError(_ENDLESS)

    async def _call_logs(self, query: Mapping[str, str]) -> dict[str, Json]:
        try:
            answer = await self._transport.request("GET", "call-logs", query=query)
        except MillisNotFoundError as error:
            # So public clients say it answers where there is no call; FastAPI answers with these
            # two words where there is no such address.
            if "Not Found" in str(error):
                raise
            return {}
        if not isinstance(answer, dict):
            raise _odd(answer)
        return answer

    def _page(self, answer: Mapping[str, Json]) -> CallLogPage:
        entries = next((answer[name] for name in _LISTS if name in answer), [])
        if not isinstance(entries, list):
            raise _odd(entries)
        # A session known by its call_id would be another one here than its webhook is about.
        known = [
            entry for entry in entries if isinstance(entry, dict) and _session_in(entry) is not None
        ]
        return CallLogPage(tuple(map(self._logged, known)), len(entries) - len(known))

    def _logged(self, entry: dict[str, Json]) -> LoggedCall:
        return LoggedCall.from_raw(entry, own_numbers=self._own_numbers)

    async def _start(self, path: str, fields: Mapping[str, object]) -> StartedCall:
        body = {name: value for name, value in fields.items() if value is not None}
        answer = await self._transport.request("POST", path, body=body)
        return StartedCall.model_validate(answer if isinstance(answer, dict) else {})


def _query(filters: CallLogFilters) -> dict[str, str]:
    """Return the filters by Millis' names; its times are Unix seconds."""
    query: dict[str, object] = {"limit": PAGE_SIZE, **filters}
    for ours, theirs in (("since", "start_time"), ("until", "end_time")):
        moment = query.pop(ours, None)
        if isinstance(moment, datetime):
            query[theirs] = int(moment.timestamp())
    return {name: str(value) for name, value in query.items() if value is not None}


def _session_in(entry: Mapping[str, Json]) -> str | None:
    return identifier(entry.get("session_id"))


def _odd(answer: Json) -> MillisUnreachableError:
    return MillisUnreachableError(f"Millis answered with {describe(answer)}.")


def _segment(session_id: str) -> str:
    """Return an id as a part of an address: what would lead elsewhere is no session's."""
    if identifier(session_id) in {None, ".", ".."}:
        raise MillisNotFoundError("That is no id of a session.")
    return quote(session_id, safe="", errors="replace")


def _e164(name: str, phone: str | None) -> str:
    """Return a number as Millis takes it: a plus and digits."""
    plain = _BETWEEN.sub("", phone or "")
    if not _E164.fullmatch(plain):
        raise MillisRefusedError(f"{name} is no number such as +14155550134, with its country.")
    return plain

"""A client of Millis' HTTP API: starts calls, ends them, and reads Millis' call logs.

Source: the OpenAPI file in Millis' documentation, and what public clients of it handle. The key
is sent without `Bearer`, as in Millis' own samples.
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
from ..protocol.agent_names import names_at_millis
from ..protocol.call_status import UNDER_WAY
from ..protocol.events import EndOfCall
from ..protocol.fields import WireModel
from ..protocol.reading import Json, describe, identifier
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
#: Entries in an answer of Millis, at most.
PAGE_SIZE = 100
#: Pages that are read at most: 100,000 calls.
MAX_PAGES = 1_000

#: Where the entries stand in an answer of `/call-logs` and of `/agents/{id}/call-histories`.
_LISTS = ("histories", "items")
#: Characters between the digits of a phone number.
_SEPARATOR = re.compile(r"[\s().\-/]")
#: A number as Millis takes it.
E164 = re.compile(r"\+[1-9][0-9]{5,14}")
_REPEATED = "Millis' call logs do not end: a page has only calls of earlier pages."
_ENDLESS = (
    f"Millis' call logs have more than {MAX_PAGES:,} pages. The calls until here are kept; start "
    "with a later --since."
)
_NO_KEY = (
    "Millis' API needs a key. Set MILLIS_HOOKS_API_KEY to the private key of your account there."
)


class CallMayHaveBegunError(MillisUnreachableError, GiveUp):
    """It is unknown whether Millis makes the call: check before the same person is called twice.

    If a handler raises it, its run fails without a retry.
    """

    def __init__(self, error: MillisUnreachableError) -> None:
        super().__init__(f"{error} The call may have begun.", may_be_done=True, status=error.status)


class StartedCall(WireModel):
    """A call that was requested from Millis; its end-of-call has the same `session_id`."""

    session_id: str | None = None
    call_id: str | None = None


class LoggedCall(EndOfCall):
    """A call in Millis' call logs: an `EndOfCall` that may not be over yet."""

    @property
    def is_over(self) -> bool:
        """Whether the call has ended, or never came about."""
        return self.call_status not in UNDER_WAY


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent at Millis; `config` may have secrets of its webhooks and tools."""

    id: str
    name: str
    config: dict[str, Json]


@dataclass(frozen=True, slots=True)
class CallLogPage:
    """A page of Millis' call logs; `unreadable` counts the entries without a session id."""

    calls: tuple[LoggedCall, ...]
    unreadable: int = 0


class CallLogFilters(TypedDict, total=False):
    """Filters of Millis' call logs; times are aware."""

    since: datetime
    until: datetime
    agent_id: str
    call_status: str
    phone_number: str


class MillisApi:
    """A client with one key and region; every method raises `MillisApiError`.

    It works on any event loop, and in plain functions by `asyncio.run`: each request then has a
    connection of its own. `async with` keeps connections open, on the loop where it is entered.

    For a call that Millis did not make, and in tests, no request and no key is sent to Millis: see
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
        """Use `base_url` in place of the region's address, and `transport` in place of the network.

        `remember` is called with each started call. Raises `ConfigError` for a malformed key, and
        for an address without https.
        """
        self.base_url = (base_url or BASE_URLS[region]).rstrip("/")
        self._transport = Transport(self.base_url, api_key, transport=transport)
        self._own_numbers = own_numbers
        self._remember = remember

    @property
    def is_stand_in(self) -> bool:
        """Whether the address is an emulator on this machine, whose calls are not real."""
        return is_loopback(urlsplit(self.base_url).hostname)

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        remember: Callable[[StartedCall], Awaitable[None]] | None = None,
    ) -> MillisApi:
        """Return the client of these settings; raises `ConfigError` without an API key.

        Tests need no key, as no request is sent.
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

        Retried only if Millis cannot have started the call. Raises `CallMayHaveBegunError` if that
        is unknown.
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
        """Register a call that you then make yourself."""
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
        """End a call in progress; the agent first says `message`, if given."""
        path = f"sessions/{_segment(session_id)}/terminate"
        body = {} if message is None else {"message": message}
        await self._transport.request("POST", path, body=body, is_repeatable=True)

    async def agent_names(self) -> dict[str, str]:
        """Return the names of the account's agents by id, cleaned: anybody there may write them."""
        answer = await self._transport.request("GET", "agents")
        entries = answer.get("agents") if isinstance(answer, dict) else answer
        if not isinstance(entries, list):
            raise _unexpected(answer)
        agents = (entry for entry in entries if isinstance(entry, dict))
        return names_at_millis((identifier(each.get("id")), each.get("name")) for each in agents)

    async def agent(self, agent_id: str) -> Agent:
        """Return an agent with its configuration; raises `MillisNotFoundError` without."""
        answer = await self._transport.request("GET", f"agents/{_segment(agent_id)}")
        config = answer.get("config") if isinstance(answer, dict) else None
        name = answer.get("name") if isinstance(answer, dict) else None
        if not isinstance(config, dict) or not isinstance(name, str):
            raise _unexpected(answer)
        return Agent(agent_id, name, config)

    async def change_agent(self, agent_id: str, name: str, config: Mapping[str, Json]) -> None:
        """Write the keys of an agent's configuration that are given.

        Millis does not document whether the others stay: read the agent again.
        """
        path, body = f"agents/{_segment(agent_id)}", {"name": name, "config": config}
        await self._transport.request("PUT", path, body=body)

    async def call_log(self, session_id: str) -> LoggedCall:
        """Return the entry of a session in Millis' call logs; raises `MillisNotFoundError` without.

        Millis has no entries of agents that opted out of data collection.
        """
        entry = await self._transport.request("GET", f"call-logs/{_segment(session_id)}")
        if not isinstance(entry, dict):
            raise _unexpected(entry)
        answered_id = identifier(entry.get("session_id")) or session_id
        if answered_id != session_id:
            raise MillisUnreachableError(
                "Millis answered with another call than the requested one."
            )
        return self._logged({**entry, "session_id": answered_id})

    async def call_logs(self, **filters: Unpack[CallLogFilters]) -> AsyncIterator[LoggedCall]:
        """Iterate over the calls in Millis' call logs."""
        async for page in self.pages(**filters):
            for call in page.calls:
                yield call

    async def pages(self, **filters: Unpack[CallLogFilters]) -> AsyncIterator[CallLogPage]:
        """Iterate over the pages of Millis' call logs, each of at most `PAGE_SIZE` calls.

        Raises `MillisUnreachableError` if they do not end: for a page that has only calls of
        earlier pages, and after `MAX_PAGES`.
        """
        query = _query(filters)
        cursors: set[str] = set()
        seen: set[str] = set()
        for _ in range(MAX_PAGES):
            answer = await self._call_logs(query)
            page = self._page(answer)
            yield page
            cursor = answer.get("next_cursor")
            if isinstance(cursor, bool) or not isinstance(cursor, int | float | str):
                return
            if str(cursor) in cursors or not (page.calls or page.unreadable):
                return  # it would never end
            listed = {call.session_id for call in page.calls}
            if listed and listed <= seen:
                raise MillisUnreachableError(_REPEATED)
            seen |= listed
            cursors.add(str(cursor))
            query["start_after_ts"] = str(cursor)
        raise MillisUnreachableError(_ENDLESS)

    async def _call_logs(self, query: Mapping[str, str]) -> dict[str, Json]:
        try:
            answer = await self._transport.request("GET", "call-logs", query=query)
        except MillisNotFoundError as error:
            # By public clients, a 404 also means that there is no call. FastAPI answers with these
            # two words if there is no such address.
            if "Not Found" in str(error):
                raise
            return {}
        if not isinstance(answer, dict):
            raise _unexpected(answer)
        return answer

    def _page(self, answer: Mapping[str, Json]) -> CallLogPage:
        entries = next((answer[name] for name in _LISTS if name in answer), [])
        if not isinstance(entries, list):
            raise _unexpected(entries)
        # An entry with only a call_id cannot be matched with the session of its webhook.
        readable = [
            entry
            for entry in entries
            if isinstance(entry, dict) and identifier(entry.get("session_id")) is not None
        ]
        return CallLogPage(tuple(map(self._logged, readable)), len(entries) - len(readable))

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


def _unexpected(answer: Json) -> MillisUnreachableError:
    return MillisUnreachableError(f"Millis answered with {describe(answer)}.")


def _segment(session_id: str) -> str:
    """Return an id as a segment of a path. Raises `MillisNotFoundError` if it cannot be one."""
    if identifier(session_id) in {None, ".", ".."}:
        raise MillisNotFoundError("This is not an id of Millis.")
    return quote(session_id, safe="", errors="replace")


def _e164(name: str, phone: str | None) -> str:
    plain = _SEPARATOR.sub("", phone or "")
    if not E164.fullmatch(plain):
        raise MillisRefusedError(f"{name} is not a number with country code, such as +14155550134.")
    return plain

"""Connects the calls that come in by any of the doors, and knows those that are under way."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from starlette.types import ASGIApp

from ...environment.addresses import is_loopback
from ...exceptions import MillisHooksError
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ...protocol.samples import push_id
from ...settings import Settings
from ...webhooks import Marker, secret_for
from ...webhooks.agent_config import agent_config
from ..agent import CHARS_PER_S, Agent, ConversationTimeoutError, ScriptedAgent
from ..call_spec import SOCKET_WAYS, SessionSpec, Way
from ..clock import Clock, LiveClock
from ..scenario import Scenario, load_scenario
from ..session import Session, SessionResult
from ..transport import IN_PROCESS, Answer, Request, Transport, in_process
from .agent_schema import AgentConfig
from .custom_llm import CustomLlm, end
from .schemas import AgentChoice, Continuation, HistoriesQuery, LogQuery, check
from .store import Shelf
from .users import Caller, EchoAgent, LiveCaller, ScriptedCaller

logger = logging.getLogger("millis_hooks.sandbox")

#: More calls are not connected at the same time.
MAX_LIVE = 200
#: More calls that were registered and never came are not remembered.
MAX_REGISTERED = 1000

#: More of an agent's calls are not listed at once.
MAX_HISTORIES = 1000

#: The agent that any id stands for which was not made here: Millis knows it, the sandbox does not.
STAND_IN_CONFIG: Mapping[str, Json] = {
    "prompt": "You stand in for an agent of Millis'.",
    "first_message": "Hello, this is the sandbox. How may I help?",
}

#: How a call goes that nobody speaks in.
PHONE_SCENARIO = "outbound"

#: Numbers that are never reached. Source: those of the kind that Twilio has for tests.
UNREACHED: Mapping[str, CallStatus] = {
    "+15005550001": CallStatus.FAILED,
    "+15005550002": CallStatus.CANCELED,
    "+15005550003": CallStatus.BUSY,
    "+15005550004": CallStatus.NO_ANSWER,
}


class BusyError(MillisHooksError):
    """There are as many calls at once as the sandbox connects."""


class PacedClock(LiveClock):
    """Time that runs `pace` times as fast as life, for a script that somebody follows."""

    is_live = False  # a script's words take the time of speaking

    def __init__(self, pace: float) -> None:
        self._pace = pace

    def elapsed_s(self) -> float:
        return super().elapsed_s() * self._pace

    async def pass_time(self, seconds: float) -> None:
        await super().pass_time(seconds / self._pace)


@dataclass(frozen=True, slots=True)
class _AtHome:
    """Sends what goes to our own address straight into the application."""

    transport: Transport
    base: str

    async def send(self, request: Request, *, timeout_s: float) -> Answer:
        if request.url.startswith(f"{self.base}/"):
            request = replace(request, url=IN_PROCESS + request.url[len(self.base) :])
        return await self.transport.send(request, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """A call as a client asks for it."""

    way: Way
    choice: AgentChoice = field(default_factory=AgentChoice)
    metadata: Mapping[str, Json] = field(default_factory=dict)
    include_metadata_in_prompt: bool = False
    continuation: Continuation | None = None
    from_phone: str | None = None
    to_phone: str | None = None
    #: Goes as this shipped scenario has it.
    scenario: Scenario | None = None
    #: Settings of the policy that are others than usual, or than the scenario's.
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Live:
    """A call that is under way."""

    session: Session
    began_at: datetime
    task: asyncio.Task[SessionResult | None]


class Switchboard:
    """Starts sessions on the running event loop, knows the live ones, and keeps the ended ones."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        shelf: Shelf,
        now: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        self.shelf = shelf
        #: The calls under way, by session.
        self.live: dict[str, Live] = {}
        self._app = app
        self._settings = settings
        self._now = now
        self._rng = rng or random.SystemRandom()
        self._registered: dict[str, tuple[SessionSpec, Scenario | None]] = {}
        self._stack = AsyncExitStack()
        self._transport: Transport | None = None

    async def close(self) -> None:
        """Cut every call off."""
        await end([live.task for live in self.live.values()])
        await self._stack.aclose()

    async def spec_of(self, asked: SessionRequest, base: str) -> SessionSpec:
        """Return what a session is told that was asked for; `base` is our own address.

        Raises `UnprocessableError` for an agent made up for a session that is not complete.
        """
        planned = asked.scenario.spec if asked.scenario else SessionSpec()
        agent_id, config, notes = await self._agent_of(asked, planned.agent_config)
        number = asked.to_phone or ""
        return replace(
            planned,
            way=asked.way,
            agent_id=agent_id,
            agent_config={**self._webhooks(base, agent_id), **config},
            metadata=dict(asked.metadata),
            include_metadata_in_prompt=asked.include_metadata_in_prompt,
            policy=replace(planned.policy, **asked.policy),
            from_phone=asked.from_phone,
            to_phone=asked.to_phone,
            earlier=await self._earlier(asked.continuation),
            unreached=UNREACHED.get(number) or (planned.unreached if number else None),
            session_id=self.new_id(),
            call_id=self.new_id(),
            notes=notes,
        )

    def agent_for(
        self, spec: SessionSpec, scenario: Scenario | None, caller: LiveCaller | None
    ) -> Agent:
        """Return who talks: the team's model if the agent has one, else the script, else an echo.

        Without a `caller` there is a script in any case.
        """
        if scenario is None and caller is None:
            scenario = load_scenario(PHONE_SCENARIO)
        script = scenario.script if scenario else None
        url = spec.agent_config.get("custom_llm_websocket")
        if isinstance(url, str) and url:
            talks_to: Caller = ScriptedCaller(script) if script else caller or LiveCaller()
            speed = CHARS_PER_S * self._settings.sandbox_pace
            return CustomLlm(url, talks_to, may_reach=self._may_reach, chars_per_s=speed)
        return ScriptedAgent(script) if script else EchoAgent(caller or LiveCaller())

    async def connect(self, spec: SessionSpec, agent: Agent, base: str) -> Session:
        """Start a session; it runs on by itself. Raises `BusyError`."""
        if len(self.live) >= MAX_LIVE:
            raise BusyError
        transport = _AtHome(await self._transport_of(), base)
        mark = Marker(self._settings, "dry-run" if spec.dry_run else "sandbox")
        session = Session(
            spec, agent, transport, clock=self._clock(agent), rng=self._rng, mark=mark
        )
        task = asyncio.ensure_future(self._run(session))
        self.live[session.session_id] = Live(session, self._now(), task)
        return session

    def register(self, spec: SessionSpec, scenario: Scenario | None) -> None:
        """Remember a call that is to come in by its `call_id`."""
        while len(self._registered) >= MAX_REGISTERED:
            del self._registered[next(iter(self._registered))]
        self._registered[spec.call_id or ""] = (spec, scenario)

    def registered(self, call_id: str) -> tuple[SessionSpec, Scenario | None] | None:
        """Return a registered call, which can come in once."""
        return self._registered.pop(call_id, None)

    async def terminate(self, session_id: str, message: str | None) -> bool:
        """End a call as its API does, once the message was said; tells whether it was live."""
        live = self.live.get(session_id)
        if live is None:
            return False
        if message and live.session.conversation is not None:
            with suppress(ConversationTimeoutError):
                await live.session.conversation.say(message)
        live.session.hang_up(CallStatus.API_ENDED)
        return True

    async def call_logs(self, query: LogQuery) -> tuple[list[dict[str, Any]], float | None]:
        """Return a page of the call logs, and where the next one begins."""
        more = query.model_copy(update={"limit": query.limit + 1})
        entries = await asyncio.to_thread(self.shelf.calls, more)
        page = entries[: query.limit]
        return page, page[-1]["ts"] if len(entries) > query.limit else None

    async def call_function(
        self, session_id: str, name: str, params: Mapping[str, Json]
    ) -> str | None:
        """Have the agent of a call use a function; return what came of it, None without a call."""
        live = self.live.get(session_id)
        if live is None or live.session.conversation is None:
            return None
        try:
            return await live.session.conversation.call_function(name, params)
        except ConversationTimeoutError:
            return None

    async def histories(self, agent_id: str, query: HistoriesQuery) -> list[dict[str, Any]]:
        """Return an agent's calls, the newest first, with no null where Millis has none."""
        limit = min(max(query.limit, 0), MAX_HISTORIES)
        asked = LogQuery.model_construct(limit=limit, agent_id=agent_id, end_time=query.start_at)
        return [_history(entry) for entry in await asyncio.to_thread(self.shelf.calls, asked)]

    async def call_log(self, session_id: str) -> dict[str, Any] | None:
        """Return what the call logs have of a call, also of one that is under way."""
        return await asyncio.to_thread(self.shelf.call, session_id)

    def new_id(self) -> str:
        """Return an id of the kind that Millis gives."""
        return push_id(self._now(), bits=self._rng.getrandbits)

    async def _agent_of(
        self, asked: SessionRequest, planned: Mapping[str, Json]
    ) -> tuple[str | None, dict[str, Json], tuple[str, ...]]:
        """Return an agent's id, its configuration with the overrides of this call, and notes.

        Who names no agent means that of the number which calls; over the websocket, one made up
        for the session.
        """
        given = asked.choice.agent_config.as_given() if asked.choice.agent_config else {}
        agent_id = asked.choice.agent_id
        if agent_id is None and asked.from_phone is not None:
            agent_id = await asyncio.to_thread(self.shelf.agent_of_phone, asked.from_phone)
        if agent_id is None and asked.way in SOCKET_WAYS and asked.choice.agent_config is not None:
            check(AgentConfig, given, "data", "agent", "agent_config")
            return None, given, ()
        known = await asyncio.to_thread(self.shelf.agent, agent_id or "")
        if known is not None:
            return agent_id, {**known.config, **given}, ()
        return agent_id, {**(planned or STAND_IN_CONFIG), **given}, (_stand_in_note(agent_id),)

    def _webhooks(self, base: str, agent_id: str | None) -> dict[str, Any]:
        """Return our own webhooks: for agents that name none."""
        is_open = self._settings.model_copy(update={"insecure": True})
        return agent_config(is_open, base, agent_id=agent_id, choose=_any_secret)

    async def _earlier(self, continuation: Continuation | None) -> Sequence[Mapping[str, Json]]:
        if continuation is None:
            return ()
        kept: list[dict[str, Json]] = []
        if continuation.session_id is not None:
            kept = await asyncio.to_thread(self.shelf.messages, continuation.session_id)
        return (*kept, *(said.model_dump(exclude_unset=True) for said in continuation.messages))

    def _clock(self, agent: Agent) -> Clock:
        is_script = isinstance(agent, ScriptedAgent)
        return PacedClock(self._settings.sandbox_pace) if is_script else LiveClock()

    def _may_reach(self, host: str | None) -> bool:
        return self._settings.sandbox_anywhere or is_loopback(host)

    async def _transport_of(self) -> Transport:
        if self._transport is None:
            anywhere = self._settings.sandbox_anywhere
            self._transport = await self._stack.enter_async_context(
                in_process(self._app, anywhere=anywhere)
            )
        return self._transport

    async def _run(self, session: Session) -> SessionResult | None:
        try:
            await self._keep(session, _under_way(session, self._now()), ())
            result = await session.run()
            await self._keep(session, result.log_entry, _messages(session.spec, result.log_entry))
            return result
        except Exception:
            logger.exception("a call of the sandbox broke off")
            return None
        finally:
            del self.live[session.session_id]

    async def _keep(
        self, session: Session, entry: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep a call, unless its agent is not to. Source: opt_out_data_collection of agents."""
        privacy = session.spec.agent_config.get("privacy_settings")
        if isinstance(privacy, dict) and privacy.get("opt_out_data_collection") is True:
            return
        keep = partial(self.shelf.keep, entry, messages=messages, steps=session.log.as_json())
        await asyncio.to_thread(keep)


def _stand_in_note(agent_id: str | None) -> str:
    who = "No agent is named" if agent_id is None else f"No agent was made here as {agent_id}"
    return f"{who}: the sandbox's own, or that of the scenario, stands in for it."


def _history(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call as `call-histories` has it. Source: what `CallHistory` of agents requires."""
    usual: dict[str, Any] = {"duration": 0, "chat": "", "chars_used": 0, "cost_breakdown": []}
    return {**entry, **{key: value for key, value in usual.items() if entry.get(key) is None}}


def _any_secret(settings: Settings, hook: Any, agent_id: str | None) -> str | None:
    return secret_for(settings, hook, agent_id) or secret_for(settings, hook)


def _messages(spec: SessionSpec, entry: Mapping[str, Any]) -> list[Mapping[str, Json]]:
    """Return what a session that continues this one knows."""
    return [*spec.earlier, *json.loads(entry["chat"] or "[]")]


def _under_way(session: Session, now: datetime) -> dict[str, Any]:
    """Return what the call logs have of a call that is not over."""
    spec = session.spec
    voip = {"provider": "twilio", "from": spec.from_phone, "to": spec.to_phone}
    return {
        "session_id": session.session_id,
        "call_id": session.call_id,
        "agent_id": spec.agent_id,
        "agent_config": dict(spec.agent_config),
        "ts": now.timestamp(),
        "duration": None,
        "chat": None,
        "chars_used": None,
        "cost_breakdown": None,
        "voip": voip if spec.is_on_the_phone else None,
        "recording": None,
        "metadata": dict(spec.metadata),
        "function_calls": None,
        "call_status": CallStatus.IN_PROGRESS,
    }

"""Starts the sandbox's calls, and knows those that are under way."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Self

from starlette.types import ASGIApp

from ...environment.addresses import is_loopback
from ...exceptions import MillisHooksError
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ...protocol.samples import push_id
from ...settings import Settings
from ...webhooks import Marker, secret_for
from ...webhooks.agent_config import agent_config
from ..agent import (
    CHARS_PER_S,
    Agent,
    Caller,
    Clock,
    ConversationTimeoutError,
    EchoAgent,
    LiveCaller,
    ScriptedAgent,
    ScriptedCaller,
)
from ..scenario import SOCKET_WAYS, Scenario, SessionSpec, Way, load_scenario
from ..session import Session
from ..transport import IN_PROCESS, Answer, Request, Transport, in_process
from .agent_schema import AgentConfig
from .custom_llm import CustomLlm, cancel
from .schemas import AgentChoice, Attached, Continuation, check
from .store import Store

logger = logging.getLogger("millis_hooks.sandbox")

#: More calls are not connected at the same time.
MAX_LIVE = 200
#: Of calls that were registered and never came in, so many are remembered.
MAX_REGISTERED = 1000

#: The agent for ids that are not known here.
DEFAULT_CONFIG: Mapping[str, Json] = {
    "prompt": "You stand in for an agent of Millis'.",
    "first_message": "Hello, this is the sandbox. How may I help?",
}

#: The script of a phone call whose address names no scenario.
PHONE_SCENARIO = "outbound"

#: Numbers that are never reached, like those that Twilio has for tests.
UNREACHED: Mapping[str, CallStatus] = {
    "+15005550001": CallStatus.FAILED,
    "+15005550002": CallStatus.CANCELED,
    "+15005550003": CallStatus.BUSY,
    "+15005550004": CallStatus.NO_ANSWER,
}


class BusyError(MillisHooksError):
    """As many calls are under way as the sandbox connects."""


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
    #: The call goes as this one does.
    scenario: Scenario | None = None
    #: Settings of the policy, in place of the scenario's.
    policy: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, way: Way, choice: AgentChoice, attached: Attached, **others: Any) -> Self:
        """Return the request in the body of an API; `others` are further fields."""
        return cls(
            way=way,
            choice=choice,
            metadata=attached.metadata or {},
            include_metadata_in_prompt=bool(attached.include_metadata_in_prompt),
            **others,
        )


@dataclass(frozen=True, slots=True)
class LiveCall:
    """A call that is under way."""

    session: Session
    began_at: datetime
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _AppTransport:
    """Sends requests to our own address, `base`, straight into the application."""

    transport: Transport
    base: str

    async def send(self, request: Request, *, timeout_s: float) -> Answer:
        if request.url.startswith(f"{self.base}/"):
            request = replace(request, url=IN_PROCESS + request.url[len(self.base) :])
        return await self.transport.send(request, timeout_s=timeout_s)


class SessionManager:
    """Starts sessions on the running event loop, and stores them."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        store: Store,
        now: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        """`app` receives the webhooks of agents that name none."""
        self.store = store
        #: The calls under way, by session.
        self.live: dict[str, LiveCall] = {}
        self._app = app
        self._settings = settings
        self._now = now
        self._rng = rng or random.SystemRandom()
        self._registered: dict[str, tuple[SessionSpec, Scenario | None]] = {}
        self._stack = AsyncExitStack()
        self._transport: Transport | None = None

    async def close(self) -> None:
        """Cut every call off."""
        await cancel(call.task for call in self.live.values())
        await self._stack.aclose()

    async def spec_of(self, request: SessionRequest, base: str) -> SessionSpec:
        """Return the spec of a requested call; `base` is our own address.

        Raises `UnprocessableError` for an incomplete agent that is made up for a session.
        """
        planned = request.scenario.spec if request.scenario else SessionSpec()
        agent_id, config, notes = await self._agent_of(request, planned.agent_config)
        number = request.to_phone or ""
        return replace(
            planned,
            way=request.way,
            agent_id=agent_id,
            agent_config={**self._webhooks(base, agent_id), **config},
            metadata=dict(request.metadata),
            include_metadata_in_prompt=request.include_metadata_in_prompt,
            policy=replace(planned.policy, **request.policy),
            from_phone=request.from_phone,
            to_phone=request.to_phone,
            earlier=await self._earlier(request.continuation),
            unreached=UNREACHED.get(number) or (planned.unreached if number else None),
            session_id=self.new_id(),
            call_id=self.new_id(),
            notes=notes,
        )

    def agent_for(
        self,
        spec: SessionSpec,
        *,
        scenario: Scenario | None = None,
        caller: LiveCaller | None = None,
        replies: Iterable[str] = (),
    ) -> Agent:
        """Return the team's model if the agent has one, else one that follows a script or echoes.

        Without a `caller` there is always a script. An echo says `replies` first.
        """
        if scenario is None and caller is None:
            scenario = load_scenario(PHONE_SCENARIO)
        url = spec.agent_config.get("custom_llm_websocket")
        if isinstance(url, str) and url:
            talks_to: Caller = caller or LiveCaller()
            if scenario is not None:
                talks_to = ScriptedCaller(scenario.script)
            chars_per_s = CHARS_PER_S * self._settings.sandbox_pace
            return CustomLlm(url, talks_to, may_reach=self._may_reach, chars_per_s=chars_per_s)
        if scenario is not None:
            return ScriptedAgent(scenario.script)
        return EchoAgent(caller or LiveCaller(), replies)

    async def connect(self, spec: SessionSpec, agent: Agent, base: str) -> Session:
        """Start a session, which runs on by itself. Raises `BusyError`."""
        if len(self.live) >= MAX_LIVE:
            raise BusyError
        is_script = isinstance(agent, ScriptedAgent)
        session = Session(
            spec,
            agent,
            _AppTransport(await self._open_transport(), base),
            clock=Clock(self._settings.sandbox_pace) if is_script else Clock(1, is_live=True),
            rng=self._rng,
            mark=Marker(self._settings, "dry-run" if spec.dry_run else "sandbox"),
        )
        task = asyncio.ensure_future(self._run(session))
        self.live[session.session_id] = LiveCall(session, self._now(), task)
        return session

    def register(self, spec: SessionSpec, scenario: Scenario | None) -> None:
        """Remember a call that comes in later, by its `call_id`."""
        while len(self._registered) >= MAX_REGISTERED:
            del self._registered[next(iter(self._registered))]
        self._registered[spec.call_id or ""] = (spec, scenario)

    def registered(self, call_id: str) -> tuple[SessionSpec, Scenario | None] | None:
        """Return a registered call and forget it: it comes in once."""
        return self._registered.pop(call_id, None)

    async def terminate(self, session_id: str, message: str | None) -> bool:
        """End a call after saying the message; return whether it was under way."""
        call = self.live.get(session_id)
        if call is None:
            return False
        if message and call.session.conversation is not None:
            with suppress(ConversationTimeoutError):
                await call.session.conversation.speak("assistant", message)
        call.session.hang_up(CallStatus.API_ENDED)
        return True

    async def call_function(
        self, session_id: str, name: str, params: Mapping[str, Json]
    ) -> str | None:
        """Have the agent of a call use a function; return its result, None without such a call."""
        call = self.live.get(session_id)
        if call is None or call.session.conversation is None:
            return None
        try:
            return await call.session.conversation.call_function(name, params)
        except ConversationTimeoutError:
            return None

    def new_id(self) -> str:
        """Return an id like Millis' own."""
        return push_id(self._now(), bits=self._rng.getrandbits)

    async def _agent_of(
        self, request: SessionRequest, planned: Mapping[str, Json]
    ) -> tuple[str | None, dict[str, Json], tuple[str, ...]]:
        """Return an agent's id, its configuration with the overrides of this call, and notes.

        Without an id it is the agent of the calling number; over the websocket, one made up for
        the session.
        """
        choice = request.choice
        overrides = choice.agent_config.as_given() if choice.agent_config else {}
        agent_id = choice.agent_id
        if agent_id is None and request.from_phone is not None:
            agent_id = await asyncio.to_thread(self.store.agent_of_phone, request.from_phone)
        if agent_id is None and request.way in SOCKET_WAYS and choice.agent_config is not None:
            check(AgentConfig, overrides, "data", "agent", "agent_config")
            return None, overrides, ()
        agent = await asyncio.to_thread(self.store.agent, agent_id or "")
        if agent is not None:
            return agent_id, {**agent.config, **overrides}, ()
        who = "No agent is named" if agent_id is None else f"No agent was made here as {agent_id}"
        note = f"{who}: the sandbox's own, or that of the scenario, stands in for it."
        return agent_id, {**(planned or DEFAULT_CONFIG), **overrides}, (note,)

    def _webhooks(self, base: str, agent_id: str | None) -> dict[str, Any]:
        """Return our own webhooks, for agents that name none."""
        is_open = self._settings.model_copy(update={"insecure": True})
        return agent_config(is_open, base, agent_id=agent_id, choose=_any_secret)

    async def _earlier(self, continuation: Continuation | None) -> Sequence[Mapping[str, Json]]:
        if continuation is None:
            return ()
        messages: list[dict[str, Json]] = []
        if continuation.session_id is not None:
            messages = await asyncio.to_thread(self.store.messages, continuation.session_id)
        return (*messages, *(each.model_dump(exclude_unset=True) for each in continuation.messages))

    def _may_reach(self, host: str | None) -> bool:
        return self._settings.sandbox_anywhere or is_loopback(host)

    async def _open_transport(self) -> Transport:
        if self._transport is None:
            anywhere = self._settings.sandbox_anywhere
            self._transport = await self._stack.enter_async_context(
                in_process(self._app, anywhere=anywhere)
            )
        return self._transport

    async def _run(self, session: Session) -> None:
        try:
            await self._store(session, _live_entry(session, self._now()), ())
            await session.run()
            # A session that continues this one knows also what this one continued.
            chat = json.loads(str(session.log_entry["chat"] or "[]"))
            await self._store(session, session.log_entry, [*session.spec.earlier, *chat])
        except Exception:
            logger.exception("a call of the sandbox broke off")
        finally:
            del self.live[session.session_id]

    async def _store(
        self, session: Session, entry: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]
    ) -> None:
        """Store the call unless the agent opted out of data collection."""
        privacy = session.spec.agent_config.get("privacy_settings")
        if isinstance(privacy, dict) and privacy.get("opt_out_data_collection") is True:
            return
        put = partial(self.store.put_call, entry, messages=messages, steps=session.log.as_json())
        await asyncio.to_thread(put)


def _any_secret(settings: Settings, hook: Any, agent_id: str | None) -> str | None:
    return secret_for(settings, hook, agent_id) or secret_for(settings, hook)


def _live_entry(session: Session, now: datetime) -> dict[str, Any]:
    """Return what the call logs have of a call that is under way."""
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

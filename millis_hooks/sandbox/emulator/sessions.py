"""Starts the sandbox's calls, knows those that are under way, and stores them.

Calls of the API and of the websocket, and those that a person holds by typing on the sandbox's
page. Everything here happens on one event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hmac import compare_digest
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from ...environment.addresses import is_loopback
from ...exceptions import MillisHooksError
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ...protocol.samples import push_id
from ...settings import Settings
from ...webhooks import Marker
from ...webhooks.agent_config import agent_config
from ..agents import Caller, CustomLlm, cancel, echoing, scripted
from ..scenario import SOCKET_WAYS, Ending, Role, Scenario, SessionSpec, Way, load_scenario
from ..session import CHARS_PER_S, Agent, ConversationTimeoutError, Session
from ..steps import Clock
from ..transport import HttpTransport, in_process
from .schemas import AgentChoice, AgentConfig, CallFields, Continuation, check
from .store import Rehearsal, Store

logger = logging.getLogger("millis_hooks.sandbox")

#: More calls are not connected at the same time.
MAX_LIVE = 200
#: The most registered calls that are remembered while they have not come in.
MAX_REGISTERED = 1000
#: Seconds after which a call of the page ends by itself.
LONGEST_S = 3600.0
#: Seconds without activity after which a call of the page ends by itself.
ABANDONED_S = 600.0
#: How many seconds a form waits for the agent's answer before it shows the call without it.
PATIENCE_S = 1.0

#: The agent for ids that are not known here.
DEFAULT_CONFIG: Mapping[str, Json] = {
    "prompt": "You replace an agent of Millis in the sandbox.",
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


@dataclass(frozen=True, slots=True)
class Address:
    """What the address of a request says: our own, and how calls go there."""

    base: str
    scenario: Scenario | None = None
    #: Settings of the policy, in place of the scenario's.
    policy: Mapping[str, Any] = field(default_factory=dict)


def address_of(connection: HTTPConnection) -> Address:
    """Return the address of a request or a websocket, as the application has put it there."""
    address: Address = connection.scope["state"]["address"]
    return address


@dataclass(frozen=True, slots=True)
class LiveCall:
    """A call that is under way; `about` is what else the sandbox's page has to know of it."""

    session: Session
    caller: Caller | None
    began_at: datetime
    about: Mapping[str, Any]
    task: asyncio.Task[None]


class SessionManager:
    """Starts sessions on the running event loop, and stores them."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        store: Store,
        now: Callable[[], datetime],
        tools: Callable[[str | None], list[dict[str, Json]]],
    ) -> None:
        """`app` receives the webhooks of agents that name none, and has these `tools`."""
        self.store = store
        #: The calls under way, by session.
        self.live: dict[str, LiveCall] = {}
        self._abandoning: dict[str, asyncio.TimerHandle] = {}
        self._app = app
        self._settings = settings
        self._now = now
        self._tools = tools
        self._registered: dict[str, tuple[SessionSpec, Scenario | None]] = {}
        self._stack = AsyncExitStack()
        self._transport: HttpTransport | None = None

    async def close(self) -> None:
        """Cut every call off, and store it as far as it went."""
        await cancel(call.task for call in self.live.values())
        await self._stack.aclose()

    def accepts(self, key: str | None) -> bool:
        """Return whether a client's key, private or public, is right: any is, unless one is set."""
        expected = self._settings.sandbox_key
        if expected is None:
            return bool(key)
        given = (key or "").encode("utf-8", "replace")
        return compare_digest(given, expected.get_secret_value().encode())

    async def spec_of(
        self,
        way: Way,
        choice: AgentChoice,
        call: CallFields,
        address: Address,
        *,
        from_phone: str | None = None,
        to_phone: str | None = None,
    ) -> SessionSpec:
        """Return the spec of a requested call.

        Raises `UnprocessableError` for an incomplete agent that is made up for a session.
        """
        planned = address.scenario.spec if address.scenario else SessionSpec()
        agent_id, config, notes = await self._agent_of(way, choice, from_phone)
        if notes:
            config = {**(planned.agent_config or DEFAULT_CONFIG), **config}
        never_reached = UNREACHED.get(to_phone or "") or (planned.unreached if to_phone else None)
        return replace(
            planned,
            way=way,
            agent_id=agent_id,
            agent_config={**self._webhooks(address.base, agent_id), **config},
            metadata=call.metadata or {},
            include_metadata_in_prompt=bool(call.include_metadata_in_prompt),
            policy=replace(planned.policy, **address.policy),
            from_phone=from_phone,
            to_phone=to_phone,
            earlier=await self._earlier(call.session_continuation),
            unreached=never_reached,
            session_id=self.new_id(),
            call_id=self.new_id(),
            notes=notes,
        )

    async def start(
        self,
        spec: SessionSpec,
        base: str,
        *,
        scenario: Scenario | None = None,
        caller: Caller | None = None,
        agent: Agent | None = None,
        replies: Iterable[str] = (),
        about: Mapping[str, Any] | None = None,
    ) -> Session:
        """Start a session, which runs on by itself. Raises `BusyError`.

        Without an `agent` it is the team's model if the spec has one, else one that follows a
        script, or that says `replies` and echoes. Without a `caller` there is always a script.
        """
        if len(self.live) >= MAX_LIVE:
            raise BusyError("As many calls are under way as the sandbox connects.")
        if agent is None and caller is None and scenario is None:
            scenario = load_scenario(PHONE_SCENARIO)
        talking = Caller(scenario.script) if scenario else caller or Caller()
        agent, clock = agent or self._model_of(spec, talking), Clock(1, is_live=True)
        if agent is None and scenario is not None:
            agent, clock = scripted(scenario.script), Clock(self._settings.sandbox_pace)
        session = Session(
            spec,
            agent or echoing(talking, replies),
            replace(await self._open_transport(), base=base),
            clock=clock,
            mark=Marker(self._settings, "dry-run" if spec.dry_run else "sandbox"),
            declared=self._settings.variables,
        )
        task = asyncio.ensure_future(self._run(session))
        call = LiveCall(session, caller, self._now(), about or {}, task)
        self.live[session.session_id] = call
        return session

    async def rehearse(
        self, spec: SessionSpec, base: str, *, replies: Iterable[str], about: Mapping[str, Any]
    ) -> str:
        """Start a call of the page, and return its session id; raises `BusyError`.

        The agent says `replies` before it echoes. `about` is stored with the call.
        """
        caller = Caller()
        session = await self.start(spec, base, caller=caller, replies=replies, about=about)
        end = session.hang_up
        asyncio.get_running_loop().call_later(LONGEST_S, end, CallStatus.TIMEOUT)
        self._touch(session)
        await self._until_awaited(self.live[session.session_id])
        return session.session_id

    def _touch(self, session: Session) -> None:
        """Let the call continue for `ABANDONED_S` from now."""
        if before := self._abandoning.pop(session.session_id, None):
            before.cancel()
        self._abandoning[session.session_id] = asyncio.get_running_loop().call_later(
            ABANDONED_S, session.hang_up, CallStatus.TIMEOUT
        )

    def register(self, spec: SessionSpec, scenario: Scenario | None) -> None:
        """Remember a call that comes in later, by its `call_id`."""
        while len(self._registered) >= MAX_REGISTERED:
            del self._registered[next(iter(self._registered))]
        self._registered[spec.call_id or ""] = (spec, scenario)

    def registered(self, call_id: str) -> tuple[SessionSpec, Scenario | None] | None:
        """Return a registered call and forget it: it comes in once."""
        return self._registered.pop(call_id, None)

    async def say(self, session_id: str, text: str, role: Role = "user") -> bool:
        """Have caller or agent say something; return whether the call was at that point.

        What the caller says is answered, if that takes no longer than `PATIENCE_S`.
        """
        call = self._talking(session_id)
        if call is None or call.caller is None:
            return False
        if role == "user":
            call.caller.say(text)
            await self._until_awaited(call)
        else:
            with suppress(ConversationTimeoutError):
                await call.session.speak(role, text)
        return True

    async def call_function(
        self, session_id: str, name: str, params: Mapping[str, Json]
    ) -> str | None:
        """Have the agent of a call use a function; return its result, None without such a call."""
        call = self._talking(session_id)
        if call is None:
            return None
        with suppress(ConversationTimeoutError):
            return await call.session.call_function(name, params)
        return None

    async def terminate(self, session_id: str, message: str | None) -> bool:
        """End a call after saying the message; return whether it was under way."""
        call = self.live.get(session_id)
        if call is None or call.session.has_ended:
            return False
        if message and call.session.is_talking:
            with suppress(ConversationTimeoutError):
                await call.session.speak("assistant", message)
        call.session.hang_up(CallStatus.API_ENDED)
        return True

    async def end(self, session_id: str, ending: Ending, **changes: Any) -> bool:
        """Hang up, with changes to the spec; return whether the call was under way."""
        call = self.live.get(session_id)
        if call is None:
            return False
        call.session.change(**changes)
        call.session.hang_up(ending.call_status, ending.error_message)
        await asyncio.wait({call.task}, timeout=PATIENCE_S)
        return True

    def rehearsal(self, session_id: str) -> Rehearsal | None:
        """Return the steps of a call until now, or as stored. Blocks; for any thread."""
        call = self.live.get(session_id)
        if call is None:
            return self.store.rehearsal(session_id)
        return Rehearsal(call.about, call.session.log.as_json())

    def new_id(self) -> str:
        """Return an id like Millis' own."""
        return push_id(self._now())

    def _talking(self, session_id: str) -> LiveCall | None:
        call = self.live.get(session_id)
        if call is None or not call.session.is_talking:
            return None
        if session_id in self._abandoning:
            self._touch(call.session)
        return call

    async def _until_awaited(self, call: LiveCall) -> None:
        """Wait until the agent waits for the caller, or the call is over, but not for long."""
        if call.caller is not None:
            waiting = asyncio.ensure_future(call.caller.is_awaited.wait())
            either = asyncio.FIRST_COMPLETED
            await asyncio.wait({waiting, call.task}, timeout=PATIENCE_S, return_when=either)
            waiting.cancel()

    async def _agent_of(
        self, way: Way, choice: AgentChoice, from_phone: str | None
    ) -> tuple[str | None, dict[str, Json], tuple[str, ...]]:
        """Return an agent's id, its configuration with the overrides of this call, and notes.

        Without an id it is the agent of the calling number; over the websocket, one made up for
        the session. There are notes if another agent has to stand in for it.
        """
        overrides = choice.agent_config.as_given() if choice.agent_config else {}
        agent_id = choice.agent_id
        if agent_id is None and from_phone is not None:
            agent_id = await asyncio.to_thread(self.store.agent_of_phone, from_phone)
        if agent_id is None and way in SOCKET_WAYS and choice.agent_config is not None:
            check(AgentConfig, overrides, "data", "agent", "agent_config")
            return None, overrides, ()
        agent = await asyncio.to_thread(self.store.agent, agent_id or "")
        if agent is not None:
            return agent_id, {**agent.config, **overrides}, ()
        reason = "The call names no agent" if agent_id is None else f"There is no agent {agent_id}"
        note = f"{reason}: the sandbox's own agent, or that of the scenario, answers."
        return agent_id, overrides, (note,)

    def _webhooks(self, base: str, agent_id: str | None) -> dict[str, Any]:
        is_open = self._settings.model_copy(update={"insecure": True})
        tools = self._tools(agent_id)
        return agent_config(is_open, base, agent_id=agent_id, tools=tools)

    async def _earlier(self, continuation: Continuation | None) -> Sequence[Mapping[str, Json]]:
        if continuation is None:
            return ()
        messages: list[dict[str, Json]] = []
        if continuation.session_id is not None:
            messages = await asyncio.to_thread(self.store.messages, continuation.session_id)
        return (*messages, *(each.model_dump(exclude_unset=True) for each in continuation.messages))

    def _model_of(self, spec: SessionSpec, caller: Caller) -> Agent | None:
        url = spec.agent_config.get("custom_llm_websocket")
        if not isinstance(url, str) or not url:
            return None
        settings = self._settings
        model = CustomLlm(
            url,
            caller,
            may_reach=lambda host: settings.sandbox_anywhere or is_loopback(host),
            chars_per_s=CHARS_PER_S * settings.sandbox_pace,
        )
        return model.converse

    async def _open_transport(self) -> HttpTransport:
        if self._transport is None:
            anywhere = self._settings.sandbox_anywhere
            self._transport = await self._stack.enter_async_context(
                in_process(self._app, anywhere=anywhere)
            )
        return self._transport

    async def _run(self, session: Session) -> None:
        storing = asyncio.ensure_future(self._store_steps(self.live[session.session_id]))
        try:
            await session.run()
        except Exception:
            logger.exception("a sandbox call failed")
        finally:
            await storing
            del self.live[session.session_id]
            if abandoning := self._abandoning.pop(session.session_id, None):
                abandoning.cancel()

    async def _store_steps(self, call: LiveCall) -> None:
        """Store the call in progress, because the process may end before the call does."""
        log, changed = call.session.log, asyncio.Event()
        log.listen(lambda _: changed.set())
        is_over = False
        while not is_over:
            is_over = log.is_closed
            changed.clear()
            await self._store(call)
            if not is_over:
                await changed.wait()

    async def _store(self, call: LiveCall) -> None:
        session, entry = call.session, call.session.log_entry()
        # A session that continues this one knows also what this one continued.
        messages = [*session.spec.earlier, *json.loads(str(entry["chat"] or "[]"))]
        privacy = session.spec.agent_config.get("privacy_settings")
        if isinstance(privacy, dict) and privacy.get("opt_out_data_collection") is True:
            if not call.about:
                return
            entry, messages = {**entry, "call_status": None}, []  # only for the page
        rehearsal = Rehearsal(call.about, session.log.as_json())
        try:
            put = partial(self.store.put_call, entry, rehearsal, messages=messages)
            await asyncio.to_thread(put)
        except Exception:  # of any kind: the call continues
            logger.warning("a call of the sandbox could not be stored; it continues", exc_info=True)

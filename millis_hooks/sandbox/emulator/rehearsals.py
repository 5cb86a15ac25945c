"""Calls that a person holds by typing on the sandbox's page.

The other side is the lines of a scenario, an echo, or the team's model. Everything here happens on
the event loop of the sessions.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ..agent import Conversation, ConversationTimeoutError, LiveCaller
from ..scenario import Ending, Role, SessionSpec
from ..session import Session
from .sessions import LiveCall, SessionManager
from .store import Rehearsal

logger = logging.getLogger("millis_hooks.sandbox")

#: After so many seconds a call ends by itself.
LONGEST_S = 3600.0
#: How many seconds a form waits for the agent's answer before it shows the call without it.
PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Held:
    session: Session
    caller: LiveCaller
    about: Mapping[str, Any]


class Rehearsals:
    """Begins the calls of the page, passes on what is typed, and stores each step."""

    def __init__(self, sessions: SessionManager) -> None:
        self.sessions = sessions
        self._held: dict[str, _Held] = {}
        self._storing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until the calls, which have been cut off, are stored."""
        await asyncio.gather(*self._storing, return_exceptions=True)

    async def start(
        self,
        spec: SessionSpec,
        base: str,
        *,
        replies: Sequence[str] = (),
        about: Mapping[str, Any],
    ) -> str:
        """Begin a call and return its session id; raises `BusyError`.

        The agent says `replies` before it echoes. `about` is stored with the call.
        """
        caller = LiveCaller()
        agent = self.sessions.agent_for(spec, caller=caller, replies=replies)
        session = await self.sessions.connect(spec, agent, base)
        held = _Held(session, caller, about)
        self._held[session.session_id] = held
        task = asyncio.ensure_future(self._store_steps(held))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        end = session.hang_up
        asyncio.get_running_loop().call_later(LONGEST_S, end, CallStatus.TIMEOUT)
        await self._until_awaited(held)
        return session.session_id

    async def say(self, session_id: str, text: str, role: Role = "user") -> bool:
        """Have caller or agent say something; return whether the call was at that point.

        What the caller says is answered, if that takes no longer than `PATIENCE_S`.
        """
        held, conversation = self._talking(session_id)
        if held is None or conversation is None:
            return False
        if role == "user":
            held.caller.say(text)
            await self._until_awaited(held)
        else:
            with suppress(ConversationTimeoutError):
                await conversation.speak(role, text)
        return True

    async def call_function(self, session_id: str, name: str, params: Mapping[str, Json]) -> bool:
        """Have the agent call a function; return whether the call was at that point."""
        _, conversation = self._talking(session_id)
        if conversation is None:
            return False
        with suppress(ConversationTimeoutError):
            await conversation.call_function(name, params)
        return True

    async def end(self, session_id: str, ending: Ending, **changes: Any) -> bool:
        """Hang up, with changes to the spec; return whether the call was under way."""
        call = self.live(session_id)
        if call is None:
            return False
        call.session.change(**changes)
        call.session.hang_up(ending.call_status, ending.error_message)
        await asyncio.wait({call.task}, timeout=PATIENCE_S)
        return True

    def live(self, session_id: str) -> LiveCall | None:
        """Return a call that is under way, also one that was not begun on the page."""
        return self.sessions.live.get(session_id)

    def rehearsal(self, session_id: str) -> Rehearsal | None:
        """Return the steps of a call: as they are until all are stored, then as stored.

        Blocks; for any thread.
        """
        held, call = self._held.get(session_id), self.live(session_id)
        if held is not None:
            return Rehearsal(held.about, held.session.log.as_json())
        if call is not None:
            return Rehearsal({}, call.session.log.as_json())
        return self.sessions.store.rehearsal(session_id)

    def _talking(self, session_id: str) -> tuple[_Held | None, Conversation | None]:
        held = self._held.get(session_id)
        return held, held.session.conversation if held else None

    async def _store_steps(self, held: _Held) -> None:
        """Store the call with each of its steps: the process may end before the call does."""
        try:
            async for _ in held.session.log.follow():
                rehearsal = Rehearsal(held.about, held.session.log.as_json())
                await asyncio.to_thread(self._put, held.session.session_id, rehearsal)
        finally:
            del self._held[held.session.session_id]

    def _put(self, session_id: str, rehearsal: Rehearsal) -> None:
        try:
            self.sessions.store.put_rehearsal(session_id, rehearsal)
        except sqlite3.Error:
            logger.warning("a call of the sandbox could not be stored; it goes on", exc_info=True)

    async def _until_awaited(self, held: _Held) -> None:
        """Wait until the agent waits for the caller, or the call is over, but not for long."""
        waiting = asyncio.ensure_future(held.caller.is_awaited.wait())
        call = self.live(held.session.session_id)
        over = {call.task} if call else set()
        await asyncio.wait(
            {waiting, *over}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()

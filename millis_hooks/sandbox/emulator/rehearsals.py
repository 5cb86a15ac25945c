"""Calls that a person holds by typing: the other side is a script's lines, an echo or a model.

What is typed reaches the session at once and in order, so whoever asks afterwards sees it there.
Everything here happens on the event loop that the sessions run on.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ..agent import Agent, Conversation, ConversationTimeoutError, Ending, Role
from ..call_spec import SessionSpec
from ..session import Session
from .sessions import Live, Switchboard
from .store import Note, Notebook
from .users import LiveCaller, echo

logger = logging.getLogger("millis_hooks.sandbox")

#: A call that nobody ends is over after so long.
LONGEST_S = 3600.0
#: How long is waited for what usually comes at once, before there is an answer without it.
PATIENCE_S = 1.0


class TypedCall:
    """Greets, and lets others do the talking until one of them hangs up."""

    def __init__(self, replies: Sequence[str] = ()) -> None:
        #: Set when the caller can begin.
        self.is_ready = asyncio.Event()
        self._replies = iter(replies)

    async def converse(self, conversation: Conversation) -> Ending:
        """Hold the line."""
        await conversation.greet()
        self.is_ready.set()
        await conversation.pause(LONGEST_S)
        return Ending(CallStatus.TIMEOUT)

    def reply(self, heard: str) -> str:
        """Return the next line of the script, or an echo when there is none left."""
        return next(self._replies, None) or echo(heard)


@dataclass(frozen=True, slots=True)
class _Held:
    session: Session
    agent: Agent
    #: Where the team's own model talks, who it talks to.
    caller: LiveCaller | None
    about: Mapping[str, Any]


@dataclass(slots=True)
class Rehearsals:
    """Begins the calls of the page, passes on what is typed, and notes what happens."""

    switchboard: Switchboard
    notebook: Notebook
    patience_s: float = PATIENCE_S
    _held: dict[str, _Held] = field(default_factory=dict)
    _notes: set[asyncio.Task[None]] = field(default_factory=set)

    async def close(self) -> None:
        """Note what there is to note of the calls, which have been cut off, and close the file."""
        await asyncio.gather(*self._notes, return_exceptions=True)
        await asyncio.to_thread(self.notebook.close)

    async def start(
        self,
        spec: SessionSpec,
        base: str,
        *,
        replies: Sequence[str] = (),
        about: Mapping[str, Any],
    ) -> str:
        """Begin a call and return its session; raises `BusyError`. `about` is noted with it."""
        caller = LiveCaller() if spec.agent_config.get("custom_llm_websocket") else None
        typed = TypedCall(replies)
        agent = typed if caller is None else self.switchboard.agent_for(spec, None, caller)
        session = await self.switchboard.connect(spec, agent, base)
        self._held[session.session_id] = _Held(session, agent, caller, about)
        task = asyncio.ensure_future(self._write_down(session, about))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)
        if caller is None:
            await self._first_of(typed.is_ready.wait(), session.session_id)
        return session.session_id

    async def say(self, session_id: str, text: str, role: Role = "user") -> bool:
        """Have one of the two say something; the caller is answered. Tells whether it could be."""
        held = self._held.get(session_id)
        conversation = held.session.conversation if held else None
        if held is None or conversation is None:
            return False
        with suppress(ConversationTimeoutError):
            if held.caller is not None and role == "user":
                held.caller.say(text)
            else:
                await conversation.speak(role, text)
                if role == "user" and isinstance(held.agent, TypedCall):
                    await conversation.say(held.agent.reply(text))
        return True

    async def call_function(self, session_id: str, name: str, params: Mapping[str, Json]) -> bool:
        """Have the agent call a function; tells whether it could."""
        held = self._held.get(session_id)
        conversation = held.session.conversation if held else None
        if conversation is None:
            return False
        with suppress(ConversationTimeoutError):
            await conversation.call_function(name, params)
        return True

    async def end(self, session_id: str, ending: Ending, **changes: Any) -> bool:
        """Hang up, with another end of the specification; tells whether the call was live."""
        live = self.live(session_id)
        if live is None:
            return False
        live.session.change(**changes)
        live.session.hang_up(ending.call_status, ending.error_message)
        await asyncio.wait({live.task}, timeout=self.patience_s)
        return True

    def live(self, session_id: str) -> Live | None:
        """Return a call that is under way, whichever door it came in by."""
        return self.switchboard.live.get(session_id)

    def note(self, session_id: str) -> Note | None:
        """Return what is known of a call: of one that is under way as it stands, else as noted.

        Blocks; for any thread.
        """
        held, live = self._held.get(session_id), self.live(session_id)
        if live is not None:
            return Note(held.about if held else {}, live.session.log.as_json())
        kept = self.notebook.get(session_id)
        if kept is not None:
            return kept
        steps = self.switchboard.shelf.steps(session_id)
        return Note({}, steps) if steps else None

    async def _write_down(self, session: Session, about: Mapping[str, Any]) -> None:
        """Note the call with each of its steps: the process may end before it does."""
        try:
            async for _ in session.log.follow():
                steps = session.log.as_json()
                await asyncio.to_thread(self._put, session.session_id, about, steps)
        finally:
            del self._held[session.session_id]

    def _put(self, session_id: str, about: Mapping[str, Any], steps: list[dict[str, Any]]) -> None:
        try:
            self.notebook.put(session_id, about, steps)
        except sqlite3.Error:
            logger.warning("a call of the sandbox could not be noted; it goes on", exc_info=True)

    async def _first_of(self, moment: Awaitable[object], session_id: str) -> None:
        """Wait for a moment of a call, unless the call is over before, but not for long."""
        waiting = asyncio.ensure_future(moment)
        live = self.live(session_id)
        over = {live.task} if live else set()
        await asyncio.wait(
            {waiting, *over}, timeout=self.patience_s, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()

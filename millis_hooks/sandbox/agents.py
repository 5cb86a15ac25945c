"""Agents that follow a script or echo, the team's own model, and callers: a person or a script.

The team's model is a server of Millis' `custom_llm_websocket` protocol. One `stream_id` is one
answer, and one turn of the conversation with all its white space. A piece is spoken as soon as a
sentence is complete, or when the model says `flush`.

Source: docs.millis.ai, integration/custom-llm. What it does not say: a greeting that does not come
and an answer that does not end are waited for `answer_timeout_s`; a transfer ends the call; what
was not heard yet when the caller interrupts is never said.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..exceptions import MillisHooksError, PayloadError
from ..protocol.call_status import CallStatus
from ..protocol.reading import Json, describe, finite, read_json
from .scenario import Ending, Line, Script, ToolUse
from .session import CHARS_PER_S, Agent, Session

if TYPE_CHECKING:  # few calls have a model
    from websockets.asyncio.client import ClientConnection

#: The function under which a transfer is logged. Source: the agent's `call_transfer`.
TRANSFER = "call_transfer"

#: The close code for a violation of the protocol. Source: RFC 6455.
VIOLATION = 1008

OPEN_TIMEOUT_S = 10.0

#: How long a scripted caller waits for a greeting, and for an answer that does not end.
ANSWER_TIMEOUT_S = 10.0

#: Where a sentence is complete: its mark and the quotes that close after it, before white space.
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s|\Z)|[。！？؟।\n]""")

_TYPES = frozenset({"stream_response", "end_call", "transfer_call"})


def scripted(script: Script) -> Agent:
    """Return an agent that follows a script in order, whatever is answered."""

    async def converse(session: Session) -> Ending:
        await session.greet()
        for turn in script.turns:
            if isinstance(turn, ToolUse):
                await session.call_function(turn.name, turn.params)
            else:
                await session.pause(turn.pause_s)
                await session.speak(turn.role, turn.text)
        if script.ending.duration_s is not None:
            await session.pause(script.ending.duration_s - session.lasted_s)
        return script.ending

    return converse


def echoing(caller: Caller, replies: Iterable[str] = ()) -> Agent:
    """Return an agent that answers with `replies`, and then with what it hears: it has no model."""
    left = iter(replies)

    async def converse(session: Session) -> Ending:
        await session.greet()
        while (turn := await caller.next()) is not None:
            if isinstance(turn, ToolUse):
                result = await session.call_function(turn.name, turn.params)
                await session.speak("assistant", f"{turn.name} answered: {result}")
            elif turn.is_final:
                await session.speak("user", turn.text)
                await session.speak("assistant", next(left, None) or echo(turn.text))
        return caller.ending

    return converse


def echo(text: str) -> str:
    """Return what the agent without a model answers."""
    return f"You said: {text}"


class Caller:
    """The other side of a conversation: a person, by `say`, or the caller of a script."""

    def __init__(self, script: Script | None = None) -> None:
        #: Whether the caller lets the agent finish.
        self.waits = script is not None
        #: How the call ends once the caller has nothing more to say.
        self.ending = script.ending if script else Ending(CallStatus.USER_ENDED)
        #: Set while the agent has dealt with everything and waits for the caller.
        self.is_awaited = asyncio.Event()
        self._queue: asyncio.Queue[Line | ToolUse | None] = asyncio.Queue()
        if script is not None:
            for turn in script.turns:
                if isinstance(turn, Line) and turn.role == "user":
                    self._put(turn)
            self._put(None)

    def say(self, text: str, *, is_final: bool = True) -> None:
        """Have the caller say `text`."""
        self._put(Line("user", text, is_final=is_final))

    def call_function(self, name: str, params: Mapping[str, Json]) -> None:
        """Have the agent call one of its functions, after what was said before."""
        self._put(ToolUse(name, params))

    async def next(self) -> Line | ToolUse | None:
        """Wait for what the caller says next; None at the end.

        A `ToolUse` is for the agent: without a model it does not decide by itself to call one.
        """
        if self._queue.empty():
            self.is_awaited.set()
        return await self._queue.get()

    def _put(self, turn: Line | ToolUse | None) -> None:
        self.is_awaited.clear()
        self._queue.put_nowait(turn)


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks, wait until they have ended, and ignore their exceptions."""
    cancelled = set(tasks)
    for task in cancelled:
        task.cancel()
    if cancelled:
        # Not gather: if it is cancelled itself, it raises before the tasks have ended.
        await asyncio.wait(cancelled)
    for task in cancelled:
        if not task.cancelled():
            task.exception()


class SpokenAnswer:
    """One answer of the model, from its request until the last of it was heard."""

    def __init__(self, stream_id: int, *, speak: Callable[[str], None], chars_per_s: float) -> None:
        """`speak` is called with each piece when its time has come."""
        self.stream_id = stream_id
        #: Whether all of it has come.
        self.is_complete = False
        #: Whether more of it than white space has come.
        self.has_begun = False
        #: Whether a piece of it is being heard.
        self.is_heard = False
        self._speak = speak
        self._chars_per_s = chars_per_s
        #: Parts of a sentence that is not complete.
        self._parts: list[str] = []
        #: Texts to speak and seconds to pause; None is the end.
        self._pieces: asyncio.Queue[str | float | None] = asyncio.Queue()

    def take(self, content: str, *, is_flushed: bool, pause_s: float, is_last: bool) -> None:
        """Take the next part of it; nothing is said after the last one."""
        if self.is_complete:
            return
        self.has_begun = self.has_begun or bool(content.strip())
        is_due = is_flushed or pause_s > 0 or is_last
        # Where the last complete sentence ends.
        ends = (match.end() for match in _SENTENCE_END.finditer(content))
        ends_at = len(content) if is_due else max(ends, default=0)
        self._parts.append(content[:ends_at])
        if (is_due or ends_at) and self.has_begun:
            if piece := "".join(self._parts):
                self._pieces.put_nowait(piece)
            self._parts.clear()
        self._parts.append(content[ends_at:])
        if pause_s > 0:
            self._pieces.put_nowait(pause_s)
        if is_last:
            self.is_complete = True
            self._pieces.put_nowait(None)

    async def play(self) -> None:
        """Speak each piece when those before it were heard; return after the last one."""
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, str):
                self._speak(piece)
            self.is_heard = True
            seconds = piece if isinstance(piece, float) else len(piece) / self._chars_per_s
            await asyncio.sleep(seconds)
            self.is_heard = False


class CustomLlmError(MillisHooksError):
    """The model cannot be reached, hung up, or broke the protocol."""


@dataclass(frozen=True, slots=True)
class CustomLlm:
    """Has the model behind a websocket talk with a caller."""

    url: str
    caller: Caller
    #: Decides by the host.
    may_reach: Callable[[str | None], bool]
    #: How fast answers are spoken.
    chars_per_s: float = CHARS_PER_S
    answer_timeout_s: float = ANSWER_TIMEOUT_S

    async def converse(self, session: Session) -> Ending:
        """Hold the conversation; raises `CustomLlmError`."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        try:
            if not self.may_reach(urlsplit(self.url).hostname):
                raise CustomLlmError("The model's websocket is not on this machine.")
            async with connect(self.url, open_timeout=OPEN_TIMEOUT_S, proxy=None) as socket:
                try:
                    return await _Talk(self, session, socket).run()
                except CustomLlmError as error:
                    await socket.close(VIOLATION, str(error)[:100])
                    raise
        except (OSError, WebSocketException, ValueError) as error:
            raise CustomLlmError(f"The model's websocket: {error}") from error


class _Talk:
    def __init__(self, llm: CustomLlm, session: Session, socket: ClientConnection) -> None:
        self._llm = llm
        self._session = session
        self._socket = socket
        #: Whether the model was asked for more than its greeting.
        self._has_asked = False
        #: Set while the agent is neither answering nor being heard.
        self._idle = asyncio.Event()
        self._expect_answer(0)

    async def run(self) -> Ending:
        tasks: set[asyncio.Task[Ending]] = set()
        try:
            await self._send("start_call", self._start_call())
            tasks = {asyncio.ensure_future(work) for work in (self._listen(), self._relay())}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel([*tasks, self._playing])
            self._session.end_turn()
        return done.pop().result()

    def _start_call(self) -> dict[str, Any]:
        session, spec = self._session, self._session.spec
        voip = {"from": spec.from_phone, "to": spec.to_phone}
        return {
            "stream_id": self._answer.stream_id,
            "agent_id": spec.agent_id,
            "call_sid": session.call_id if spec.is_on_the_phone else None,
            "session_id": session.session_id,
            "metadata": dict(session.metadata),
            "voip": voip if spec.is_on_the_phone else None,
        }

    def _expect_answer(self, stream_id: int) -> None:
        speak, chars_per_s = self._session.say_more, self._llm.chars_per_s
        self._answer = SpokenAnswer(stream_id, speak=speak, chars_per_s=chars_per_s)
        self._idle.clear()
        self._playing = asyncio.ensure_future(self._play(self._answer))

    async def _relay(self) -> Ending:
        """Send the model what the caller says, until the caller hangs up."""
        session = self._session
        while (turn := await self._next()) is not None:
            if isinstance(turn, ToolUse):
                await session.call_function(turn.name, turn.params)
                continue
            await self._interrupt()
            partial = {"session_id": session.session_id, "transcript": turn.text}
            await self._send("partial_transcript", {**partial, "is_final": turn.is_final})
            if turn.is_final:
                await session.speak("user", turn.text)
                await self._request()
        return self._llm.caller.ending

    async def _next(self) -> Line | ToolUse | None:
        if self._llm.caller.waits:
            await self._let_finish()
        return await self._llm.caller.next()

    async def _let_finish(self) -> None:
        """Wait until the answer was heard; not for one that does not come, or does not end."""
        waiting = asyncio.ensure_future(self._idle.wait())
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=self._llm.answer_timeout_s)
                if not self._answer.is_heard:
                    return
        finally:
            waiting.cancel()

    async def _request(self) -> None:
        self._playing.cancel()
        self._has_asked = True
        self._expect_answer(self._answer.stream_id + 1)
        transcript = [*map(dict, self._session.spec.earlier), *self._session.messages]
        data = {"stream_id": self._answer.stream_id, "transcript": transcript}
        await self._send("stream_request", data)

    async def _interrupt(self) -> None:
        if self._idle.is_set() or not self._answer.has_begun:
            return
        self._playing.cancel()
        self._session.end_turn()
        self._idle.set()
        interrupt = {"type": "interrupt", "stream_id": self._answer.stream_id}
        await self._socket.send(json.dumps(interrupt))

    async def _listen(self) -> Ending:
        """Say what the model says, until it ends the call."""
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                type_, data = _read(await self._socket.recv())
                if type_ == "end_call":
                    return Ending(CallStatus.AGENT_ENDED)
                if type_ == "transfer_call":
                    destination = {"destination": data.get("destination")}
                    await self._session.call_function(TRANSFER, destination)
                    return Ending(CallStatus.AGENT_ENDED)
                self._take(data)
        except ConnectionClosed as error:
            raise CustomLlmError(f"The model hung up: {error}") from error

    def _take(self, data: Mapping[str, Any]) -> None:
        """Take a part of an answer, unless its request has been superseded.

        The greeting may have any id: some models greet before they know that of the call. Those of
        requests count on from it.
        """
        if not self._has_asked and not self._answer.has_begun:
            self._answer.stream_id = data["stream_id"]
        if data["stream_id"] != self._answer.stream_id or self._idle.is_set():
            return
        self._answer.take(
            str(data.get("content") or ""),
            is_flushed=data.get("flush") is True,
            pause_s=(finite(data.get("pause")) or 0.0) / 1000,
            is_last=data.get("end_of_stream") is True,
        )

    async def _play(self, answer: SpokenAnswer) -> None:
        from websockets.exceptions import ConnectionClosed

        await answer.play()
        self._session.end_turn()
        finished = {"session_id": self._session.session_id, "stream_id": answer.stream_id}
        with suppress(ConnectionClosed):
            await self._send("playback_finished", finished)
        self._idle.set()

    async def _send(self, type_: str, data: Mapping[str, Any]) -> None:
        await self._socket.send(json.dumps({"type": type_, "data": data}))


def _read(text: str | bytes) -> tuple[str, Mapping[str, Any]]:
    """Return the type and the data of a message; raises `CustomLlmError`."""
    try:
        message = read_json(text)
    except PayloadError as error:
        raise CustomLlmError(f"The model sent no JSON: {error}.") from error
    if not isinstance(message, dict):
        raise CustomLlmError(f"The model sent {describe(message)}, not an object.")
    type_, data = message.get("type"), message.get("data")
    if type_ not in _TYPES:
        raise CustomLlmError(f"The model's type is none of {', '.join(sorted(_TYPES))}.")
    if not isinstance(data, dict) or not isinstance(data.get("stream_id"), int):
        raise CustomLlmError(f"A {type_} of the model has no data with a stream_id.")
    return str(type_), data

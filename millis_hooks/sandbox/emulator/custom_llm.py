"""The team's own model as the agent: the client of Millis' `custom_llm_websocket` protocol.

Source: docs.millis.ai, integration/custom-llm. What it does not say: a greeting that does not come
and an answer that does not end are waited for `answer_timeout_s`; a transfer ends the call; what
was not heard yet when the caller interrupts is never said.

Tasks that are ended together.

An answer that a model streams: put together, and spoken as fast as it would be heard.

One `stream_id` is one answer, and one turn of the conversation with all its white space. A piece is
spoken as soon as a sentence is complete, or when the model says `flush`. Source: docs.millis.ai,
integration/custom-llm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from ...exceptions import MillisHooksError, PayloadError
from ...protocol.call_status import CallStatus
from ...protocol.reading import describe, finite, read_json
from ..agent import CHARS_PER_S, Conversation, Ending, ToolUse
from .users import Caller, Heard


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and return when they have ended; what they raise is nobody's any more."""
    ending = set(tasks)
    for task in ending:
        task.cancel()
    if ending:
        # Not gather: cancelled itself, it would forget who cancelled it.
        await asyncio.wait(ending)
    for task in ending:
        if not task.cancelled():
            task.exception()


#: Where a sentence is complete: its mark and the quotes that close after it, before white space.
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s|\Z)|[。！？؟।\n]""")


class Answer:
    """One answer, from its request until the last of it was heard."""

    def __init__(
        self,
        stream_id: int,
        *,
        speak: Callable[[str], None],
        chars_per_s: float,
    ) -> None:
        """`speak` is called with each piece when its time has come."""
        self.stream_id = stream_id
        #: Whether all of it has come.
        self.is_complete = False
        #: Whether some of it has come that is more than white space.
        self.has_begun = False
        #: Whether a piece of it is being heard.
        self.is_heard = False
        self._speak = speak
        self._chars_per_s = chars_per_s
        self._held: list[str] = []
        self._pieces: asyncio.Queue[str | float | None] = asyncio.Queue()

    def take(self, content: str, *, is_flushed: bool, pause_s: float, is_last: bool) -> None:
        """Take the next part of it; what comes after the last one is not said."""
        if self.is_complete:
            return
        self.has_begun = self.has_begun or bool(content.strip())
        is_due = is_flushed or pause_s > 0 or is_last
        ends_at = len(content) if is_due else _sentences_end(content)
        self._held.append(content[:ends_at])
        if (is_due or ends_at) and self.has_begun:
            self._release()
        self._held.append(content[ends_at:])
        if pause_s > 0:
            self._pieces.put_nowait(pause_s)
        if is_last:
            self.is_complete = True
            self._pieces.put_nowait(None)

    def _release(self) -> None:
        if piece := "".join(self._held):
            self._pieces.put_nowait(piece)
        self._held.clear()

    async def play(self) -> None:
        """Speak each piece when those before it were heard; return after the last one."""
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, str):
                self._speak(piece)
            self.is_heard = True
            await asyncio.sleep(piece if isinstance(piece, float) else self._lasts_s(piece))
            self.is_heard = False

    def _lasts_s(self, piece: str) -> float:
        return len(piece) / self._chars_per_s


def _sentences_end(text: str) -> int:
    """Return where the last complete sentence of `text` ends; 0 if none does."""
    return max((match.end() for match in _SENTENCE_END.finditer(text)), default=0)


#: The function under which a transfer is noted. Source: the agent's `call_transfer`.
TRANSFER = "call_transfer"

#: Why a socket is closed that breaks the protocol: policy violation, in RFC 6455.
VIOLATION = 1008

OPEN_TIMEOUT_S = 10.0

#: How long is waited for a greeting, and for an answer that does not end.
ANSWER_TIMEOUT_S = 10.0

logger = logging.getLogger("millis_hooks.sandbox")


class CustomLlmError(MillisHooksError):
    """The model cannot be reached, hung up, or said what the protocol does not have."""


class CustomLlm:
    """Has the model behind a websocket talk with a caller."""

    def __init__(
        self,
        url: str,
        caller: Caller,
        *,
        may_reach: Callable[[str | None], bool],
        chars_per_s: float = CHARS_PER_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """`chars_per_s` is how fast its words are played, until `playback_finished`."""
        self._url = url
        self._caller = caller
        self._may_reach = may_reach
        self._chars_per_s = chars_per_s
        self._answer_timeout_s = answer_timeout_s

    async def converse(self, conversation: Conversation) -> Ending:
        """Hold the conversation; raises `CustomLlmError`."""
        try:
            if not self._may_reach(urlsplit(self._url).hostname):
                raise CustomLlmError("The model's websocket is not on this machine.")
            async with connect(self._url, open_timeout=OPEN_TIMEOUT_S, proxy=None) as socket:
                talk = _Talk(
                    socket,
                    conversation,
                    self._caller,
                    chars_per_s=self._chars_per_s,
                    answer_timeout_s=self._answer_timeout_s,
                )
                return await _closing(socket, talk)
        except (OSError, WebSocketException, ValueError) as error:
            raise CustomLlmError(f"The model's websocket: {error}") from error


async def _closing(socket: ClientConnection, talk: _Talk) -> Ending:
    try:
        return await talk.run()
    except CustomLlmError as error:
        await socket.close(VIOLATION, str(error)[:100])
        raise


class _Talk:
    """One conversation on one socket."""

    def __init__(
        self,
        socket: ClientConnection,
        conversation: Conversation,
        caller: Caller,
        *,
        chars_per_s: float,
        answer_timeout_s: float,
    ) -> None:
        self._socket = socket
        self._conversation = conversation
        self._caller = caller
        self._chars_per_s = chars_per_s
        self._answer_timeout_s = answer_timeout_s
        self._answer = self._new_answer(0)
        #: Whether the model was asked for more than its greeting.
        self._has_asked = False
        #: Whether the agent is neither answering nor being heard.
        self._idle = asyncio.Event()
        self._playing = asyncio.ensure_future(self._play(self._answer))

    async def run(self) -> Ending:
        tasks: set[asyncio.Task[Ending]] = set()
        try:
            await self._send("start_call", self._start())
            tasks = {asyncio.ensure_future(work) for work in (self._listen(), self._relay())}
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end([*tasks, self._playing])
            self._conversation.end_turn()
        return done.pop().result()

    def _start(self) -> dict[str, Any]:
        conversation, spec = self._conversation, self._conversation.spec
        voip = {"from": spec.from_phone, "to": spec.to_phone}
        return {
            "stream_id": self._answer.stream_id,
            "agent_id": spec.agent_id,
            "call_sid": conversation.call_id if spec.is_on_the_phone else None,
            "session_id": conversation.session_id,
            "metadata": dict(conversation.metadata),
            "voip": voip if spec.is_on_the_phone else None,
        }

    async def _relay(self) -> Ending:
        """Tell the model what the caller says, until the caller hangs up."""
        while (heard := await self._next()) is not None:
            if isinstance(heard, ToolUse):
                await self._conversation.call_function(heard.name, heard.params)
                continue
            await self._interrupt()
            partial = {"session_id": self._conversation.session_id, "transcript": heard.text}
            await self._send("partial_transcript", {**partial, "is_final": heard.is_final})
            if heard.is_final:
                await self._conversation.hear(heard.text)
                await self._request()
        return self._caller.ending

    async def _next(self) -> Heard | ToolUse | None:
        if self._caller.waits:
            await self._let_finish()
        return await self._caller.next()

    async def _let_finish(self) -> None:
        """Wait until the answer was heard; not for one that does not come, or does not end."""
        waiting = asyncio.ensure_future(self._idle.wait())
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=self._answer_timeout_s)
                if not self._answer.is_heard:
                    return
        finally:
            waiting.cancel()

    async def _request(self) -> None:
        conversation = self._conversation
        self._playing.cancel()
        self._has_asked = True
        self._answer = self._new_answer(self._answer.stream_id + 1)
        self._idle.clear()
        self._playing = asyncio.ensure_future(self._play(self._answer))
        transcript = [*map(dict, conversation.spec.earlier), *conversation.messages]
        data = {"stream_id": self._answer.stream_id, "transcript": transcript}
        await self._send("stream_request", data)

    def _new_answer(self, stream_id: int) -> Answer:
        speak = self._conversation.say_more
        return Answer(stream_id, speak=speak, chars_per_s=self._chars_per_s)

    async def _interrupt(self) -> None:
        if self._idle.is_set() or not self._answer.has_begun:
            return
        self._playing.cancel()
        self._conversation.end_turn()
        self._idle.set()
        interrupt = {"type": "interrupt", "stream_id": self._answer.stream_id}
        await self._socket.send(json.dumps(interrupt))

    async def _listen(self) -> Ending:
        """Say what the model says, until it ends the call."""
        try:
            while True:
                kind, data = _read(await self._socket.recv())
                if kind == "end_call":
                    return Ending(CallStatus.AGENT_ENDED)
                if kind == "transfer_call":
                    destination = {"destination": data.get("destination")}
                    await self._conversation.call_function(TRANSFER, destination)
                    return Ending(CallStatus.AGENT_ENDED)
                self._take(data)
        except ConnectionClosed as error:
            raise CustomLlmError(f"The model hung up: {error}") from error

    def _take(self, data: Mapping[str, Any]) -> None:
        """Take a part of an answer. What belongs to an older request is superseded.

        The greeting may have any id: there are models that greet before they know that of the
        call. Those of requests come after it.
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

    async def _play(self, answer: Answer) -> None:
        await answer.play()
        self._conversation.end_turn()
        finished = {"session_id": self._conversation.session_id, "stream_id": answer.stream_id}
        with suppress(ConnectionClosed):
            await self._send("playback_finished", finished)
        self._idle.set()

    async def _send(self, kind: str, data: Mapping[str, Any]) -> None:
        await self._socket.send(json.dumps({"type": kind, "data": data}))


_KINDS = frozenset({"stream_response", "end_call", "transfer_call"})


def _read(text: str | bytes) -> tuple[str, Mapping[str, Any]]:
    """Return the type and the data of a message; raises `CustomLlmError`."""
    try:
        message = read_json(text)
    except PayloadError as error:
        raise CustomLlmError(f"The model sent no JSON: {error}.") from error
    if not isinstance(message, dict):
        raise CustomLlmError(f"The model sent {describe(message)}, not an object.")
    kind, data = message.get("type"), message.get("data")
    if kind not in _KINDS:
        raise CustomLlmError(f"The model's type is none of {', '.join(sorted(_KINDS))}.")
    if not isinstance(data, dict) or not isinstance(data.get("stream_id"), int):
        raise CustomLlmError(f"A {kind} of the model has no data with a stream_id.")
    return str(kind), data

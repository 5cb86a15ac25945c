"""The websocket that the Web SDK and native clients open.

The client says `initiate` when it likes, and then sends audio and `ping`. What happens in the
session comes back as frames, see `_Client`. Three methods are the sandbox's own, because nothing
here understands speech: `say` has the caller say its `data`, `call` has the agent call the function
in its `data`, and `hang_up` ends the call with the status in its `data`. Any other message changes
nothing, unless the policy `odd_messages` says so; the steps of the session name it.

Audio is signed 16-bit little-endian samples, 16,000 a second, one channel, both ways. The agent's
voice is a tone, and the caller's speech is recognized by its loudness. Source: docs.millis.ai,
integration/native-apps-with-websocket.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from array import array
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Literal, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect

from ...exceptions import MillisHooksError, PayloadError
from ...protocol.call_status import CallStatus, spell_status
from ...protocol.reading import Json, describe, read_json
from ..agents import VIOLATION, Caller, cancel
from ..scenario import Way
from ..session import CHARS_PER_S, Session
from ..steps import FunctionCalled, HungUp, Rendered, Said, Step, StepLog
from .schemas import Initiate, UnprocessableError, check
from .sessions import BusyError, SessionManager, address_of

SAMPLES_PER_S = 16_000

TONE_HZ = 220
_AMPLITUDE = 4_000
_FRAME_S = 0.1

_WINDOW_SAMPLES = SAMPLES_PER_S // 50
_WINDOW_S = _WINDOW_SAMPLES / SAMPLES_PER_S
#: A window with a peak like this is loud; of 32,767.
LOUD = 1_500
#: Shorter sounds are noises.
SPEECH_FROM_S = 0.2
#: Speech is over after so much silence.
SILENCE_S = 0.6

#: What the caller is taken to say by speaking.
SPEECH = "[speech]"

#: So many odd messages of one call are logged, each kind once.
MOST_ODD = 20
#: Longer names of unknown methods are cut.
_METHOD_CHARS = 100

#: The longest reason that a close frame has room for. Source: RFC 6455, 5.5.
_MAX_REASON_BYTES = 123
TRY_AGAIN = 1013


def tone(seconds: float) -> Iterator[bytes]:
    """Yield a quiet tone, in frames of a tenth of a second; at least one frame."""
    for _ in range(max(1, round(seconds / _FRAME_S))):
        yield _tone_frame()


@cache
def _tone_frame() -> bytes:
    # A whole number of waves fits, so that frames join without a click.
    step = 2 * math.pi * TONE_HZ / SAMPLES_PER_S
    count = round(SAMPLES_PER_S * _FRAME_S)
    samples = array("h", (round(_AMPLITUDE * math.sin(step * at)) for at in range(count)))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


def _peak(data: bytes) -> int:
    samples = array("h", data)
    if sys.byteorder == "big":
        samples.byteswap()
    return max(max(samples), -min(samples))


class Sound(NamedTuple):
    """A change in what is heard: a noise that may be speech, continued speech, or silence.

    With silence, `speech_s` is how long the speech before it lasted; 0 after a noise.
    """

    kind: Literal["noise", "speech", "silence"]
    speech_s: float = 0.0


class _SpeechDetector:
    """Tells speech from noise and silence by loudness alone. Its time is that of the samples."""

    def __init__(self) -> None:
        self._rest = b""
        self._began_s: float | None = None
        self._is_speech = False
        self._loud_s = 0.0
        self._at_s = 0.0

    def hear(self, audio: bytes) -> Iterator[Sound]:
        """Take audio of any length, and yield the changes in it."""
        data = self._rest + audio
        size = 2 * _WINDOW_SAMPLES
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        for start in range(0, whole, size):
            yield from self._take(_peak(data[start : start + size]) >= LOUD)

    def _take(self, is_loud: bool) -> Iterator[Sound]:
        self._at_s += _WINDOW_S
        if is_loud:
            self._loud_s = self._at_s
        if self._began_s is None:
            if is_loud:
                self._began_s = self._at_s - _WINDOW_S
                yield Sound("noise")
        elif not self._is_speech and self._loud_s - self._began_s >= SPEECH_FROM_S:
            self._is_speech = True
            yield Sound("speech")
        elif self._at_s - self._loud_s >= SILENCE_S:
            lasted_s = self._loud_s - self._began_s if self._is_speech else 0.0
            self._began_s, self._is_speech = None, False
            yield Sound("silence", round(lasted_s, 2))


def _frame(method: str, data: Json = None, payload: Json = None) -> dict[str, Any]:
    message = {"method": method, "data": data, "payload": payload}
    return {name: part for name, part in message.items() if part is not None}


class _Client:
    """Sends a client its frames, and knows how long it is playing the agent's voice."""

    def __init__(self, websocket: WebSocket, session_id: str) -> None:
        self._websocket = websocket
        self._session_id = session_id
        self._plays_until_s = 0.0
        self._paused_at_s: float | None = None
        #: What the client has of the agent's turn.
        self._turn = ""

    async def follow(self, log: StepLog) -> None:
        """Send each step as frames, and close the connection when the call is over.

        Raises `WebSocketDisconnect` if the client is gone before.
        """
        async for step in log.follow():
            await self._send_step(step)
            if isinstance(step, HungUp):
                break
        await self.send("onsessionended")
        await self._websocket.close()

    async def send(self, method: str, data: Json = None, payload: Json = None) -> None:
        """Send a message; parts that are None are left out."""
        await _sent(self._websocket.send_json(_frame(method, data, payload)))

    async def pause(self) -> None:
        """Have the client hold the agent's voice, if it plays any."""
        if self._is_playing:
            self._paused_at_s = time.monotonic()
            await self.send("pause")

    async def unpause(self) -> None:
        """Let it continue."""
        if self._paused_at_s is not None:
            self._plays_until_s += time.monotonic() - self._paused_at_s
            self._paused_at_s = None
            await self.send("unpause")

    async def clear(self) -> None:
        """Have it drop what it has not played."""
        if self._is_playing:
            self._plays_until_s, self._paused_at_s = 0.0, None
            await self.send("clear")

    @property
    def _is_playing(self) -> bool:
        return self._paused_at_s is not None or time.monotonic() < self._plays_until_s

    async def _send_step(self, step: Step) -> None:
        if isinstance(step, Rendered):
            await self.send("onready", payload={"session_id": self._session_id})
        elif isinstance(step, Said) and step.role == "user":
            await self._send_text("ontranscript", step.text)
        elif isinstance(step, Said):
            await self._send_answer(step)
        elif isinstance(step, FunctionCalled):
            await self.send("onfunction", "", {"name": step.name, "params": dict(step.params)})

    async def _send_answer(self, step: Said) -> None:
        """Send what the agent says; of a turn in pieces the whole of it so far, each time."""
        if not step.continues:
            await self.send("start_answering")
            self._turn = ""
        self._turn += step.text
        if step.is_final and not step.continues:
            await self._send_text("onresponsetext", self._turn)
        else:
            await self.send("onresponsetext", self._turn, {"is_final": step.is_final})
        if step.text:
            await self._play(len(step.text) / CHARS_PER_S)

    async def _send_text(self, method: str, text: str) -> None:
        """Send a text as it grows: half of it, and then the whole."""
        words = text.split(" ")
        if len(words) > 1:
            beginning = " ".join(words[: len(words) // 2])
            await self.send(method, beginning, {"is_final": False})
        await self.send(method, text, {"is_final": True})

    async def _play(self, seconds: float) -> None:
        self._plays_until_s = max(self._plays_until_s, time.monotonic()) + seconds
        for frame in tone(seconds):
            await _sent(self._websocket.send_bytes(frame))


async def _sent(sending: Coroutine[Any, Any, None]) -> None:
    """Wait for a frame to go out; raises `WebSocketDisconnect` if the client is gone."""
    try:
        await sending
    except RuntimeError as error:
        # Starlette raises it for a connection that we have closed.
        raise WebSocketDisconnect from error


class ProtocolError(MillisHooksError):
    """A message that has no meaning here, or a client that gets no call; the text says why."""


async def serve_websocket(sessions: SessionManager, websocket: WebSocket) -> None:
    """Hold one call, or close the connection with the reason why there is none."""
    await websocket.accept()
    try:
        session, caller = await _connect(sessions, websocket)
    except ProtocolError as error:
        await _close(websocket, VIOLATION, str(error))
    except UnprocessableError as error:
        await _close(websocket, VIOLATION, f"validation error: {error}")
    except BusyError as error:
        await _close(websocket, TRY_AGAIN, str(error))
    except WebSocketDisconnect:
        pass
    else:
        await _Connection(websocket, session, caller).hold()


async def _connect(sessions: SessionManager, websocket: WebSocket) -> tuple[Session, Caller]:
    initiate = await _initiate(websocket)
    if not sessions.accepts(initiate.public_key):
        raise ProtocolError("There is no public_key, or it is another.")
    address, caller = address_of(websocket), Caller()
    if initiate.call_id is None:
        way, scenario = _way(websocket), address.scenario
        spec = await sessions.spec_of(way, initiate.agent, initiate, address)
    elif registered := sessions.registered(initiate.call_id):
        spec, scenario = registered
    else:
        raise ProtocolError("No call is registered by this call_id.")
    return await sessions.start(spec, address.base, scenario=scenario, caller=caller), caller


async def _initiate(websocket: WebSocket) -> Initiate:
    """Wait for `initiate`, without a limit; other messages before it change nothing."""
    while True:
        with suppress(ProtocolError):
            message = await _receive(websocket)
            if isinstance(message, bytes):
                continue
            if message.get("method") == "initiate":
                return check(Initiate, message.get("data"), "data")
            if message.get("method") == "ping":
                await websocket.send_json(_frame("pong", message.get("data")))


def _way(websocket: WebSocket) -> Way:
    """Return how the call comes in: pages of a browser say where they are from."""
    if websocket.query_params.get("from") == "widget":
        return "widget"
    return "web-sdk" if "origin" in websocket.headers else "websocket"


class _Connection:
    def __init__(self, websocket: WebSocket, session: Session, caller: Caller) -> None:
        self._websocket = websocket
        self._session = session
        self._caller = caller
        self._client = _Client(websocket, session.session_id)
        self._detector = _SpeechDetector()
        self._odd_messages: set[str] = set()

    async def hold(self) -> None:
        """Send the session's steps and hear the caller, until one of the two is over."""
        sending = asyncio.ensure_future(self._client.follow(self._session.log))
        hearing = asyncio.ensure_future(self._hear())
        try:
            await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if hearing.done() and (error := hearing.exception()) is not None:
                await self._break_off(error)
        finally:
            self._session.hang_up(CallStatus.USER_ENDED)
            await cancel((sending, hearing))

    async def _break_off(self, error: BaseException) -> None:
        if isinstance(error, WebSocketDisconnect):
            return
        if not isinstance(error, ProtocolError):
            raise error
        self._session.hang_up(CallStatus.ERROR, str(error))
        await _close(self._websocket, VIOLATION, str(error))

    async def _hear(self) -> None:
        while True:
            try:
                message = await _receive(self._websocket)
                if isinstance(message, bytes):
                    await self._hear_audio(message)
                else:
                    await self._handle(message)
            except ProtocolError as error:
                self._note(error)

    def _note(self, error: ProtocolError) -> None:
        """Log a message that changes nothing; raise it where the policy ends the call."""
        if self._session.spec.policy.odd_messages == "end-call":
            raise error
        if str(error) not in self._odd_messages and len(self._odd_messages) < MOST_ODD:
            self._odd_messages.add(str(error))
            self._session.note(f"{error} It was ignored.")

    async def _handle(self, message: Mapping[str, Json]) -> None:
        method, data = message.get("method"), message.get("data")
        if method == "ping":
            await self._client.send("pong", data)
        elif method == "say" and isinstance(data, str):
            self._caller.say(data)
        elif method == "call":
            self._caller.call_function(*_function(data))
        elif method == "hang_up" and (data is None or isinstance(data, str)):
            self._session.hang_up(spell_status(data or CallStatus.USER_ENDED))
        else:
            raise ProtocolError(_why_odd(method))

    async def _hear_audio(self, audio: bytes) -> None:
        """Hear the caller speak; speech while the agent's voice is played interrupts it."""
        for sound in self._detector.hear(audio):
            if sound.kind == "noise":
                await self._client.pause()
            elif sound.kind == "speech":
                await self._client.clear()
                await self._client.send("ontranscript", SPEECH, {"is_final": False})
                self._caller.say(SPEECH, is_final=False)
            else:
                await self._client.unpause()
                if sound.speech_s:
                    self._caller.say(f"[speech, {sound.speech_s:.1f} s]")


async def _receive(websocket: WebSocket) -> bytes | dict[str, Any]:
    """Return audio or a message; raises `ProtocolError` for anything else."""
    frame = await websocket.receive()
    if frame["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(frame.get("code", 1005))
    if frame.get("bytes") is not None:
        return bytes(frame["bytes"])
    try:
        message = read_json(frame["text"])
    except PayloadError as error:
        raise ProtocolError(f"A text message is not JSON: {error}.") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"A text message is {describe(message)}, not an object.")
    return message


def _function(data: Json) -> tuple[str, Mapping[str, Json]]:
    """Return the name and the parameters in a `call`; raises `ProtocolError`."""
    call = data if isinstance(data, dict) else {}
    name, params = call.get("name"), call.get("params")
    if not isinstance(name, str) or not isinstance(params, dict | None):
        raise ProtocolError("The data of a call is not an object of a name and its params.")
    return name, params or {}


def _why_odd(method: Json) -> str:
    if method == "initiate":
        return "initiate came once more."
    if method in ("say", "hang_up"):
        return f"The data of {method} is not a text."
    return f"A message has the method {str(method)[:_METHOD_CHARS]!r}, which is none here."


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    short = reason.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
    with suppress(RuntimeError):  # the client was faster
        await websocket.close(code, short)

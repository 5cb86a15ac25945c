"""The websocket that the Web SDK and native clients open.

The client says `initiate` when it likes, and then sends audio and `ping`. What happens in the
session comes back as frames, see `Screen`. Three methods are the sandbox's own, because nothing
here understands speech: `say` has the caller say its `data`, `call` has the agent call the function
in its `data`, and `hang_up` ends the call with the status in its `data`. Any other message changes
nothing, unless the policy `odd_messages` says so; the steps of the session name it.

Speech as far as it goes without a model: a tone to say something, loudness to hear something.

Both ways it is what Millis sends and takes: signed 16-bit little-endian samples, 16,000 a second,
one channel. Source: docs.millis.ai, integration/native-apps-with-websocket.

What a client of the websocket sees of a session: each step as frames.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from array import array
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ...exceptions import MillisHooksError, PayloadError
from ...protocol.call_status import CallStatus, spell_status
from ...protocol.reading import Json, describe, read_json
from ..agent import CHARS_PER_S, Agent
from ..call_spec import SessionSpec, Way
from ..session import Session
from ..steps import FunctionCalled, HungUp, Rendered, Said, Step, StepLog
from .access import Keys
from .custom_llm import VIOLATION, end
from .http_api import base_of, policy_of, scenario_of
from .schemas import Initiate, UnprocessableError, check
from .sessions import BusyError, SessionRequest, Switchboard
from .users import LiveCaller

SAMPLES_PER_S = 16_000

TONE_HZ = 220
_AMPLITUDE = 4_000
_FRAME_S = 0.1

_WINDOW_SAMPLES = SAMPLES_PER_S // 50
_WINDOW_S = _WINDOW_SAMPLES / SAMPLES_PER_S
#: A window with a peak like this is loud; of 32,767.
LOUD = 1_500
#: Speech that is shorter is a noise.
SPEECH_FROM_S = 0.2
#: Speech is over after so much silence.
SILENCE_S = 0.6


def tone(seconds: float) -> Iterator[bytes]:
    """Yield a quiet tone, in frames of a tenth of a second; at least one frame."""
    for _ in range(max(1, round(seconds / _FRAME_S))):
        yield _frame()


@cache
def _frame() -> bytes:
    # A whole number of waves fits, so that frames join without a click.
    step = 2 * math.pi * TONE_HZ / SAMPLES_PER_S
    count = round(SAMPLES_PER_S * _FRAME_S)
    return _bytes(array("h", (round(_AMPLITUDE * math.sin(step * at)) for at in range(count))))


def _bytes(samples: array[int]) -> bytes:
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


@dataclass(frozen=True, slots=True)
class Noise:
    """Something is heard that may be speech."""


@dataclass(frozen=True, slots=True)
class Speech:
    """It is speech, and goes on."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """It is over; `speech_s` is how long it lasted, 0 where it was a noise."""

    speech_s: float


class Ear:
    """Hears when somebody speaks, by nothing but loudness. Time is that of the samples."""

    def __init__(self) -> None:
        self._rest = b""
        self._began_s: float | None = None
        self._is_speech = False
        self._loud_s = 0.0
        self._at_s = 0.0

    def hear(self, audio: bytes) -> Iterator[Noise | Speech | Quiet]:
        """Take audio of any length, and yield what is new."""
        data = self._rest + audio
        size = 2 * _WINDOW_SAMPLES
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        for start in range(0, whole, size):
            yield from self._take(_peak(data[start : start + size]) >= LOUD)

    def _take(self, is_loud: bool) -> Iterator[Noise | Speech | Quiet]:
        self._at_s += _WINDOW_S
        if is_loud:
            self._loud_s = self._at_s
        if self._began_s is None:
            if is_loud:
                self._began_s = self._at_s - _WINDOW_S
                yield Noise()
        elif not self._is_speech and self._loud_s - self._began_s >= SPEECH_FROM_S:
            self._is_speech = True
            yield Speech()
        elif self._at_s - self._loud_s >= SILENCE_S:
            lasted_s = self._loud_s - self._began_s if self._is_speech else 0.0
            self._began_s, self._is_speech = None, False
            yield Quiet(round(lasted_s, 2))


def _peak(data: bytes) -> int:
    samples = array("h", data)
    if sys.byteorder == "big":
        samples.byteswap()
    return max(max(samples), -min(samples))


def frame(method: str, data: Json = None, payload: Json = None) -> dict[str, Any]:
    """Return a message to a client; what is None is left out."""
    message = {"method": method, "data": data, "payload": payload}
    return {name: part for name, part in message.items() if part is not None}


class Screen:
    """Sends frames, and knows how long the client is playing what it got."""

    def __init__(self, websocket: WebSocket, session_id: str) -> None:
        self._websocket = websocket
        self._session_id = session_id
        self._plays_until_s = 0.0
        self._paused_at_s: float | None = None
        #: What the client has of the agent's turn.
        self._turn = ""

    async def show(self, log: StepLog) -> None:
        """Send what happens, and close the connection when the call is over.

        Raises `WebSocketDisconnect` if the client is gone before.
        """
        async for step in log.follow():
            await self._show(step)
            if isinstance(step, HungUp):
                break
        await self.send("onsessionended")
        await self._websocket.close()

    async def send(self, method: str, data: Json = None, payload: Json = None) -> None:
        """Send a message; what is None is left out."""
        await self._send_json(frame(method, data, payload))

    async def pause(self) -> None:
        """Have the client hold what it plays, if it plays anything."""
        if self._is_playing:
            self._paused_at_s = time.monotonic()
            await self.send("pause")

    async def unpause(self) -> None:
        """Have it go on."""
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

    async def _show(self, step: Step) -> None:
        if isinstance(step, Rendered):
            await self.send("onready", payload={"session_id": self._session_id})
        elif isinstance(step, Said) and step.role == "user":
            await self._text("ontranscript", step.text)
        elif isinstance(step, Said):
            await self._answer(step)
        elif isinstance(step, FunctionCalled):
            await self.send("onfunction", "", {"name": step.name, "params": dict(step.params)})

    async def _answer(self, step: Said) -> None:
        """Send what the agent says; of a turn in pieces the whole of it so far, each time."""
        if not step.continues:
            await self.send("start_answering")
            self._turn = ""
        self._turn += step.text
        if step.is_final and not step.continues:
            await self._text("onresponsetext", self._turn)
        else:
            await self.send("onresponsetext", self._turn, {"is_final": step.is_final})
        if step.text:
            await self._speak(len(step.text) / CHARS_PER_S)

    async def _text(self, method: str, text: str) -> None:
        """Send a text as it grows: in part, and then the whole of it."""
        words = text.split(" ")
        if len(words) > 1:
            beginning = " ".join(words[: len(words) // 2])
            await self.send(method, beginning, {"is_final": False})
        await self.send(method, text, {"is_final": True})

    async def _speak(self, seconds: float) -> None:
        self._plays_until_s = max(self._plays_until_s, time.monotonic()) + seconds
        for frame in tone(seconds):
            await self._guarded(self._websocket.send_bytes(frame))

    async def _send_json(self, message: dict[str, Any]) -> None:
        await self._guarded(self._websocket.send_json(message))

    async def _guarded(self, sending: Coroutine[Any, Any, None]) -> None:
        """Wait for a frame to go out; raises `WebSocketDisconnect` if the client is gone."""
        try:
            await sending
        except RuntimeError as error:
            # Starlette's word for a connection that was closed by us.
            raise WebSocketDisconnect from error


#: So many messages that are no method of ours are noted of one call, each kind once.
MOST_ODD = 20
#: More of an unknown method's name is not noted.
_METHOD_CHARS = 100

#: The longest reason that a close frame has room for. Source: RFC 6455, 5.5.
_MAX_REASON_BYTES = 123
TRY_AGAIN = 1013
#: What a caller is taken to say whose words nobody understands.
SPEECH = "[speech]"


class ViolationError(MillisHooksError):
    """There is no call for this client; the message says why."""


class OddMessageError(MillisHooksError):
    """A message that means nothing here; the message says why."""


class Calls:
    """The endpoint: one call a connection."""

    def __init__(self, switchboard: Switchboard, keys: Keys) -> None:
        self._switchboard = switchboard
        self._keys = keys

    async def take(self, websocket: WebSocket) -> None:
        """Hold a call, and close with a reason what is none."""
        await websocket.accept()
        try:
            session, caller = await self._connected(websocket)
        except (ViolationError, UnprocessableError) as error:
            why = f"validation error: {error}" if isinstance(error, UnprocessableError) else error
            await _close(websocket, VIOLATION, str(why))
        except BusyError as error:
            await _close(websocket, TRY_AGAIN, str(error))
        except WebSocketDisconnect:
            pass
        else:
            await _Line(websocket, session, caller).hold()

    async def _connected(self, websocket: WebSocket) -> tuple[Session, LiveCaller]:
        initiate = await self._initiate(websocket)
        if not self._keys.fits(initiate.public_key):
            raise ViolationError("There is no public_key, or it is another.")
        caller = LiveCaller()
        spec, agent = await self._called(websocket, initiate, caller)
        return await self._switchboard.connect(spec, agent, base_of(websocket)), caller

    async def _called(
        self, websocket: WebSocket, initiate: Initiate, caller: LiveCaller
    ) -> tuple[SessionSpec, Agent]:
        scenario = scenario_of(websocket)
        if initiate.call_id is not None:
            registered = self._switchboard.registered(initiate.call_id)
            if registered is None:
                raise ViolationError("No call is registered by this call_id.")
            spec, scenario = registered
        else:
            asked = SessionRequest(
                way=_way(websocket),
                choice=initiate.agent,
                metadata=initiate.metadata or {},
                include_metadata_in_prompt=bool(initiate.include_metadata_in_prompt),
                continuation=initiate.session_continuation,
                scenario=scenario,
                policy=policy_of(websocket),
            )
            spec = await self._switchboard.spec_of(asked, base_of(websocket))
        return spec, self._switchboard.agent_for(spec, scenario, caller)

    async def _initiate(self, websocket: WebSocket) -> Initiate:
        """Wait for `initiate`, for as long as it takes; what comes before it changes nothing."""
        while True:
            with suppress(OddMessageError):
                message = await _receive(websocket)
                if isinstance(message, bytes):
                    continue
                if message.get("method") == "initiate":
                    return check(Initiate, message.get("data"), "data")
                if message.get("method") == "ping":
                    await websocket.send_json(frame("pong", message.get("data")))


class _Line:
    """One call on one connection."""

    def __init__(self, websocket: WebSocket, session: Session, caller: LiveCaller) -> None:
        self._websocket = websocket
        self._session = session
        self._caller = caller
        self._screen = Screen(websocket, session.session_id)
        self._ear = Ear()
        self._odd: set[str] = set()

    async def hold(self) -> None:
        """Show the session and hear the caller, until one of the two is over."""
        showing = asyncio.ensure_future(self._screen.show(self._session.log))
        hearing = asyncio.ensure_future(self._hear())
        try:
            await asyncio.wait({showing, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if hearing.done() and (error := hearing.exception()) is not None:
                await self._broken(error)
        finally:
            self._session.hang_up(CallStatus.USER_ENDED)
            await end((showing, hearing))

    async def _broken(self, error: BaseException) -> None:
        if isinstance(error, WebSocketDisconnect):
            return
        if not isinstance(error, OddMessageError):
            raise error
        self._session.hang_up(CallStatus.ERROR, str(error))
        await _close(self._websocket, VIOLATION, str(error))

    async def _hear(self) -> None:
        while True:
            try:
                message = await _receive(self._websocket)
                if isinstance(message, bytes):
                    await self._listen(message)
                else:
                    await self._obey(message)
            except OddMessageError as error:
                self._note(error)

    def _note(self, error: OddMessageError) -> None:
        """Note a message that changes nothing; raises it again where the policy ends the call."""
        if self._session.spec.policy.odd_messages == "end-call":
            raise error
        if str(error) not in self._odd and len(self._odd) < MOST_ODD:
            self._odd.add(str(error))
            self._session.note(f"{error} It was ignored.")

    async def _obey(self, message: Mapping[str, Json]) -> None:
        method, data = message.get("method"), message.get("data")
        if method == "ping":
            await self._screen.send("pong", data)
        elif method == "say" and isinstance(data, str):
            self._caller.say(data)
        elif method == "call":
            self._caller.call_function(*_function(data))
        elif method == "hang_up" and (data is None or isinstance(data, str)):
            self._session.hang_up(spell_status(data or CallStatus.USER_ENDED))
        else:
            raise OddMessageError(_why_odd(method))

    async def _listen(self, audio: bytes) -> None:
        """Hear the caller speak; who speaks while the agent is played interrupts it."""
        for change in self._ear.hear(audio):
            if isinstance(change, Noise):
                await self._screen.pause()
            elif isinstance(change, Quiet):
                await self._screen.unpause()
                if change.speech_s:
                    self._caller.say(f"[speech, {change.speech_s:.1f} s]")
            else:
                await self._screen.clear()
                await self._screen.send("ontranscript", SPEECH, {"is_final": False})
                self._caller.say(SPEECH, is_final=False)


def _way(websocket: WebSocket) -> Way:
    """Return how the call comes in: pages of a browser say where they are from."""
    if websocket.query_params.get("from") == "widget":
        return "widget"
    return "web-sdk" if "origin" in websocket.headers else "websocket"


async def _receive(websocket: WebSocket) -> bytes | dict[str, Any]:
    """Return audio, or a message; raises `OddMessageError` for what is neither."""
    frame = await websocket.receive()
    if frame["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(frame.get("code", 1005))
    if frame.get("bytes") is not None:
        return bytes(frame["bytes"])
    try:
        message = read_json(frame["text"])
    except PayloadError as error:
        raise OddMessageError(f"A text message is no JSON: {error}.") from error
    if not isinstance(message, dict):
        raise OddMessageError(f"A text message is {describe(message)}, not an object.")
    return message


def _function(data: Json) -> tuple[str, Mapping[str, Json]]:
    """Return the name and the parameters in a `call`; raises `OddMessageError`."""
    given = data if isinstance(data, dict) else {}
    name, params = given.get("name"), given.get("params")
    if not isinstance(name, str) or not isinstance(params, dict | None):
        raise OddMessageError("The data of a call is no object of a name and its params.")
    return name, params or {}


def _why_odd(method: Json) -> str:
    """Say what a method is that means nothing: a client's own event, or one of ours misspelt."""
    if method == "initiate":
        return "initiate came once more."
    if method in ("say", "hang_up"):
        return f"The data of {method} is no text."
    return f"A message has the method {str(method)[:_METHOD_CHARS]!r}, which is none here."


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    short = reason.encode()[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
    with suppress(RuntimeError):  # the client was faster
        await websocket.close(code, short)

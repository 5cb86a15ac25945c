"""The websocket that the Web SDK and native clients open.

The client says `initiate` when it likes, and then sends audio and `ping`. What happens in the
session comes back as frames, see `Screen`. Three methods are the sandbox's own, because nothing
here understands speech: `say` has the caller say its `data`, `call` has the agent call the function
in its `data`, and `hang_up` ends the call with the status in its `data`. Any other message changes
nothing, unless the policy `odd_messages` says so; the steps of the session name it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ...call_status import CallStatus, spell_status
from ...exceptions import MillisHooksError, PayloadError
from ...wire import Json, describe, read_json
from ..agent import Agent
from ..session import Session
from ..spec import SessionSpec, Way
from .asked import Initiate, UnprocessableError, check
from .callers import LiveCaller
from .custom_llm import VIOLATION
from .gate import Keys
from .http_api import base_of, policy_of, scenario_of
from .screen import Screen, frame
from .sound import Ear, Noise, Quiet
from .switchboard import Asked, BusyError, Switchboard
from .tasks import end

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
            asked = Asked(
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

"""What a client of the websocket sees of a session: each step as frames."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ...wire import Json
from ..conversation import CHARS_PER_S
from ..steps import FunctionCalled, HungUp, Rendered, Said, Step, StepLog
from .sound import tone


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

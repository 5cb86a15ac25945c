"""An application with a sandbox, and clients of its emulator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient, WebSocketTestSession

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse
from support.app import MakeHooks
from support.waiting import eventually

API = "/sandbox/api"
KEY = {"authorization": "a private key"}
VOICE: dict[str, Any] = {"provider": "openai", "voice_id": "alloy"}
#: As `start_outbound_call` takes it.
OUTBOUND: dict[str, Any] = {"from_phone": "+14155550199", "to_phone": "+14155550134"}


def rehearsing(make_hooks: MakeHooks, ended: list[EndOfCall], **settings: Any) -> MillisHooks:
    """An application whose handlers answer, and keep what has ended in `ended`."""
    hooks = make_hooks(**({"sandbox": True, "sandbox_pace": 1000} | settings))

    @hooks.on_prefetch
    def tell(call: PrefetchRequest) -> PrefetchResponse:
        return PrefetchResponse(metadata={"caller": "Grace"}, extra_prompt="Be kind.")

    @hooks.on_end_of_call
    def keep(call: EndOfCall) -> None:
        ended.append(call)

    return hooks


def client_of(hooks: MillisHooks, **options: Any) -> TestClient:
    """A client on this machine, with a private key."""
    here = {"base_url": "http://localhost:8000", "client": ("127.0.0.1", 50000), "headers": KEY}
    return TestClient(hooks, **(here | options))


@contextmanager
def call(
    client: TestClient,
    path: str = "/millis",
    *,
    data: object = None,
    headers: dict[str, str] | None = None,
) -> Iterator[WebSocketTestSession]:
    """A connection on which `initiate` was said."""
    url = f"ws://localhost:8000{API}{path}"
    with client.websocket_connect(url, headers=headers or {}) as socket:
        socket.send_json({"method": "initiate", "data": data or initiate()})
        yield socket


def initiate(agent_id: str | None = "-Ox1ofADoor", **fields: Any) -> dict[str, Any]:
    return {"agent": {"agent_id": agent_id}, "public_key": "a public key"} | fields


def until(socket: WebSocketTestSession, method: str, data: object = None) -> list[dict[str, Any]]:
    """Return the messages up to one of this method (and data); audio among them is left out."""
    seen: list[dict[str, Any]] = []
    while True:
        frame = socket.receive()
        socket._raise_on_close(frame)
        if frame.get("text") is None:
            continue
        message = json.loads(frame["text"])
        seen.append(message)
        if message["method"] == method and data in (None, message.get("data")):
            return seen


def entry(client: TestClient, session_id: str) -> dict[str, Any]:
    """The call in the sandbox's call logs, once it is over."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = client.get(f"{API}/call-logs/{session_id}").json()
        return found if found.get("duration") is not None else {}

    return eventually(look)

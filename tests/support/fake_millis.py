"""Millis' HTTP API as far as the client of it goes: what it was asked, and answers to order."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from millis_hooks.millis_api import MillisApi
from millis_hooks.protocol.samples import end_of_call_body

KEY = "the-private-key-of-the-tests"
BASE = "https://millis.example"


class FakeMillis:
    """An account at Millis: its call logs, newest first, and every request it got."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.agents: list[Any] = []
        #: What a PUT does to a configuration: merge into it, or take its place.
        self.replaces = False
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        #: Answered, or raised, in turn before anything else is.
        self.troubles: list[Response | Exception] = []
        self.page_size = 2
        self.app = Starlette(
            routes=[
                Route("/start_outbound_call", self._start, methods=["POST"]),
                Route("/register_call", self._start, methods=["POST"]),
                Route("/sessions/{session_id}/terminate", self._terminate, methods=["POST"]),
                Route("/agents", self._agents),
                Route("/agents/{agent_id}", self._agent, methods=["GET", "PUT"]),
                Route("/call-logs", self._call_logs),
                Route("/call-logs/{session_id}", self._call_log),
            ]
        )

    def client(self, **options: Any) -> MillisApi:
        """A client of it, over no network."""
        return MillisApi(KEY, base_url=BASE, transport=_Transport(self), **options)

    def add(self, session_id: str, *, at: datetime, **fields: Any) -> dict[str, Any]:
        """Add a call that began then."""
        body = end_of_call_body(session_id=session_id, started_at=at)
        entry: dict[str, Any] = json.loads(body) | fields
        self.entries.append(entry)
        self.entries.sort(key=lambda each: -float(each["ts"]))
        return entry

    @property
    def paths(self) -> list[str]:
        """What was asked, in order."""
        return [path for path, _ in self.asked]

    async def _start(self, request: Request) -> Response:
        number = len(self.asked)
        return JSONResponse({"call_id": f"call-{number}", "session_id": f"-started-{number}"})

    async def _terminate(self, request: Request) -> Response:
        return JSONResponse({"success": True})

    async def _agents(self, request: Request) -> Response:
        return JSONResponse(self.agents)

    async def _agent(self, request: Request) -> Response:
        wanted = request.path_params["agent_id"]
        agent = next((each for each in self.agents if each["id"] == wanted), None)
        if agent is None:
            return JSONResponse({"detail": "Agent not found"}, 404)
        if request.method == "PUT":
            config = self.asked[-1][1]["config"]
            agent["config"] = config if self.replaces else agent["config"] | config
            return JSONResponse({"success": True})
        return JSONResponse(agent)

    async def _call_logs(self, request: Request) -> Response:
        query = request.query_params
        listed = [
            entry
            for entry in self.entries
            if float(query.get("start_time", 0)) <= float(entry["ts"])
            and float(entry["ts"]) < float(query.get("start_after_ts", "inf"))
        ]
        page = listed[: self.page_size]
        more = len(listed) > len(page)
        return JSONResponse({"histories": page, "next_cursor": page[-1]["ts"] if more else None})

    async def _call_log(self, request: Request) -> Response:
        session_id = request.path_params["session_id"]
        for entry in self.entries:
            if entry["session_id"] == session_id:
                return JSONResponse(entry)
        return JSONResponse({"detail": "Call history not found"}, 404)


class _Transport(httpx2.AsyncBaseTransport):
    """Brings requests to the application, unless trouble comes first."""

    def __init__(self, millis: FakeMillis) -> None:
        self._millis = millis
        self._transport = httpx2.ASGITransport(app=millis.app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        millis = self._millis
        content = await request.aread()
        told = json.loads(content) if content else dict(request.url.params)
        millis.asked.append((request.url.raw_path.partition(b"?")[0].decode(), told))
        millis.headers.append(dict(request.headers))
        if not millis.troubles:
            return await self._transport.handle_async_request(request)
        trouble = millis.troubles.pop(0)
        if isinstance(trouble, Exception):
            raise trouble
        return httpx2.Response(
            trouble.status_code, headers=dict(trouble.headers), content=bytes(trouble.body)
        )


def _recorded(millis: FakeMillis) -> ASGIApp:
    """Note in `asked` what comes by the network."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        content = await request.body()
        told = json.loads(content) if content else dict(request.query_params)
        millis.asked.append((request.url.path, told))
        millis.headers.append(dict(request.headers))
        await millis.app(scope, receive, send)

    return app


@contextmanager
def served(millis: FakeMillis) -> Iterator[str]:
    """Serve it on this machine, for what takes an address; yields that."""
    config = uvicorn.Config(_recorded(millis), port=0, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

"""Millis' HTTP API, as far as calls and agents go. Errors have the shape of FastAPI's.

Text chat: `POST /chat/completions`, answered as server-sent events.

There is no model here, so the answer is an echo. Of a chat that ends with `end_of_session` there is
an end-of-call, with the status `chat_completion`; before that Millis' documents name no webhook.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ..agent import Conversation, Ending
from ..call_spec import SessionSpec, Way
from ..scenario import Scenario
from .access import Keys
from .schemas import (
    AgentOfPhone,
    ChangedAgent,
    Chat,
    FunctionCall,
    HistoriesQuery,
    LogQuery,
    Message,
    NewAgent,
    OutboundCall,
    PhoneAgent,
    Registration,
    Termination,
    UnprocessableError,
    check,
    read,
)
from .sessions import SessionRequest, Switchboard
from .store import KnownAgent
from .users import echo


@dataclass(frozen=True, slots=True)
class _Told:
    """Goes through a chat that was held elsewhere."""

    messages: Sequence[Message]
    answer: str

    async def converse(self, conversation: Conversation) -> Ending:
        for message in self.messages:
            if message.role == "user" and message.content:
                await conversation.hear(message.content)
            elif message.role == "assistant" and message.content:
                await conversation.say(message.content)
        if self.answer:
            await conversation.say(self.answer)
        return Ending(CallStatus.CHAT_COMPLETION)


async def chat_events(
    switchboard: Switchboard, spec: SessionSpec, chat: Chat, base: str
) -> AsyncIterator[dict[str, str]]:
    """Yield the answer word by word; a session that is to be closed is told of meanwhile."""
    answer = _answer(chat.messages)
    if chat.end_of_session:
        await switchboard.connect(spec, _Told(chat.messages, answer), base)
    for number, word in enumerate(answer.split(" ")):
        yield _event({"content": f" {word}" if number else word})
    yield _event({}, finish_reason="stop")
    yield {"data": "[DONE]"}


def _answer(messages: Sequence[Message]) -> str:
    if messages and messages[-1].role == "user":
        return echo(messages[-1].content or "")
    return ""


def _event(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, str]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"data": json.dumps({"object": "chat.completion.chunk", "choices": [choice]})}


#: More of a body is not read.
MAX_BODY_BYTES = 1024 * 1024

#: Where a call by SIP would go; nobody is there.
SIP_HOST = "sip.invalid"

_Answer = Callable[[Request], Awaitable[Response]]


class HttpApi:
    """The routes, below any address."""

    def __init__(
        self, switchboard: Switchboard, keys: Keys, *, now: Callable[[], datetime]
    ) -> None:
        self._switchboard = switchboard
        self._shelf = switchboard.shelf
        self._keys = keys
        self._now = now

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            self._route("POST", "/start_outbound_call", self._start),
            self._route("POST", "/register_call", self._register, requires_key=True),
            self._route("POST", "/register_sip_call", self._register_sip, requires_key=True),
            self._route("POST", "/sessions/{session_id}/terminate", self._terminate),
            self._route("POST", "/sessions/{session_id}/call", self._call_function),
            self._route("POST", "/chat/completions", self._chat),
            self._route("GET", "/call-logs", self._call_logs, requires_key=True),
            self._route("GET", "/call-logs/{session_id}", self._call_log, requires_key=True),
            self._route("GET", "/agents", self._agents),
            self._route("POST", "/agents", self._make_agent),
            self._route("GET", "/agents/{agent_id}", self._agent),
            self._route("PUT", "/agents/{agent_id}", self._change_agent),
            self._route("DELETE", "/agents/{agent_id}", self._remove_agent),
            self._route("POST", "/agents/{agent_id}/duplicate", self._duplicate_agent),
            self._route("GET", "/agents/{agent_id}/call-histories", self._histories),
            self._route("GET", "/phones", self._phones),
            self._route("POST", "/phones/{phone}/set_agent", self._set_agent),
            self._route("POST", "/set_phone_agent", self._set_phone_agent),
        ]

    def _route(
        self, method: str, path: str, answer: _Answer, *, requires_key: bool = False
    ) -> Route:
        """Return a route that asks for the private key. Without one it is 401, or 422 where Millis'
        OpenAPI file has the header as required.
        """

        async def admitted(request: Request) -> Response:
            key = request.headers.get("authorization")
            if key is None and requires_key:
                missing = {"msg": "Field required", "type": "missing"}
                raise UnprocessableError([{"loc": ["header", "authorization"], **missing}])
            if key is not None and key.lower().startswith("bearer "):
                raise HTTPException(401, "The key stands alone in the header, without Bearer")
            if not self._keys.fits(key):
                raise HTTPException(401, "Unauthorized")
            return await answer(request)

        return Route(path, admitted, methods=[method], max_body_size=MAX_BODY_BYTES)

    async def _start(self, request: Request) -> Response:
        call = read(OutboundCall, await request.body())
        asked = _asked("outbound", call, request)
        base = base_of(request)
        spec = await self._switchboard.spec_of(asked, base)
        agent = self._switchboard.agent_for(spec, asked.scenario, None)
        session = await self._switchboard.connect(spec, agent, base)
        return JSONResponse({"call_id": session.call_id, "session_id": session.session_id})

    async def _register(self, request: Request) -> Response:
        spec = await self._registered(request)
        return JSONResponse({"call_id": spec.call_id, "session_id": spec.session_id})

    async def _register_sip(self, request: Request) -> Response:
        """Answer with what Millis' guide names and with what its sample has; nothing is there."""
        spec = await self._registered(request)
        address = f"sip:call-{spec.call_id}@{SIP_HOST}"
        return JSONResponse({"call_id": spec.call_id, "sip": address, "sip_uri": address})

    async def _registered(self, request: Request) -> SessionSpec:
        asked = _asked("registered", read(Registration, await request.body()), request)
        spec = await self._switchboard.spec_of(asked, base_of(request))
        self._switchboard.register(spec, asked.scenario)
        return spec

    async def _terminate(self, request: Request) -> Response:
        body = await request.body()
        message = read(Termination, body).message if body.strip() not in (b"", b"null") else None
        session_id = request.path_params["session_id"]
        if not await self._switchboard.terminate(session_id, message):
            raise HTTPException(404, "Session not found")
        return JSONResponse({"success": True})

    async def _call_function(self, request: Request) -> Response:
        called = read(FunctionCall, await request.body())
        session_id = request.path_params["session_id"]
        result = await self._switchboard.call_function(session_id, called.name, called.params)
        if result is None:
            raise HTTPException(404, "Session not found, or nobody is talking in it")
        return JSONResponse({"result": result})

    async def _chat(self, request: Request) -> Response:
        from sse_starlette import EventSourceResponse

        chat = read(Chat, await request.body())
        asked = SessionRequest(
            way="chat",
            choice=chat.agent,
            metadata=chat.agent.metadata or {},
            include_metadata_in_prompt=bool(chat.agent.include_metadata_in_prompt),
            policy=policy_of(request),
        )
        base = base_of(request)
        spec = await self._switchboard.spec_of(asked, base)
        return EventSourceResponse(chat_events(self._switchboard, spec, chat, base))

    async def _call_logs(self, request: Request) -> Response:
        query = check(LogQuery, dict(request.query_params), "query")
        histories, cursor = await self._switchboard.call_logs(query)
        return JSONResponse({"histories": histories, "next_cursor": cursor})

    async def _call_log(self, request: Request) -> Response:
        entry = await self._switchboard.call_log(request.path_params["session_id"])
        if entry is None:
            raise HTTPException(404, "Call history not found")
        return JSONResponse(entry)

    async def _histories(self, request: Request) -> Response:
        query = check(HistoriesQuery, dict(request.query_params), "query")
        items = await self._switchboard.histories(request.path_params["agent_id"], query)
        return JSONResponse({"items": items, "pagination": {"success": True}})

    async def _phones(self, _request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._shelf.phones))

    async def _set_phone_agent(self, request: Request) -> Response:
        asked = read(PhoneAgent, await request.body())
        return await self._put_phone(asked.phone, asked.agent_id)

    async def _set_agent(self, request: Request) -> Response:
        asked = read(AgentOfPhone, await request.body())
        phone = check(PhoneAgent, {"phone": request.path_params["phone"]}, "path").phone
        return await self._put_phone(phone, asked.agent_id)

    async def _put_phone(self, phone: str, agent_id: str | None) -> Response:
        await asyncio.to_thread(self._shelf.set_agent_of_phone, phone, agent_id)
        return JSONResponse({"success": True})

    async def _agents(self, _request: Request) -> Response:
        agents = await asyncio.to_thread(self._shelf.agents)
        return JSONResponse([agent.as_json() for agent in agents])

    async def _make_agent(self, request: Request) -> Response:
        new = read(NewAgent, await request.body())
        return await self._put_agent(new.name, new.config.as_given())

    async def _duplicate_agent(self, request: Request) -> Response:
        agent = await self._known(request)
        return await self._put_agent(agent.name, dict(agent.config))

    async def _put_agent(self, name: str, config: dict[str, Json]) -> Response:
        created_at = int(self._now().timestamp())
        agent = KnownAgent(self._switchboard.new_id(), name, config, created_at)
        await asyncio.to_thread(self._shelf.put_agent, agent)
        return JSONResponse(agent.as_json())

    async def _agent(self, request: Request) -> Response:
        return JSONResponse((await self._known(request)).as_json())

    async def _change_agent(self, request: Request) -> Response:
        agent, change = await self._known(request), read(ChangedAgent, await request.body())
        config = {**agent.config, **change.config.as_given()}
        changed = KnownAgent(agent.id, change.name, config, agent.created_at)
        await asyncio.to_thread(self._shelf.put_agent, changed)
        return JSONResponse({"success": True})

    async def _remove_agent(self, request: Request) -> Response:
        agent = await self._known(request)
        await asyncio.to_thread(self._shelf.remove_agent, agent.id)
        return JSONResponse({"success": True})

    async def _known(self, request: Request) -> KnownAgent:
        agent = await asyncio.to_thread(self._shelf.agent, request.path_params["agent_id"])
        if agent is None:
            raise HTTPException(404, "Agent not found")
        return agent


def _asked(way: Way, call: OutboundCall | Registration, request: Request) -> SessionRequest:
    return SessionRequest(
        way=way,
        choice=call,
        metadata=call.metadata or {},
        include_metadata_in_prompt=bool(call.include_metadata_in_prompt),
        continuation=call.session_continuation,
        from_phone=call.from_phone,
        to_phone=call.to_phone,
        scenario=scenario_of(request),
        policy=policy_of(request),
    )


def scenario_of(request: Any) -> Scenario | None:
    """Return the scenario that is named in the address; set by the stand-in."""
    scenario: Scenario | None = request.scope.get("state", {}).get("scenario")
    return scenario


def policy_of(request: Any) -> Mapping[str, Any]:
    """Return the settings of the policy that are in the address; set by the stand-in."""
    policy: Mapping[str, Any] = request.scope.get("state", {}).get("policy", {})
    return policy


def base_of(request: Any) -> str:
    """Return the address of the application that the sandbox is part of; set by the stand-in."""
    return str(request.scope["state"]["base"])


async def unprocessable(_request: Request, error: Exception) -> Response:
    """Answer what cannot be processed as Millis' API does."""
    detail = error.detail if isinstance(error, UnprocessableError) else str(error)
    return JSONResponse({"detail": detail}, 422)


async def refused(_request: Request, error: Exception) -> Response:
    """Answer what is refused for another reason; a `BusyError` may be tried again soon."""
    if isinstance(error, HTTPException):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    return JSONResponse({"detail": str(error)}, 429, {"Retry-After": "1"})

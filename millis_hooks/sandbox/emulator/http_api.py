"""Millis' HTTP API, as far as calls and agents go. Errors have the shape of FastAPI's.

A text chat, `POST /chat/completions`, is answered as server-sent events. There is no model here, so
the answer is an echo. A chat that ends with `end_of_session` has an end-of-call with the status
`chat_completion`; before that Millis' documents name no webhook.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ..agents import echo
from ..scenario import Ending, SessionSpec, Way
from ..session import Agent, Session
from .schemas import (
    AgentConfig,
    Body,
    ChatAgent,
    LogQuery,
    Message,
    OutboundCall,
    PartialAgentConfig,
    Phone,
    Registration,
    UnprocessableError,
    check,
    read,
)
from .sessions import SessionManager, address_of
from .store import StoredAgent

#: Longer bodies are refused.
MAX_BODY_BYTES = 1024 * 1024
#: So many of an agent's calls are listed at once.
MAX_HISTORIES = 1000
#: The host in SIP addresses, where no server is.
SIP_HOST = "sip.invalid"

_Handler = Callable[[Request], Awaitable[Response]]
_DONE = {"success": True}


class Termination(Body):
    """The body of `terminate`; the agent says the message before the call ends."""

    message: str | None = None


class FunctionCall(Body):
    """A function for the agent of a call to call; only the sandbox has it."""

    name: str
    params: dict[str, Json] = Field(default_factory=dict)


class NewAgent(Body):
    """The body of `POST agents`."""

    name: str
    config: AgentConfig


class ChangedAgent(Body):
    """The body of `PUT agents/{id}`: of the configuration only the keys to change."""

    name: str
    config: PartialAgentConfig


class AgentOfPhone(Body):
    """The body of `phones/{phone}/set_agent`."""

    agent_id: str | None = None


class PhoneAgent(AgentOfPhone):
    """The body of `set_phone_agent`."""

    phone: Phone


class Chat(Body):
    """The body of `chat/completions`."""

    agent: ChatAgent
    messages: list[Message]
    end_of_session: bool = False


class HistoriesQuery(Body):
    """The query of an agent's `call-histories`; Unix seconds."""

    start_at: float | None = None
    limit: int = 20


class HttpApi:
    """The routes of the API."""

    def __init__(self, sessions: SessionManager, *, now: Callable[[], datetime]) -> None:
        self._sessions = sessions
        self._store = sessions.store
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
        self, method: str, path: str, handler: _Handler, *, requires_key: bool = False
    ) -> Route:
        """Return a route that asks for the private key.

        Without one it is 401, or 422 where Millis' OpenAPI file has the header as required.
        """

        async def authorized(request: Request) -> Response:
            key = request.headers.get("authorization")
            if key is None and requires_key:
                missing = {"msg": "Field required", "type": "missing"}
                raise UnprocessableError([{"loc": ["header", "authorization"], **missing}])
            if key is not None and key.lower().startswith("bearer "):
                raise HTTPException(401, "The key stands alone in the header, without Bearer")
            if not self._sessions.accepts(key):
                raise HTTPException(401, "Unauthorized")
            return await handler(request)

        return Route(path, authorized, methods=[method], max_body_size=MAX_BODY_BYTES)

    async def _start(self, request: Request) -> Response:
        call = read(OutboundCall, await request.body())
        spec, address = await self._spec_of("outbound", call, request), address_of(request)
        session = await self._sessions.start(spec, address.base, scenario=address.scenario)
        return JSONResponse({"call_id": session.call_id, "session_id": session.session_id})

    async def _register(self, request: Request) -> Response:
        spec = await self._registered(request)
        return JSONResponse({"call_id": spec.call_id, "session_id": spec.session_id})

    async def _register_sip(self, request: Request) -> Response:
        """Answer with both fields, that of Millis' guide and that of its sample."""
        spec = await self._registered(request)
        address = f"sip:call-{spec.call_id}@{SIP_HOST}"
        return JSONResponse({"call_id": spec.call_id, "sip": address, "sip_uri": address})

    async def _registered(self, request: Request) -> SessionSpec:
        call = read(Registration, await request.body())
        spec = await self._spec_of("registered", call, request)
        self._sessions.register(spec, address_of(request).scenario)
        return spec

    async def _spec_of(self, way: Way, call: Registration, request: Request) -> SessionSpec:
        phones = {"from_phone": call.from_phone, "to_phone": call.to_phone}
        return await self._sessions.spec_of(way, call, call, address_of(request), **phones)

    async def _terminate(self, request: Request) -> Response:
        body = await request.body()
        message = read(Termination, body).message if body.strip() not in (b"", b"null") else None
        if not await self._sessions.terminate(request.path_params["session_id"], message):
            raise HTTPException(404, "Session not found")
        return JSONResponse(_DONE)

    async def _call_function(self, request: Request) -> Response:
        function = read(FunctionCall, await request.body())
        session_id = request.path_params["session_id"]
        result = await self._sessions.call_function(session_id, function.name, function.params)
        if result is None:
            raise HTTPException(404, "Session not found, or not in a conversation")
        return JSONResponse({"result": result})

    async def _chat(self, request: Request) -> Response:
        from sse_starlette import EventSourceResponse

        chat = read(Chat, await request.body())
        # The scenarios have no chat.
        address = replace(address_of(request), scenario=None)
        spec = await self._sessions.spec_of("chat", chat.agent, chat.agent, address)
        return EventSourceResponse(self._chat_events(spec, chat, address.base))

    async def _chat_events(
        self, spec: SessionSpec, chat: Chat, base: str
    ) -> AsyncIterator[dict[str, str]]:
        """Yield the answer word by word; a chat that ends is run as a session meanwhile."""
        last = chat.messages[-1] if chat.messages else None
        answer = echo(last.content) if last is not None and last.role == "user" else ""
        if chat.end_of_session:
            await self._sessions.start(spec, base, agent=_ended_chat(chat.messages, answer))
        for number, word in enumerate(answer.split(" ")):
            yield _chat_event({"content": f" {word}" if number else word})
        yield _chat_event({}, finish_reason="stop")
        yield {"data": "[DONE]"}

    async def _call_logs(self, request: Request) -> Response:
        query = check(LogQuery, dict(request.query_params), "query")
        one_more = query.model_copy(update={"limit": query.limit + 1})
        entries = await asyncio.to_thread(self._store.calls, one_more)
        page = entries[: query.limit]
        cursor = page[-1]["ts"] if len(entries) > query.limit else None
        return JSONResponse({"histories": page, "next_cursor": cursor})

    async def _call_log(self, request: Request) -> Response:
        entry = await asyncio.to_thread(self._store.call, request.path_params["session_id"])
        if entry is None:
            raise HTTPException(404, "Call history not found")
        return JSONResponse(entry)

    async def _histories(self, request: Request) -> Response:
        query = check(HistoriesQuery, dict(request.query_params), "query")
        filters = LogQuery.model_construct(
            limit=min(max(query.limit, 0), MAX_HISTORIES),
            agent_id=request.path_params["agent_id"],
            end_time=query.start_at,
        )
        entries = await asyncio.to_thread(self._store.calls, filters)
        items = [_without_nulls(entry) for entry in entries]
        return JSONResponse({"items": items, "pagination": {"success": True}})

    async def _phones(self, _request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._store.phones))

    async def _set_phone_agent(self, request: Request) -> Response:
        body = read(PhoneAgent, await request.body())
        return await self._put_phone(body.phone, body.agent_id)

    async def _set_agent(self, request: Request) -> Response:
        agent_id = read(AgentOfPhone, await request.body()).agent_id
        phone = check(PhoneAgent, {"phone": request.path_params["phone"]}, "path").phone
        return await self._put_phone(phone, agent_id)

    async def _put_phone(self, phone: str, agent_id: str | None) -> Response:
        await asyncio.to_thread(self._store.set_agent_of_phone, phone, agent_id)
        return JSONResponse(_DONE)

    async def _agents(self, _request: Request) -> Response:
        agents = await asyncio.to_thread(self._store.agents)
        return JSONResponse([asdict(agent) for agent in agents])

    async def _make_agent(self, request: Request) -> Response:
        new = read(NewAgent, await request.body())
        return await self._put_new_agent(new.name, new.config.as_given())

    async def _duplicate_agent(self, request: Request) -> Response:
        agent = await self._stored_agent(request)
        return await self._put_new_agent(agent.name, agent.config)

    async def _put_new_agent(self, name: str, config: dict[str, Json]) -> Response:
        created_at = int(self._now().timestamp())
        agent = StoredAgent(self._sessions.new_id(), name, config, created_at)
        await asyncio.to_thread(self._store.put_agent, agent)
        return JSONResponse(asdict(agent))

    async def _agent(self, request: Request) -> Response:
        return JSONResponse(asdict(await self._stored_agent(request)))

    async def _change_agent(self, request: Request) -> Response:
        agent, change = await self._stored_agent(request), read(ChangedAgent, await request.body())
        config = {**agent.config, **change.config.as_given()}
        changed = replace(agent, name=change.name, config=config)
        await asyncio.to_thread(self._store.put_agent, changed)
        return JSONResponse(_DONE)

    async def _remove_agent(self, request: Request) -> Response:
        agent = await self._stored_agent(request)
        await asyncio.to_thread(self._store.remove_agent, agent.id)
        return JSONResponse(_DONE)

    async def _stored_agent(self, request: Request) -> StoredAgent:
        agent = await asyncio.to_thread(self._store.agent, request.path_params["agent_id"])
        if agent is None:
            raise HTTPException(404, "Agent not found")
        return agent


def _ended_chat(messages: Sequence[Message], answer: str) -> Agent:
    async def converse(session: Session) -> Ending:
        for message in messages:
            if message.role != "tool" and message.content:
                await session.speak(message.role, message.content)
        if answer:
            await session.speak("assistant", answer)
        return Ending(CallStatus.CHAT_COMPLETION)

    return converse


def _chat_event(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, str]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"data": json.dumps({"object": "chat.completion.chunk", "choices": [choice]})}


def _without_nulls(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call as `call-histories` has it. Source: what `CallHistory` of agents requires."""
    defaults: dict[str, Any] = {"duration": 0, "chat": "", "chars_used": 0, "cost_breakdown": []}
    return {**entry, **{key: value for key, value in defaults.items() if entry.get(key) is None}}


async def refuse(_request: Request, error: Exception) -> Response:
    """Answer an error as Millis' API does; after a `BusyError` clients may try again soon."""
    if isinstance(error, UnprocessableError):
        return JSONResponse({"detail": error.detail}, 422)
    if isinstance(error, HTTPException):
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    return JSONResponse({"detail": str(error)}, 429, {"Retry-After": "1"})

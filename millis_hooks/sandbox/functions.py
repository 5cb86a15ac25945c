"""Functions of an agent that have a webhook: how they are called.

Without a method it is GET with the parameters in the query, beside what the address has of one; a
POST carries them as JSON. Source: `Function` in Millis' OpenAPI file and its tutorials; what is
said nowhere is the policy's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from ..protocol.reading import Json, finite
from ..protocol.typed_metadata import as_text
from .agent import Filling, tools_of
from .policy import Policy
from .steps import FunctionCalled, Sent
from .transport import Request, webhook_of_tool
from .webhook_client import Desk, Exchange

#: More of a result is not handed to the agent.
MAX_RESULT_CHARS = 64_000

_LATER = "It runs after the call."
_NO_WEBHOOK = "It has no webhook, and no answer in the scenario; it is only noted."
_UNKNOWN = "The agent has no function of this name, and the scenario no answer; it is only noted."
_STANDS_IN = "Not sent: the scenario has the answer."


class Functions:
    """Calls the functions of one session's agent, and remembers what came of it."""

    def __init__(
        self, desk: Desk, *, metadata: Mapping[str, Json], variables: Mapping[str, object]
    ) -> None:
        self._desk = desk
        self._metadata = metadata
        self._variables = variables
        self._tools = {tool["name"]: tool for tool in tools_of(desk.spec.agent_config)}
        self._for_later: list[tuple[str, Mapping[str, Json]]] = []
        #: As the end-of-call has them: name, params and result.
        self.called: list[dict[str, Json]] = []

    async def call(self, name: str, params: Mapping[str, Json]) -> str:
        """Call a function, or keep it for after the call; return what the agent is told of it."""
        filled = Filling(self._variables, self._desk.spec.policy).fill_all(dict(params), name)
        params = filled if isinstance(filled, dict) else {}
        tool = self._tool(name)
        if tool.get("exclude_session_id") is not True:
            params = {**params, "session_id": self._desk.session_id}
        if tool.get("run_after_call") is True:
            self._for_later.append((name, params))
            self._desk.add(FunctionCalled(name=name, params=params, notes=(_LATER,)))
            return ""
        return await self._send(name, params)

    async def call_those_for_later(self) -> None:
        """Call the functions that run after the call."""
        for name, params in self._for_later:
            await self._send(name, params)
        self._for_later.clear()

    def _tool(self, name: str) -> Mapping[str, Any]:
        """Return a function as configured; those of Millis' own have no webhook either."""
        return self._tools.get(name, {"name": name})

    async def _send(self, name: str, params: Mapping[str, Json]) -> str:
        exchange, notes = await self._exchange(name, params)
        failure = exchange.refusal()
        text = "" if exchange.answer is None else exchange.answer.text
        result = (f"Failed: {failure}" if failure else text)[:MAX_RESULT_CHARS]
        fields = exchange.fields() | {"failure": failure, "result": result, "notes": notes}
        self._desk.add(FunctionCalled(name=name, params=params, **fields))
        self.called.append({"name": name, "params": dict(params), "result": result})
        return result

    async def _exchange(
        self, name: str, params: Mapping[str, Json]
    ) -> tuple[Exchange, tuple[str, ...]]:
        policy, tool = self._desk.spec.policy, self._tool(name)
        request = function_request(
            tool, params, metadata=self._metadata, variables=self._variables, policy=policy
        )
        answer = self._desk.spec.function_answers.get(name)
        if answer is not None or request is None:
            sent = None if request is None else Sent.of(request)
            missing = _NO_WEBHOOK if name in self._tools else _UNKNOWN
            note = missing if answer is None else _STANDS_IN
            return Exchange(sent, answer, None, 0.0), (note,)
        return await self._desk.send(request, timeout_s=timeout_of(tool, policy)), ()


def function_request(
    tool: Mapping[str, Any],
    params: Mapping[str, Json],
    *,
    metadata: Mapping[str, Json],
    variables: Mapping[str, object],
    policy: Policy,
) -> Request | None:
    """Return the request that calls a function; None if it has no webhook."""
    webhook = webhook_of_tool(tool)
    if webhook is None:
        return None
    url, headers = Filling(variables, policy).webhook(webhook, "webhook")
    sent = _with_metadata(tool, params, metadata, policy)
    method = tool.get("method")
    method = method.upper() if isinstance(method, str) and method else policy.tool_method
    if method in {"GET", "DELETE", "HEAD"}:
        query = urlencode(
            {key: as_text(value) for key, value in sent.items()}, quote_via=quote, errors="replace"
        )
        return Request(method, url, headers, query.encode())
    if not any(name.lower() == "content-type" for name, _ in headers):
        headers = (*headers, ("content-type", "application/json"))
    return Request(method, url, headers, body=json.dumps(sent).encode())


def timeout_of(tool: Mapping[str, Any], policy: Policy) -> float:
    """Return how many seconds the function may take."""
    timeout_s = finite(tool.get("timeout"))
    return timeout_s if timeout_s and timeout_s > 0 else policy.tool_timeout_s


def _with_metadata(
    tool: Mapping[str, Any],
    params: Mapping[str, Json],
    metadata: Mapping[str, Json],
    policy: Policy,
) -> dict[str, Json]:
    """Add the metadata, if the function gets it; a parameter of the same name wins."""
    included = tool.get("include_metadata")
    is_wanted = {
        "always": True,
        "unless-excluded": included is not False,
        "if-included": included is True,
        "never": False,
    }
    if not is_wanted[policy.tool_metadata]:
        return dict(params)
    if policy.tool_metadata_as == "object":
        return {"metadata": dict(metadata), **params}
    return {**metadata, **params}

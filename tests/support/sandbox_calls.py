"""What the tests of the sandbox share: a receiver that answers as told, and calls to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from millis_hooks.sandbox.agents import scripted
from millis_hooks.sandbox.scenario import Line, Script, SessionSpec, ToolUse
from millis_hooks.sandbox.session import Agent, Session
from millis_hooks.sandbox.transport import Answer, Request, TransportError

PREFETCH, END = "http://receiver.test/prefetch", "http://receiver.test/end"
WEBHOOKS: Mapping[str, Any] = {
    "extra_prompt_webhook": {"url": PREFETCH, "headers": {"Authorization": "Bearer of the tests"}},
    "session_data_webhook": END,
}
SAID = (Line("user", "Hello."), Line("assistant", "Good morning."))

Reply = Answer | TransportError


class Receiver:
    """A transport that keeps what it is sent, and answers as it was told, or with {}."""

    def __init__(self, **replies: Reply | Sequence[Reply]) -> None:
        self.sent: list[Request] = []
        self._replies = {
            name: list(reply) if isinstance(reply, Sequence) else [reply]
            for name, reply in replies.items()
        }

    async def send(self, request: Request, *, timeout_s: float) -> Answer:
        self.sent.append(request)
        name = request.url.partition("?")[0].rpartition("/")[2]
        replies = self._replies.get(name, [json_answer({})])
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, TransportError):
            raise reply
        return reply

    def to(self, name: str) -> list[Request]:
        return [one for one in self.sent if one.url.partition("?")[0].endswith(f"/{name}")]

    @property
    def ends(self) -> list[dict[str, Any]]:
        """The end-of-calls as they were received."""
        return [json.loads(request.body or b"") for request in self.to("end")]

    @property
    def query(self) -> dict[str, str]:
        """The query of the prefetch."""
        return dict(parse_qsl(self.to("prefetch")[0].query.decode(), keep_blank_values=True))


def json_answer(value: object, status_code: int = 200) -> Answer:
    return Answer(status_code, json.dumps(value).encode(), "application/json")


def call(
    receiver: Receiver,
    *turns: Line | ToolUse,
    agent: Agent | None = None,
    script: Script | None = None,
    prompt: str = "",
    config: Mapping[str, Any] | None = None,
    during: Callable[[Session], object] = lambda session: None,
    **spec: Any,
) -> Session:
    """Run one call, made of `turns` or of a whole script, against `receiver`."""
    talking = agent or scripted(script or Script(turns=turns or SAID))
    agent_config = {**WEBHOOKS, "prompt": prompt, **(config or {})}

    async def run() -> Session:
        whole = SessionSpec(agent_config=agent_config, **spec)
        session = Session(whole, talking, receiver)
        during(session)
        return await session.run()

    return asyncio.run(run())

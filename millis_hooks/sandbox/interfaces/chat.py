"""Text chat: `POST /chat/completions`, answered as server-sent events.

There is no model here, so the answer is an echo. Of a chat that ends with `end_of_session` there is
an end-of-call, with the status `chat_completion`; before that Millis' documents name no webhook.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...call_status import CallStatus
from ..agent import Ending
from ..conversation import Conversation
from ..spec import SessionSpec
from .asked import Chat, Message
from .callers import echo
from .switchboard import Switchboard


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

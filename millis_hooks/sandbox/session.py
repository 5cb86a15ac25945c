"""One call, from its first step to its entry in the call logs, in the order that Millis has.

attach metadata -> prefetch -> merge -> fill in the texts -> talk and call functions -> hang up
-> functions that run after the call -> end-of-call -> call log

The agent does the talking through the session. It follows a script, echoes (`agent`), or is the
team's own model.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Self, TypeAlias

from ..masking.error_report import describe_failure
from ..masking.policy import mask_secrets
from ..protocol.call_status import CallStatus
from ..protocol.reading import Json, finite
from ..protocol.samples import push_id
from ..protocol.variables import variables_of
from ..webhooks import Marker
from .scenario import UNREACHED, Ending, Role, SessionSpec
from .steps import (
    Attached,
    Clock,
    EndDelivered,
    FunctionCalled,
    HungUp,
    Logged,
    Noted,
    Prefetched,
    Rendered,
    Said,
    StepLog,
)
from .texts import (
    Filling,
    ignored_parts,
    merge_metadata,
    render,
    tools_of,
    undeclared,
)
from .transport import END_OF_CALL, PREFETCH, Transport, webhook_of, webhook_of_tool
from .webhook_client import PrefetchAnswer, SimulatedCall, WebhookClient

logger = logging.getLogger("millis_hooks.sandbox")

#: How fast people talk, in characters a second.
CHARS_PER_S = 15.0

#: Where an agent has what it says when a call ends, by its status. Source: the OpenAPI file.
_LAST_WORDS: Mapping[str, str] = {
    CallStatus.TIMEOUT: "session_timeout.message",
    CallStatus.VOICEMAIL_MESSAGE: "flow.voicemail.message",
}
_UNREACHED = "A call that never connected: Millis most likely sends no end-of-call."


#: Talks and calls functions through a session, and returns how the conversation ended. It is
#: cancelled when the session is ended from elsewhere; an error of it ends the call with status
#: `error`.
Agent: TypeAlias = "Callable[[Session], Awaitable[Ending]]"


class ConversationTimeoutError(Exception):
    """The call has lasted as long as the agent's `session_timeout` allows."""


class Session(SimulatedCall):
    """A call as Millis runs it. It is made and run once, on one running event loop.

    After `run` its attributes say what became of it.
    """

    def __init__(
        self,
        spec: SessionSpec,
        agent: Agent,
        transport: Transport,
        *,
        clock: Clock | None = None,
        mark: Marker | None = None,
        declared: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Have `agent` talk, and `transport` carry the requests; without a clock nothing waits.

        `mark` makes the header that tells a receiver that the call is simulated. `declared` are
        the variables that the receiver completes; a note names others in the agent's texts.
        """
        self._clock = clock or Clock()
        now = self._clock.now()
        super().__init__(
            spec, session_id=spec.session_id or push_id(now), call_id=spec.call_id or push_id(now)
        )
        self._declared = declared
        self.log = StepLog(self._clock)
        #: Whether agent and caller are talking.
        self.is_talking = False
        #: The texts of the agent, filled in.
        self.texts = Rendered(prompt="")
        self._agent = agent
        self._client = WebhookClient(transport, self, self._clock, mark)
        self._filling = Filling(self._variables(), spec.policy)
        self._tools = {tool["name"]: tool for tool in tools_of(spec.agent_config)}
        self._functions_for_later: list[tuple[str, Mapping[str, Json]]] = []
        #: The message that `say_more` is adding to.
        self._open_turn: dict[str, Any] | None = None
        self._hung_up: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._longest_s = _longest_s(spec.agent_config)
        self._talks_since_s = self._clock.elapsed_s()

    def hang_up(self, call_status: str, error_message: str | None = None) -> None:
        """End the call from elsewhere: as a caller does, or Millis' `terminate` (`api-ended`).

        Before the conversation it ends at its beginning; afterwards nothing happens.
        """
        if not self._hung_up.done():
            self._hung_up.set_result(Ending(call_status, error_message))

    def note(self, note: str) -> None:
        """Log a remark for a person, as long as the log is open."""
        if not self.log.is_closed:
            self.log.add(Noted(notes=(note,)))

    def change(self, **changes: Any) -> None:
        """Change `vintage`, `faults` or `extra_fields` of the spec, until the call has ended."""
        if not self.has_ended:
            self.spec = replace(self.spec, **changes)

    async def run(self) -> Self:
        """Go through the whole call; failures on the way are in its log."""
        try:
            await self._run()
        finally:
            self.log.close()
        return self

    def log_entry(self) -> dict[str, Any]:
        """Return what Millis' call logs have of the call; during the call, that is little."""
        if not self.has_ended:
            self._measure()
        return super().log_entry()

    @property
    def lasted_s(self) -> float:
        """How long the conversation has lasted, in seconds."""
        return self._clock.elapsed_s() - self._talks_since_s

    async def greet(self) -> None:
        """Say the first message, if the agent has one and does not let the caller begin."""
        flow = self.spec.agent_config.get("flow")
        waits = isinstance(flow, dict) and flow.get("user_start_first") is True
        if self.texts.first_message and not waits:
            await self.speak("assistant", self.texts.first_message)

    async def speak(self, role: Role, text: str) -> None:
        """Have the caller (`user`) or the agent (`assistant`) say `text`.

        In a script it takes the time of speaking. Raises `ConversationTimeoutError` as `pause`.
        """
        self.end_turn()
        self._say(role, text)
        if not self._clock.is_live:
            await self.pause(len(text) / CHARS_PER_S)

    def say_more(self, text: str) -> None:
        """Have the agent say the next piece of its turn; the first piece begins one."""
        continues = self._open_turn is not None
        if self._open_turn is None:
            self._open_turn = {"role": "assistant", "content": ""}
            self.messages.append(self._open_turn)
        self._open_turn["content"] += text
        self.log.add(Said(role="assistant", text=text, continues=continues, is_final=False))

    def end_turn(self) -> None:
        """Complete the turn begun by `say_more`, if there is one."""
        if self._open_turn is not None:
            self._open_turn = None
            self.log.add(Said(role="assistant", text="", continues=True))

    async def call_function(self, name: str, params: Mapping[str, Json]) -> str:
        """Have the agent call one of its functions; return its result, also of a failure.

        Before it, the agent says the first of the messages that the function has. Raises
        `ConversationTimeoutError` as `pause`.
        """
        self.end_turn()
        # Functions of Millis' own, and unknown ones, are not configured.
        tool = self._tools.get(name, {})
        runs_later = tool.get("run_after_call") is True
        if not runs_later:
            for text in self.texts.messages.get(f"tools.{name}.messages", ())[:1]:
                await self.speak("assistant", text)
        filled = self._filling.fill_all(dict(params), name)
        fields = filled if isinstance(filled, dict) else {}
        if tool.get("exclude_session_id") is not True:
            fields["session_id"] = self.session_id
        call = self._keep_for_later if runs_later else self._call
        result = await call(name, fields)
        self.messages += _function_turns(name, params, result, len(self.messages))
        self._require_time()
        return result

    async def pause(self, seconds: float) -> None:
        """Let time pass; raises `ConversationTimeoutError` if the call may not last that long."""
        if seconds > 0:
            left_s = seconds if self._longest_s is None else self._longest_s - self.lasted_s
            await self._clock.pass_time(max(min(seconds, left_s), 0.0))
        self._require_time()

    def _require_time(self) -> None:
        if self._longest_s is not None and self.lasted_s >= self._longest_s:
            raise ConversationTimeoutError

    def _say(self, role: Role, text: str) -> None:
        self.messages.append({"role": role, "content": text})
        self.log.add(Said(role=role, text=text))

    async def _run(self) -> None:
        self._attach()
        failure = await self._begin()
        self._talks_since_s = self._clock.elapsed_s()
        self.ending = await self._converse(failure)
        for text in self.texts.messages.get(_LAST_WORDS.get(self.ending.call_status, ""), ())[:1]:
            self._say("assistant", text)
        self._measure()
        self.log.add(
            HungUp(
                call_status=self.ending.call_status,
                duration_s=round(self.duration_s, 3),
                error_message=self.ending.error_message,
            )
        )
        if self.spec.policy.run_after_call == "before-end-of-call":
            await self._call_functions_for_later()
        await self._deliver()
        await self._call_functions_for_later()
        self.is_logged = True
        masked = mask_secrets(self.log_entry()).value
        self.log.add(Logged(entry=masked if isinstance(masked, dict) else {}))

    def _attach(self) -> None:
        spec = self.spec
        self.log.add(
            Attached(
                way=spec.way,
                session_id=self.session_id,
                call_id=self.call_id,
                agent_id=spec.agent_id,
                from_phone=spec.from_phone,
                to_phone=spec.to_phone,
                metadata=dict(spec.metadata),
                notes=tuple(spec.notes),
            )
        )

    async def _begin(self) -> str | None:
        """Prefetch, merge and fill in the texts; return why the prefetch failed, if it did."""
        if self.spec.unreached is not None and not self.spec.policy.prefetch_if_unreached:
            self.texts = self._render(None)
            return None
        answer = await self._prefetch()
        merged = merge_metadata(
            self.metadata, answer.metadata, self.spec.policy, answer.extra_prompt
        )
        self.log.add(merged)
        self.metadata = merged.metadata
        self._filling.variables = self._variables()
        self.texts = self._render(merged.extra_prompt)
        self.log.add(self.texts)
        return answer.failure

    async def _prefetch(self) -> PrefetchAnswer:
        webhook = webhook_of(self.spec.agent_config.get(PREFETCH))
        if webhook is None:
            self.log.add(Prefetched(notes=("The agent has no prefetch webhook.",)))
            return PrefetchAnswer()
        webhook = self._filling.fill_webhook(webhook, PREFETCH)
        step, answer = await self._client.prefetch(webhook)
        self.log.add(step)
        return answer

    def _variables(self) -> Mapping[str, object]:
        spec = self.spec
        return variables_of(self.metadata, from_phone=spec.from_phone, to_phone=spec.to_phone)

    def _render(self, extra_prompt: str | None) -> Rendered:
        spec = self.spec
        texts = render(
            spec.agent_config,
            self._filling,
            extra_prompt=extra_prompt,
            metadata_in_prompt=self.metadata if spec.include_metadata_in_prompt else None,
        )
        notes: list[str] = []
        if texts.unresolved:
            policy = spec.policy.missing_variables
            notes.append(f"Unknown names are {policy}: Millis does not say what it does with them.")
        notes += undeclared(spec.agent_config, self._declared)
        if ignored := ignored_parts(spec.agent_config):
            notes.append(f"Not rehearsed here: {', '.join(ignored)}.")
        return replace(texts, notes=tuple(notes))

    async def _converse(self, prefetch_failure: str | None) -> Ending:
        """Have the agent talk until it ends the call, or it is ended from elsewhere."""
        if self.spec.unreached is not None:
            return Ending(self.spec.unreached)
        if prefetch_failure and self.spec.policy.on_prefetch_failure == "end-call":
            return Ending(CallStatus.ERROR, f"The prefetch failed: {prefetch_failure}.")
        self.is_talking = True
        talking = asyncio.ensure_future(self._agent(self))
        longest_s = self._longest_s if self._clock.is_live else None
        try:
            await asyncio.wait(
                {talking, self._hung_up}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self.is_talking = False
            has_ended = talking.done()
            talking.cancel()
            await asyncio.wait({talking})
        if self._hung_up.done():
            return self._hung_up.result()
        return _ending_of(talking) if has_ended else Ending(CallStatus.TIMEOUT)

    async def _keep_for_later(self, name: str, params: Mapping[str, Json]) -> str:
        self._functions_for_later.append((name, params))
        notes = ("It runs after the call.",)
        self.log.add(FunctionCalled(name=name, params=params, notes=notes))
        return ""

    async def _call_functions_for_later(self) -> None:
        for name, params in self._functions_for_later:
            await self._call(name, params)
        self._functions_for_later.clear()

    async def _call(self, name: str, params: Mapping[str, Json]) -> str:
        tool = self._tools.get(name, {})
        webhook = webhook_of_tool(tool)
        filled = webhook and self._filling.fill_webhook(webhook, "webhook")
        step = await self._client.call_function(name, tool, filled, params)
        self.log.add(step)
        self.function_calls.append({"name": name, "params": dict(params), "result": step.result})
        return step.result or ""

    async def _deliver(self) -> None:
        webhook = webhook_of(self.spec.agent_config.get(END_OF_CALL))
        if webhook is None or (reason := self._why_withheld()):
            note = "The agent has no end-of-call webhook." if webhook is None else reason
            self.log.add(EndDelivered(vintage=self.spec.vintage, notes=(note,)))
            return
        async for step in self._client.end_of_call(
            self._filling.fill_webhook(webhook, END_OF_CALL)
        ):
            self.log.add(step)

    def _why_withheld(self) -> str:
        if self.spec.faults.end_of_call == "never":
            return "It is not sent, on purpose."
        is_sent = self.ending.call_status not in UNREACHED
        return "" if is_sent or self.spec.policy.end_of_call_if_unreached else _UNREACHED

    @property
    def has_ended(self) -> bool:
        """Whether the conversation is over."""
        return bool(self.log.of(HungUp))

    def _measure(self) -> None:
        """Set when the call began and how long it lasted until now.

        Where waiting is skipped, a late end-of-call is of a call that ended earlier.
        """
        is_late = self.spec.faults.end_of_call == "late" and not self._clock.is_live
        ended_s_ago = self.spec.policy.late_by_s if is_late else 0.0
        self.duration_s = self.lasted_s
        self.started_at = self._clock.now() - timedelta(seconds=ended_s_ago + self.duration_s)


def _longest_s(agent_config: Mapping[str, Json]) -> float | None:
    limits = agent_config.get("session_timeout")
    longest_s = finite(limits.get("max_duration")) if isinstance(limits, dict) else None
    return longest_s if longest_s and longest_s > 0 else None


def _function_turns(
    name: str, params: Mapping[str, Json], result: str, number: int
) -> list[dict[str, Any]]:
    function = {"name": name, "arguments": json.dumps(params)}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result, "tool_call_id": call["id"]},
    ]


def _ending_of(talking: asyncio.Future[Ending]) -> Ending:
    """Return how an agent ended the call; one that fails ends it with an error."""
    try:
        return talking.result()
    except ConversationTimeoutError:
        return Ending(CallStatus.TIMEOUT)
    except Exception as error:
        failure = describe_failure(error)
        logger.warning("the agent of a sandbox call failed\n%s", failure.block)
        return Ending(CallStatus.ERROR, str(failure))

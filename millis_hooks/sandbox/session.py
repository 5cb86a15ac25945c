"""One call, from its first step to its entry in the call logs, in the order that Millis has.

attach metadata -> prefetch -> merge -> fill in the texts -> talk and call functions -> hang up
-> functions that run after the call -> end-of-call -> call log
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any, Self

from ..masking.error_report import describe_failure
from ..masking.policy import mask_secrets
from ..protocol.call_status import CallStatus
from ..protocol.reading import Json
from ..protocol.samples import (
    PayloadOptions,
    Vintage,
    end_of_call_body,
    end_of_call_payload,
    push_id,
)
from ..protocol.variables import variables_of
from ..webhooks import Marker
from .agent import Agent, Clock, Conversation, ConversationTimeoutError
from .scenario import UNREACHED, Ending, SessionSpec
from .steps import (
    Attached,
    EndDelivered,
    FunctionCalled,
    HungUp,
    Logged,
    Merged,
    Noted,
    Prefetched,
    Rendered,
    Sent,
    Step,
    StepLog,
)
from .texts import Filling, ignored_parts, merge_metadata, render, tools_of
from .transport import END_OF_CALL, PREFETCH, Answer, Request, Transport, webhook_of
from .webhook_client import (
    JSON_TYPE,
    Exchange,
    PrefetchAnswer,
    WebhookClient,
    call_content,
    function_request,
    function_timeout_s,
    notes_on_prefetch,
    prefetch_request,
    read_prefetch_answer,
)

logger = logging.getLogger("millis_hooks.sandbox")

#: Longer results of functions are cut before the agent gets them.
MAX_RESULT_CHARS = 64_000

_FAULTY_ANSWERS = {
    "error": Answer(500, b'{"error":"internal server error"}', "application/json"),
    "bad-json": Answer(200, b'{"metadata": {"caller": ', "application/json"),
}
_RUNS_LATER = "It runs after the call."
_NO_WEBHOOK = "It has no webhook, and no answer in the scenario; it is only noted."
_UNKNOWN = "The agent has no function of this name, and the scenario no answer; it is only noted."
_ANSWERED = "Not sent: the scenario has the answer."
_UNREACHED = "A call that never connected: Millis most likely sends no end-of-call."
_TWICE = "The same body once more, on purpose."


class Session:
    """A call as Millis runs it. It is made and run once, on one running event loop.

    After `run` its attributes say what became of it.
    """

    #: How the conversation ended.
    ending: Ending
    #: What Millis' call logs have of it: `CallHistory` in its OpenAPI file.
    log_entry: Mapping[str, Json]

    def __init__(
        self,
        spec: SessionSpec,
        agent: Agent,
        transport: Transport,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        mark: Marker | None = None,
    ) -> None:
        """Have `agent` talk, and `transport` carry the requests; without a clock nothing waits.

        `mark` makes the header that tells a receiver that the call is simulated.
        """
        self._clock = clock or Clock()
        rng = rng or random.SystemRandom()
        self.spec = spec
        self.session_id = spec.session_id or push_id(self._clock.now(), bits=rng.getrandbits)
        self.call_id = spec.call_id or push_id(self._clock.now(), bits=rng.getrandbits)
        self.log = StepLog()
        #: While agent and caller talk; None before and after.
        self.conversation: Conversation | None = None
        #: With the prefetch's keys, once it is over.
        self.metadata: Mapping[str, Json] = dict(spec.metadata)
        #: The texts of the agent, filled in.
        self.texts = Rendered(prompt="")
        self._agent = agent
        self._client = WebhookClient(transport, self.session_id, mark)
        self._filling = Filling(self._variables(), spec.policy)
        self._tools = {tool["name"]: tool for tool in tools_of(spec.agent_config)}
        #: As an end-of-call has them: name, params and result.
        self._function_calls: list[Mapping[str, Json]] = []
        self._functions_for_later: list[tuple[str, Mapping[str, Json]]] = []
        self._hung_up: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._began_s = self._clock.elapsed_s()
        # Known once the call has ended:
        self._duration_s: float
        self._started_at: datetime
        self._messages: Sequence[Mapping[str, Any]]

    def hang_up(self, call_status: str, error_message: str | None = None) -> None:
        """End the call from elsewhere: as a caller does, or Millis' `terminate` (`api-ended`).

        Before the conversation it ends at its beginning; afterwards nothing happens.
        """
        if not self._hung_up.done():
            self._hung_up.set_result(Ending(call_status, error_message))

    def note(self, note: str) -> None:
        """Log a remark for a person, as long as the log is open."""
        if not self.log.is_closed:
            self._add(Noted(notes=(note,)))

    def change(self, **changes: Any) -> None:
        """Change `vintage`, `faults` or `extra_fields` of the spec, until the call has ended."""
        if not self.log.of(HungUp):
            self.spec = replace(self.spec, **changes)

    async def run(self) -> Self:
        """Go through the whole call; failures on the way are in its log."""
        try:
            await self._run()
        finally:
            self.conversation = None
            self.log.close()
        return self

    async def _run(self) -> None:
        self._attach()
        failure = await self._begin()
        conversation = self._new_conversation()
        self.ending = await self._converse(conversation, failure)
        conversation.say_last(self.ending.call_status)
        self._duration_s = conversation.lasted_s
        self._started_at = self._when_started()
        self._messages = conversation.messages
        self._add(HungUp(duration_s=round(self._duration_s, 3), **asdict(self.ending)))
        if self.spec.policy.run_after_call == "before-end-of-call":
            await self._call_functions_for_later()
        await self._deliver()
        await self._call_functions_for_later()
        self.log_entry = self._call_log_entry()
        masked = mask_secrets(dict(self.log_entry)).value
        self._add(Logged(entry=masked if isinstance(masked, dict) else {}))

    def _add(self, step: Step) -> None:
        self.log.add(step, at_s=self._clock.elapsed_s() - self._began_s)

    def _attach(self) -> None:
        spec = self.spec
        self._add(
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
        self._add(merged)
        self.metadata = merged.metadata
        self._filling.variables = self._variables()
        self.texts = self._render(merged)
        self._add(self.texts)
        return answer.failure

    def _variables(self) -> Mapping[str, object]:
        spec = self.spec
        return variables_of(self.metadata, from_phone=spec.from_phone, to_phone=spec.to_phone)

    def _render(self, merged: Merged | None) -> Rendered:
        spec = self.spec
        texts = render(
            spec.agent_config,
            self._filling,
            extra_prompt=merged.extra_prompt if merged else None,
            metadata_in_prompt=self.metadata if spec.include_metadata_in_prompt else None,
        )
        notes: list[str] = []
        if texts.unresolved:
            policy = spec.policy.missing_variables
            notes.append(f"Unknown names are {policy}: Millis does not say what it does with them.")
        if ignored := ignored_parts(spec.agent_config):
            notes.append(f"Not rehearsed here: {', '.join(ignored)}.")
        return replace(texts, notes=tuple(notes))

    async def _prefetch(self) -> PrefetchAnswer:
        webhook = webhook_of(self.spec.agent_config.get(PREFETCH))
        if webhook is None:
            self._add(Prefetched(notes=("The agent has no prefetch webhook.",)))
            return PrefetchAnswer()
        webhook = self._filling.fill_webhook(webhook, PREFETCH)
        exchange = await self._client.call_webhook(
            prefetch_request(self.spec, webhook, self.session_id),
            timeout_s=self.spec.policy.prefetch_timeout_s,
        )
        exchange = await self._with_fault(exchange)
        answer = PrefetchAnswer(failure=exchange.failure)
        if exchange.answer is not None and exchange.failure is None:
            answer = read_prefetch_answer(exchange.answer, self.spec.policy)
        notes = (*notes_on_prefetch(self.spec), *exchange.notes, *answer.notes)
        exchange = replace(exchange, notes=notes)
        self._add(Prefetched(**exchange.fields(answer.failure)))
        return answer

    async def _with_fault(self, exchange: Exchange) -> Exchange:
        """Return what Millis would see of a prefetch under the spec's fault, with a note of it."""
        fault = self.spec.faults.prefetch
        if fault is None:
            return exchange
        if fault == "slow":
            return await self._slowed(exchange)
        if fault == "unreachable":
            note, answer, failure = "lost", None, "could not be reached"
        else:
            note, answer, failure = "replaced", _FAULTY_ANSWERS[fault], None
        notes = (f"The answer was {note} on purpose.",)
        return replace(exchange, answer=answer, failure=failure, notes=notes)

    async def _slowed(self, exchange: Exchange) -> Exchange:
        slow_s, timeout_s = self.spec.faults.prefetch_slow_s, self.spec.policy.prefetch_timeout_s
        left_s = max(timeout_s - exchange.took_ms / 1000, 0.0)
        await self._clock.pass_time(min(slow_s, left_s))
        took_ms = exchange.took_ms + slow_s * 1000
        notes = (f"The answer was held back for {slow_s:g} s on purpose.",)
        slowed = replace(exchange, took_ms=min(took_ms, timeout_s * 1000), notes=notes)
        if took_ms > timeout_s * 1000:
            slowed = replace(slowed, answer=None, failure=f"no answer within {timeout_s:g} s")
        return slowed

    def _new_conversation(self) -> Conversation:
        return Conversation(
            self.spec,
            session_id=self.session_id,
            call_id=self.call_id,
            metadata=self.metadata,
            texts=self.texts,
            clock=self._clock,
            add=self._add,
            call_function=self._call_function,
        )

    async def _converse(self, conversation: Conversation, prefetch_failure: str | None) -> Ending:
        """Have the agent talk until it, or somebody else, ends the call."""
        if self.spec.unreached is not None:
            return Ending(self.spec.unreached)
        if prefetch_failure and self.spec.policy.on_prefetch_failure == "end-call":
            return Ending(CallStatus.ERROR, f"The prefetch failed: {prefetch_failure}.")
        self.conversation = conversation
        talking = asyncio.ensure_future(self._agent.converse(conversation))
        longest_s = conversation.longest_s if self._clock.is_live else None
        try:
            await asyncio.wait(
                {talking, self._hung_up}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self.conversation = None
            has_ended = talking.done()
            talking.cancel()
            await asyncio.wait({talking})
        if self._hung_up.done():
            return self._hung_up.result()
        return _ending_of(talking) if has_ended else Ending(CallStatus.TIMEOUT)

    async def _call_function(self, name: str, params: Mapping[str, Json]) -> str:
        """Call a function, or keep it for after the call; return its result for the agent."""
        filled = self._filling.fill_all(dict(params), name)
        params = filled if isinstance(filled, dict) else {}
        # Functions of Millis' own, and unknown ones, have no webhook.
        tool = self._tools.get(name, {})
        if tool.get("exclude_session_id") is not True:
            params = {**params, "session_id": self.session_id}
        if tool.get("run_after_call") is True:
            self._functions_for_later.append((name, params))
            self._add(FunctionCalled(name=name, params=params, notes=(_RUNS_LATER,)))
            return ""
        return await self._call_function_now(name, params)

    async def _call_functions_for_later(self) -> None:
        for name, params in self._functions_for_later:
            await self._call_function_now(name, params)
        self._functions_for_later.clear()

    async def _call_function_now(self, name: str, params: Mapping[str, Json]) -> str:
        exchange = await self._function_exchange(name, params)
        text = "" if exchange.answer is None else exchange.answer.text
        failure = exchange.refusal
        result = (f"Failed: {failure}" if failure else text)[:MAX_RESULT_CHARS]
        fields = exchange.fields(failure)
        self._add(FunctionCalled(name=name, params=params, result=result, **fields))
        self._function_calls.append({"name": name, "params": dict(params), "result": result})
        return result

    async def _function_exchange(self, name: str, params: Mapping[str, Json]) -> Exchange:
        policy, tool = self.spec.policy, self._tools.get(name, {})
        request = function_request(
            tool, params, metadata=self.metadata, filling=self._filling, policy=policy
        )
        answer = self.spec.function_answers.get(name)
        if answer is not None:
            return Exchange(Sent.of(request) if request else None, answer, notes=(_ANSWERED,))
        if request is None:
            return Exchange(notes=(_NO_WEBHOOK if name in self._tools else _UNKNOWN,))
        return await self._client.send(request, timeout_s=function_timeout_s(tool, policy))

    async def _deliver(self) -> None:
        """Send the end-of-call as often as the spec says, or log why not."""
        webhook = webhook_of(self.spec.agent_config.get(END_OF_CALL))
        times, policy = self.spec.faults.end_of_call, self.spec.policy
        if webhook is None:
            self._withhold("The agent has no end-of-call webhook.")
        elif times == "never":
            self._withhold("It is not sent, on purpose.")
        elif self.ending.call_status in UNREACHED and not policy.end_of_call_if_unreached:
            self._withhold(_UNREACHED)
        else:
            url, headers = self._filling.fill_webhook(webhook, END_OF_CALL)
            vintage = self.spec.vintage
            body = end_of_call_body(vintage, **self._end_of_call(vintage))
            request = Request("POST", url, (*headers, JSON_TYPE), body=body)
            await self._send_end(request, times)

    def _withhold(self, note: str) -> None:
        self._add(EndDelivered(vintage=self.spec.vintage, notes=(note,)))

    async def _send_end(self, request: Request, times: str) -> None:
        late_by_s = self.spec.policy.late_by_s
        if times == "late":
            await self._clock.pass_time(late_by_s)
            await self._send_until_accepted(request, f"It is {late_by_s:g} s late, on purpose.")
        else:
            await self._send_until_accepted(request)
        if times == "twice":
            await self._send_until_accepted(request, _TWICE)

    async def _send_until_accepted(self, request: Request, *notes: str) -> None:
        """Send an end-of-call until it is acknowledged, as often as the policy says."""
        policy = self.spec.policy
        for attempt in range(1, policy.end_of_call_attempts + 1):
            if attempt > 1:
                await self._clock.pass_time(policy.end_of_call_retry_after_s)
                notes = (f"Attempt {attempt}.",)
            exchange = await self._client.call_webhook(
                request, timeout_s=policy.end_of_call_timeout_s
            )
            failure = exchange.refusal
            fields = replace(exchange, notes=notes).fields(failure)
            self._add(EndDelivered(vintage=self.spec.vintage, **fields))
            if failure is None:
                return

    def _end_of_call(self, vintage: Vintage) -> PayloadOptions:
        """Return what the end-of-call tells of this call, for `end_of_call_payload`."""
        spec = self.spec
        return {
            "session_id": self.session_id,
            "agent_id": spec.agent_id,
            "call_id": self.call_id,
            "from_phone": spec.from_phone,
            "to_phone": spec.to_phone,
            "metadata": self.metadata,
            "call_status": self.ending.call_status,
            "started_at": self._started_at,
            "duration_s": int(self._duration_s + 0.5),
            "content": call_content(
                spec,
                vintage,
                session_id=self.session_id,
                messages=self._messages,
                function_calls=self._function_calls,
                duration_s=self._duration_s,
                error_message=self.ending.error_message,
            ),
        }

    def _call_log_entry(self) -> Mapping[str, Json]:
        entry = end_of_call_payload("v2", **self._end_of_call("v2"))
        del entry["error_message"]
        if self.ending.call_status in UNREACHED:
            entry |= {"chat": None, "cost_breakdown": None, "recording": None}
        return entry

    def _when_started(self) -> datetime:
        """Return when the call began, if it has just ended.

        Where waiting is skipped, a call with a late end-of-call began earlier by as much.
        """
        ago_s = self._duration_s
        if self.spec.faults.end_of_call == "late" and not self._clock.is_live:
            ago_s += self.spec.policy.late_by_s
        return self._clock.now() - timedelta(seconds=ago_s)


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

"""One call, from the first word about it to the last, in the order in which Millis goes about it.

attach metadata -> prefetch -> merge -> fill in the texts -> talk and call functions -> hang up
-> functions that run after the call -> end-of-call -> call log

What happens before the first word: prefetch, merge, and the texts filled in.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ..masking.error_report import describe_failure
from ..protocol.call_status import CallStatus
from ..protocol.reading import Json
from ..protocol.samples import push_id
from ..protocol.variables import variables_of
from ..webhooks import Marker
from .agent import (
    Agent,
    Conversation,
    ConversationTimeoutError,
    Ending,
    Filling,
    Texts,
    merge_metadata,
    render,
)
from .call_spec import SessionSpec
from .clock import Clock, LiveClock
from .functions import Functions
from .steps import Attached, HungUp, Logged, Merged, Noted, Prefetched, Rendered, StepLog
from .transport import PREFETCH, Answer, Transport, webhook_of
from .webhook_client import (
    Desk,
    EndedCall,
    Exchange,
    Taken,
    deliver,
    notes_on_request,
    prefetch_request,
    read_answer,
)

_FAULTS = {
    "error": Answer(500, b'{"error":"internal server error"}', "application/json"),
    "bad-json": Answer(200, b'{"metadata": {"caller": ', "application/json"),
}

#: Parts of an agent that would change how a call goes, and do not change it here.
IGNORED = (
    "app_functions",
    "call_settings.background",
    "custom_vocabulary",
    "flow.agent_terminate_call",
    "flow.auto_fill_responses",
    "flow.call_transfer",
    "flow.dtmf_dial",
    "flow.inactivity_handling",
    "flow.interruption",
    "flow.response_delay",
    "flow.voicemail.continue_on_voice_activity",
    "knowledge_base",
    "llm.history_settings",
    "memory",
    "millis_functions",
    "privacy_settings.do_not_call_detection",
    "session_timeout.max_idle",
    "speech_to_text",
    "switch_language",
    "timezone",
    "tools.execute_after_message",
    "tools.response_mode",
    "vad_threshold",
)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the agent knows when the conversation begins."""

    metadata: Mapping[str, Json]
    texts: Texts
    #: What `{name}` stands for.
    variables: Mapping[str, object]
    #: Why the prefetch gave nothing; None if it did, or there was nobody to ask.
    failure: str | None = None


def attach(desk: Desk) -> None:
    """Note who calls, and the metadata that was attached."""
    spec = desk.spec
    desk.add(
        Attached(
            way=spec.way,
            session_id=desk.session_id,
            call_id=desk.call_id,
            agent_id=spec.agent_id,
            from_phone=spec.from_phone,
            to_phone=spec.to_phone,
            metadata=dict(spec.metadata),
            notes=tuple(spec.notes),
        )
    )


async def begin(desk: Desk) -> Beginning:
    """Ask the prefetch webhook, and make of the answer what the agent is given."""
    asking = Filling(_variables(desk.spec, desk.spec.metadata), desk.spec.policy)
    taken = await _prefetch(desk, asking)
    merge = merge_metadata(desk.spec.metadata, taken.metadata, desk.spec.policy)
    desk.add(Merged(**merge._asdict(), extra_prompt=taken.extra_prompt))
    beginning = _beginning(desk.spec, merge.metadata, taken, asking.unresolved)
    desk.add(_rendered(beginning.texts, desk))
    return beginning


def begin_without_prefetch(spec: SessionSpec) -> Beginning:
    """Return what is known of a call nobody is asked about."""
    return _beginning(spec, dict(spec.metadata), Taken(), {})


def _variables(spec: SessionSpec, metadata: Mapping[str, Json]) -> Mapping[str, object]:
    return variables_of(metadata, from_phone=spec.from_phone, to_phone=spec.to_phone)


def _beginning(
    spec: SessionSpec,
    metadata: Mapping[str, Json],
    taken: Taken,
    unresolved: Mapping[str, tuple[str, ...]],
) -> Beginning:
    variables = _variables(spec, metadata)
    filling = Filling(variables, spec.policy)
    filling.unresolved |= unresolved
    texts = render(
        spec.agent_config,
        filling,
        extra_prompt=taken.extra_prompt,
        metadata_in_prompt=metadata if spec.include_metadata_in_prompt else None,
    )
    return Beginning(metadata, texts, variables, taken.failure)


async def _prefetch(desk: Desk, filling: Filling) -> Taken:
    webhook = webhook_of(desk.spec.agent_config.get(PREFETCH))
    if webhook is None:
        desk.add(Prefetched(notes=("The agent has no prefetch webhook.",)))
        return Taken()
    request = prefetch_request(desk.spec, filling.webhook(webhook, PREFETCH), desk.session_id)
    policy = desk.spec.policy
    exchange = await desk.send(request, timeout_s=policy.prefetch_timeout_s, marked=True)
    exchange, notes = await _spoil(exchange, desk)
    taken = Taken(failure=exchange.failure)
    if exchange.answer is not None and exchange.failure is None:
        taken = read_answer(exchange.answer, policy)
    notes = (*notes_on_request(desk.spec), *notes, *taken.notes)
    desk.add(Prefetched(**exchange.fields() | {"failure": taken.failure, "notes": notes}))
    return taken


async def _spoil(exchange: Exchange, desk: Desk) -> tuple[Exchange, tuple[str, ...]]:
    """Have go wrong what is asked for; return what Millis would have seen, and a note of it."""
    faults, timeout_s = desk.spec.faults, desk.spec.policy.prefetch_timeout_s
    if faults.prefetch is None:
        return exchange, ()
    if faults.prefetch == "slow":
        left_s = max(timeout_s - exchange.took_ms / 1000, 0.0)
        await desk.clock.pass_time(min(faults.prefetch_slow_s, left_s))
        took_ms = exchange.took_ms + faults.prefetch_slow_s * 1000
        spoilt = replace(exchange, took_ms=min(took_ms, timeout_s * 1000))
        if took_ms > timeout_s * 1000:
            spoilt = replace(spoilt, answer=None, failure=f"no answer within {timeout_s:g} s")
        return spoilt, (f"The answer was held back for {faults.prefetch_slow_s:g} s on purpose.",)
    if faults.prefetch == "unreachable":
        spoilt = replace(exchange, answer=None, failure="could not be reached")
        return spoilt, ("The answer was lost on purpose.",)
    spoilt = replace(exchange, answer=_FAULTS[faults.prefetch], failure=None)
    return spoilt, ("The answer was replaced on purpose.",)


def _rendered(texts: Texts, desk: Desk) -> Rendered:
    notes: list[str] = []
    if texts.unresolved:
        what = desk.spec.policy.missing_variables
        notes.append(f"Unknown names are {what}: Millis does not say what it does with them.")
    if ignored := [path for path in IGNORED if _has(desk.spec.agent_config, path.split("."))]:
        notes.append(f"Not rehearsed here: {', '.join(ignored)}.")
    return Rendered(
        prompt=texts.prompt,
        first_message=texts.first_message,
        tools=texts.tools,
        messages=dict(texts.messages),
        unresolved=dict(texts.unresolved),
        notes=tuple(notes),
    )


def _has(value: Json | Mapping[str, Json], path: Sequence[str]) -> bool:
    """Tell whether a part of a configuration is set; in a list, of any of its items."""
    if isinstance(value, list):
        return any(_has(item, path) for item in value)
    if not path:
        return value is not None
    return isinstance(value, Mapping) and _has(value.get(path[0]), path[1:])


logger = logging.getLogger("millis_hooks.sandbox")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResult:
    """What became of a session."""

    session_id: str
    call_id: str
    ending: Ending
    #: After the prefetch.
    metadata: Mapping[str, Json]
    texts: Texts
    log: StepLog
    #: What Millis' call logs have of it: `CallHistory` in its OpenAPI file.
    log_entry: Mapping[str, Json]


class Session:
    """A call as Millis runs it. It is made and run once, on one running event loop."""

    def __init__(
        self,
        spec: SessionSpec,
        agent: Agent,
        transport: Transport,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        mark: Marker | None = None,
        log: StepLog | None = None,
    ) -> None:
        """Have `agent` talk and `transport` carry what is sent; without a clock in real time.

        `mark` makes the header by which a receiver knows what is sent as made up.
        """
        clock = clock or LiveClock()
        rng = rng or random.SystemRandom()
        self.spec = spec
        self.session_id = spec.session_id or push_id(clock.now(), bits=rng.getrandbits)
        self.call_id = spec.call_id or push_id(clock.now(), bits=rng.getrandbits)
        self.log = log or StepLog()
        #: While the call lasts; None before and after.
        self.conversation: Conversation | None = None
        self._agent = agent
        self._clock = clock
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._desk = Desk(
            spec=spec,
            session_id=self.session_id,
            call_id=self.call_id,
            transport=transport,
            clock=clock,
            log=self.log,
            mark=mark,
            began_s=clock.elapsed_s(),
        )

    def hang_up(self, call_status: str, error_message: str | None = None) -> None:
        """End the call from elsewhere: as a caller does, or Millis' `terminate` (`api-ended`).

        Before the conversation it ends at its beginning; afterwards nothing happens.
        """
        if not self._ended.done():
            self._ended.set_result(Ending(call_status, error_message))

    def note(self, note: str) -> None:
        """Put into the log what a person should know, and what changes nothing."""
        if not self.log.is_closed:
            self._desk.add(Noted(notes=(note,)))

    def change(self, **changes: Any) -> None:
        """Ask for another end: `vintage`, `faults` or `extra_fields` of the specification.

        What comes before the end of the conversation it does not touch.
        """
        self.spec = replace(self.spec, **changes)

    async def run(self) -> SessionResult:
        """Go through the whole call; what goes wrong on the way is in its log."""
        try:
            return await self._run()
        finally:
            self.conversation = None
            self.log.close()

    async def _run(self) -> SessionResult:
        desk = self._desk
        attach(desk)
        beginning = await self._begin()
        functions = Functions(desk, metadata=beginning.metadata, variables=beginning.variables)
        call = await self._hold(beginning, functions)
        desk = replace(desk, spec=call.spec)
        await deliver(desk, call, beginning.variables)
        await functions.call_those_for_later()
        entry = call.log_entry()
        desk.add(Logged.of(entry))
        return SessionResult(
            session_id=self.session_id,
            call_id=self.call_id,
            ending=call.ending,
            metadata=beginning.metadata,
            texts=beginning.texts,
            log=self.log,
            log_entry=entry,
        )

    async def _hold(self, beginning: Beginning, functions: Functions) -> EndedCall:
        """Hold the call, hang up, and call what runs between that and the end-of-call."""
        began_s = self._clock.elapsed_s()
        conversation = self._conversation(beginning, functions)
        ending = await self._converse(beginning, conversation)
        conversation.say_last(ending.call_status)
        duration_s = self._clock.elapsed_s() - began_s
        started_at, spec = self._started_at(duration_s), self.spec
        self._desk.add(HungUp(duration_s=round(duration_s, 3), **asdict(ending)))
        if spec.policy.run_after_call == "before-end-of-call":
            await functions.call_those_for_later()
        return EndedCall(
            spec=spec,
            session_id=self.session_id,
            call_id=self.call_id,
            metadata=beginning.metadata,
            ending=ending,
            started_at=started_at,
            duration_s=duration_s,
            messages=tuple(conversation.messages),
            function_calls=tuple(functions.called),
        )

    async def _begin(self) -> Beginning:
        if self.spec.unreached is not None and not self.spec.policy.prefetch_if_unreached:
            return begin_without_prefetch(self.spec)
        return await begin(self._desk)

    def _conversation(self, beginning: Beginning, functions: Functions) -> Conversation:
        return Conversation(
            spec=self.spec,
            session_id=self.session_id,
            call_id=self.call_id,
            metadata=beginning.metadata,
            texts=beginning.texts,
            clock=self._clock,
            add=self._desk.add,
            call_function=functions.call,
        )

    async def _converse(self, beginning: Beginning, conversation: Conversation) -> Ending:
        """Have the agent talk until it, or somebody else, ends the call."""
        if self.spec.unreached is not None:
            return Ending(self.spec.unreached)
        if beginning.failure is not None and self.spec.policy.on_prefetch_failure == "end-call":
            return Ending(CallStatus.ERROR, f"The prefetch failed: {beginning.failure}.")
        self.conversation = conversation
        talking = asyncio.ensure_future(self._agent.converse(conversation))
        longest_s = conversation.longest_s if self._clock.is_live else None
        try:
            await asyncio.wait(
                {talking, self._ended}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            self.conversation = None
            has_ended = talking.done()
            talking.cancel()
            await asyncio.wait({talking})
        if self._ended.done():
            return self._ended.result()
        return _ending_of(talking) if has_ended else Ending(CallStatus.TIMEOUT)

    def _started_at(self, duration_s: float) -> datetime:
        """Return when the call began, if it has just ended.

        Where waiting is skipped, one that is told of late is earlier by as much.
        """
        ago_s = duration_s
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

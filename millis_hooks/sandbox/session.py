"""One call, from the first word about it to the last, in the order in which Millis goes about it.

attach metadata -> prefetch -> merge -> fill in the texts -> talk and call functions -> hang up
-> functions that run after the call -> end-of-call -> call log
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ..call_status import CallStatus
from ..failures import describe_failure
from ..samples import push_id
from ..webhooks import Marker
from ..wire import Json
from .agent import Agent, Ending
from .beginning import Beginning, attach, begin, begin_without_prefetch
from .clock import Clock, LiveClock
from .conversation import Conversation, ConversationTimeoutError
from .delivery import deliver
from .desk import Desk
from .ending import EndedCall
from .functions import Functions
from .prompt import Texts
from .spec import SessionSpec
from .steps import HungUp, Logged, Noted, StepLog
from .transport import Transport

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

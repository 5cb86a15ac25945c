"""Where scenarios are rehearsed: one receiver, and the way to it.

What a receiver made of a call: its record in the call log, once the handlers are done.

A scenario that was gone through: what came of it, and whether that was expected.

Rehearses calls against a service that runs elsewhere, through its own door.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, exists, select

from ..call_log.queries import Queries
from ..call_log.queries.records import Call, CallRecord, Delivery, Run
from ..call_log.queries.requests import has_arrived
from ..call_log.tables import deliveries, inbox
from ..protocol.reading import Json
from ..webhooks import Marker
from .agent import ScriptedAgent
from .clock import Clock, SkippingClock
from .expectations import Finding, StoredCall, check
from .scenario import Scenario, with_agent_webhooks
from .session import Session, SessionResult
from .steps import EndDelivered, Prefetched, Step
from .transport import Transport, over_http

Tell = Callable[[Step | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A receiver. `webhooks` is what Millis has of it in an agent's configuration.

    Without `mark` it takes what is rehearsed for calls of Millis'; with it, those whose scenario
    says so are dry runs.
    """

    transport: Transport
    webhooks: Mapping[str, Json]
    mark: Marker | None = None

    def session(self, scenario: Scenario, *, clock: Clock | None = None) -> Session:
        """Return a session that will go through `scenario`; without a clock it waits for nothing.

        The agent's own webhooks are left alone where the scenario names them.
        """
        spec = with_agent_webhooks(scenario, self.webhooks).spec
        mark = self.mark
        if mark is not None and spec.dry_run:
            mark = replace(mark, purpose="dry-run")
        agent = ScriptedAgent(scenario.script)
        return Session(spec, agent, self.transport, clock=clock or SkippingClock(), mark=mark)

    async def rehearse(
        self, scenario: Scenario, *, tell: Tell | None = None, clock: Clock | None = None
    ) -> SessionResult:
        """Go through `scenario` once, and have `tell` called with each step."""
        session = self.session(scenario, clock=clock)
        if tell is not None:
            session.log.listen(tell)
        return await session.run()

    async def rehearse_many(
        self,
        scenario: Scenario,
        *,
        count: int,
        concurrency: int,
        done: Callable[[int], None] = lambda number: None,
    ) -> Load:
        """Go through `scenario` so many times, several at once; `done` hears how many are over."""
        began = time.perf_counter()
        results: list[SessionResult] = []
        left = iter(range(count))
        # Each is a call of its own, whatever ids the scenario has.
        spec = replace(scenario.spec, session_id=None, call_id=None)
        scenario = replace(scenario, spec=spec)

        async def go_on() -> None:
            for _ in left:
                results.append(await self.rehearse(scenario))
                done(len(results))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(count, concurrency)):
                group.create_task(go_on())
        return Load.of(results, took_s=time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long the answers to one webhook took, in milliseconds."""

    count: int
    failed: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    most_ms: float | None

    @classmethod
    def of(cls, steps: Sequence[Prefetched | EndDelivered]) -> Latencies:
        """Add up what was sent; what got no answer or another than asked for has failed."""
        sent = [step for step in steps if step.sent is not None]
        good = sorted(step.took_ms for step in sent if step.failure is None)
        p50, p95, p99, most = (_percentile(good, share) for share in (0.5, 0.95, 0.99, 1.0))
        return cls(len(sent), len(sent) - len(good), p50, p95, p99, most)


@dataclass(frozen=True, slots=True)
class Load:
    """What many calls at once came to."""

    calls: int
    took_s: float
    prefetch: Latencies
    end_of_call: Latencies
    #: What went wrong, and how often.
    failures: Mapping[str, int]

    @classmethod
    def of(cls, results: Sequence[SessionResult], *, took_s: float) -> Load:
        """Add up what became of the sessions."""
        prefetches = [step for result in results for step in result.log.of(Prefetched)]
        ends = [step for result in results for step in result.log.of(EndDelivered)]
        failures: dict[str, int] = {}
        for what in _failures(prefetches, ends):
            failures[what] = failures.get(what, 0) + 1
        return cls(len(results), took_s, Latencies.of(prefetches), Latencies.of(ends), failures)

    @property
    def calls_per_s(self) -> float:
        """How many calls were begun and ended in a second."""
        return self.calls / self.took_s if self.took_s else 0.0


def _failures(prefetches: Sequence[Prefetched], ends: Sequence[EndDelivered]) -> Iterator[str]:
    for prefetch in prefetches:
        if prefetch.failure is not None:
            yield f"prefetch: {prefetch.failure}"
    for end in ends:
        if end.failure is not None:
            yield f"end-of-call: {end.failure}"


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


T = TypeVar("T")

_PAUSE_S = 0.005
#: States of runs that are being done, or are about to be.
_UNDER_WAY = frozenset({"pending", "running"})


@dataclass(frozen=True, slots=True)
class HandledCall:
    """A call as the call log has it."""

    record: CallRecord

    @property
    def call(self) -> Call:
        """Its columns: status, outcome, numbers, costs."""
        return self.record.call

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of its handlers, with every attempt."""
        return self.record.runs

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Every request that came for it, and our answers."""
        return self.record.deliveries

    def run(self, handler: str) -> Run:
        """Return the latest run of a handler; raises `LookupError` if it was not called."""
        runs = [run for run in self.runs if run.handler == handler]
        if not runs:
            called = ", ".join(sorted({run.handler for run in self.runs})) or "none"
            raise LookupError(f"No handler {handler!r} was called for this call. Called: {called}.")
        return runs[-1]

    def stored(self) -> StoredCall:
        """Return what expectations are compared with."""
        return StoredCall(self.call.outcome, {run.handler: run.state for run in self.runs})


def handled_call(log: Queries, session_id: str, *, timeout_s: float) -> HandledCall | None:
    """Return the call as `wait_for_handlers` does, or at once None if its end is not in this log.

    It is stored before it is acknowledged, so there is nothing to wait for: either none was sent,
    or another receiver took it.
    """
    if not log.ask(partial(has_arrived, kind="end_of_call", session_id=session_id)):
        return None
    return wait_for_handlers(log, session_id, timeout_s=timeout_s)


def wait_for_handlers(log: Queries, session_id: str, *, timeout_s: float) -> HandledCall:
    """Return the call once it is stored and no handler is at work on it. Blocks.

    A handler that failed and waits for its next attempt is not waited for. Raises `TimeoutError`,
    which says what it was waiting for.
    """
    handled = wait_for(lambda: _handled(log, session_id), timeout_s=timeout_s)
    if handled is None:
        raise TimeoutError(_why(log, session_id, timeout_s))
    return handled


def wait_for(look: Callable[[], T | None], *, timeout_s: float) -> T | None:
    """Look again until there is something to see, and return it; None if there is not in time."""
    deadline = time.monotonic() + timeout_s
    while (seen := look()) is None and time.monotonic() < deadline:
        threading.Event().wait(_PAUSE_S)
    return seen


def _handled(log: Queries, session_id: str) -> HandledCall | None:
    if log.ask(lambda connection: _is_waiting(connection, session_id)):
        return None
    record = log.call(session_id)
    if record is None or any(run.state in _UNDER_WAY for run in record.runs):
        return None
    return HandledCall(record)


def _is_waiting(connection: Connection, session_id: str) -> bool:
    """Tell whether some delivery of the call was stored and not looked at yet."""
    waiting = (
        select(inbox.c.delivery_id)
        .join(deliveries, deliveries.c.id == inbox.c.delivery_id)
        .where(deliveries.c.session_id == session_id)
    )
    return bool(connection.scalar(select(exists(waiting))))


def _why(log: Queries, session_id: str, timeout_s: float) -> str:
    record = log.call(session_id)
    if record is None:
        return f"No call {session_id} was stored within {timeout_s:g} s."
    names = sorted({run.handler for run in record.runs if run.state in _UNDER_WAY})
    if not names:
        return f"The call {session_id} was not looked at within {timeout_s:g} s."
    return f"After {timeout_s:g} s these handlers are still at work: {', '.join(names)}."


@dataclass(frozen=True, slots=True)
class Simulation:
    """What became of a scenario."""

    result: SessionResult
    #: None where no end-of-call arrived, or the call log is not at hand.
    handled: HandledCall | None
    findings: Sequence[Finding]
    #: Where the end-of-call was acknowledged, if that is not the receiver with this call log.
    elsewhere: str | None = None

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        result: SessionResult,
        handled: HandledCall | None,
        *,
        has_log: bool = True,
    ) -> Simulation:
        """Compare what came of `scenario` with what it expects.

        Where the call log is not at hand, what can only be told from it is left out.
        """
        stored = StoredCall() if handled is None else handled.stored()
        findings = check(scenario.expected, result, stored if has_log else None)
        is_elsewhere = has_log and handled is None
        return cls(result, handled, findings, _acknowledged_by(result) if is_elsewhere else None)

    @property
    def unmet(self) -> list[str]:
        """What the scenario expected and did not come, in sentences."""
        return [str(finding) for finding in self.findings if not finding.is_met]

    @property
    def metadata(self) -> Mapping[str, Json]:
        """The session's metadata, after the prefetch."""
        return self.result.metadata

    @property
    def prompt(self) -> str:
        """The prompt as the agent got it."""
        return self.result.texts.prompt

    @property
    def first_message(self) -> str | None:
        """The first message as the caller heard it."""
        return self.result.texts.first_message


def _acknowledged_by(result: SessionResult) -> str | None:
    """Return the address that acknowledged the end-of-call, if one did."""
    ends = [end for end in result.log.of(EndDelivered) if end.failure is None]
    return next((end.sent.url for end in ends if end.sent is not None), None)


class RunningService:
    """A service, reached over HTTP."""

    def __init__(
        self,
        webhooks: Callable[[str | None], Mapping[str, Json]],
        *,
        log: Queries | None = None,
        mark: Marker,
        anywhere: bool = False,
        wait_s: float = 10.0,
    ) -> None:
        """`webhooks` gives what Millis has of it in the configuration of an agent, by its id.

        With its call log at hand, handlers are waited for up to `wait_s` seconds. `mark` tells it
        that calls are rehearsed. Unless `anywhere`, it must be on this machine.
        """
        self._webhooks = webhooks
        self._log = log
        self._mark = mark
        self._anywhere = anywhere
        self._wait_s = wait_s

    def simulate(self, scenario: Scenario, *, tell: Tell | None = None) -> Simulation:
        """Go through a whole call, and have `tell` called with each step. Blocks."""

        async def once() -> SessionResult:
            async with self._stage(scenario) as stage:
                return await stage.rehearse(scenario, tell=tell)

        result = asyncio.run(once())
        handled = self._wait_for(result.session_id)
        return Simulation.of(scenario, result, handled, has_log=self._log is not None)

    def simulate_many(
        self, scenario: Scenario, *, count: int, concurrency: int, done: Callable[[int], None]
    ) -> Load:
        """Go through a scenario so many times, several at once. Blocks."""

        async def many() -> Load:
            async with self._stage(scenario) as stage:
                return await stage.rehearse_many(
                    scenario, count=count, concurrency=concurrency, done=done
                )

        return asyncio.run(many())

    @asynccontextmanager
    async def _stage(self, scenario: Scenario) -> AsyncIterator[Stage]:
        webhooks = self._webhooks(scenario.spec.agent_id)
        async with over_http(anywhere=self._anywhere) as transport:
            yield Stage(transport=transport, webhooks=webhooks, mark=self._mark)

    def _wait_for(self, session_id: str) -> HandledCall | None:
        """Return the call as the log has it, at last also while handlers are at work on it.

        None without a log, or if it does not come there.
        """
        if self._log is None:
            return None
        try:
            return handled_call(self._log, session_id, timeout_s=self._wait_s)
        except TimeoutError:
            record = self._log.call(session_id)
            return None if record is None else HandledCall(record)

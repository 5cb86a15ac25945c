"""Runs scenarios against a receiver of webhooks, once or many times, and reports on the calls.

What a scenario expects of a call is compared with what happened: the exit code of `simulate`. Where
the call log can be read, what the receiver's handlers made of the call is part of it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sqlalchemy import Connection, exists, select

from ..call_log.queries import Queries
from ..call_log.queries.records import Call, CallRecord, Delivery, Run
from ..call_log.queries.requests import has_arrived
from ..call_log.tables import deliveries, inbox
from ..protocol.call_status import spell_status
from ..protocol.reading import Json
from ..webhooks import Marker
from .agents import scripted
from .scenario import Expectations, Scenario
from .session import Session
from .steps import EndDelivered, FunctionCalled, Listener, Prefetched
from .transport import Transport

T = TypeVar("T")

_PAUSE_S = 0.005
#: States of runs that a handler is working on, or will be soon.
_UNFINISHED = frozenset({"pending", "running"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """Runs scenarios against one receiver."""

    transport: Transport
    #: Returns the receiver's webhooks in the configuration of an agent, by its id, for agents that
    #: name none.
    webhooks: Callable[[str | None], Mapping[str, Json]]
    #: Tells the receiver what calls are for; scenarios that say so are dry runs.
    mark: Marker
    #: The receiver's variables, which an agent's texts are compared with.
    declared: Mapping[str, object] = field(default_factory=dict)
    #: The receiver's call log, if it can be read.
    log: Queries | None = None
    #: How long handlers are waited for, in seconds.
    wait_s: float = 10.0

    async def run(self, scenario: Scenario, *, tell: Listener | None = None) -> Simulation:
        """Run a scenario, and compare the call with what it expects; `tell` gets each step.

        Raises `TimeoutError`, which names the handlers that are still at work.
        """
        session = await self.run_session(scenario, tell=tell)
        handled = await asyncio.to_thread(self._handled, session.session_id)
        return Simulation.of(scenario, session, handled, has_log=self.log is not None)

    async def run_session(self, scenario: Scenario, *, tell: Listener | None = None) -> Session:
        """Run a call without waiting for its pauses, nor for the handlers."""
        spec = scenario.spec
        spec = replace(spec, agent_config={**self.webhooks(spec.agent_id), **spec.agent_config})
        mark = replace(self.mark, purpose="dry-run") if spec.dry_run else self.mark
        session = Session(
            spec, scripted(scenario.script), self.transport, mark=mark, declared=self.declared
        )
        if tell is not None:
            session.log.listen(tell)
        return await session.run()

    async def run_many(
        self, scenario: Scenario, *, count: int, concurrency: int, done: Callable[[int], None]
    ) -> Load:
        """Run a scenario `count` times, several at once; `done` gets the number of ended calls."""
        began = time.perf_counter()
        sessions: list[Session] = []
        left = iter(range(count))
        # Each call has ids of its own.
        spec = replace(scenario.spec, session_id=None, call_id=None)
        scenario = replace(scenario, spec=spec)

        async def work() -> None:
            for _ in left:
                sessions.append(await self.run_session(scenario))
                done(len(sessions))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(count, concurrency)):
                group.create_task(work())
        return Load.of(sessions, took_s=time.perf_counter() - began)

    def _handled(self, session_id: str) -> HandledCall | None:
        """Return the call once no handler is at work on it; None if its log has no end-of-call.

        An end-of-call is stored before it is acknowledged, so without one either none was sent, or
        another receiver took it.
        """
        log = self.log
        if not log or not log.ask(has_arrived, kind="end_of_call", session_id=session_id):
            return None
        return wait_for_handlers(log, session_id, timeout_s=self.wait_s)


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
        """Summarize the requests that were sent; only accepted ones have a latency."""
        sent = [step for step in steps if step.sent is not None]
        accepted = sorted(step.took_ms for step in sent if step.failure is None)
        p50, p95, p99, most = (_percentile(accepted, share) for share in (0.5, 0.95, 0.99, 1.0))
        return cls(len(sent), len(sent) - len(accepted), p50, p95, p99, most)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


@dataclass(frozen=True, slots=True)
class Load:
    """A summary of many calls."""

    calls: int
    took_s: float
    prefetch: Latencies
    end_of_call: Latencies
    #: What went wrong, and how often.
    failures: Mapping[str, int]

    @classmethod
    def of(cls, sessions: Sequence[Session], *, took_s: float) -> Load:
        """Summarize ended sessions."""
        prefetches = [step for session in sessions for step in session.log.of(Prefetched)]
        ends = [step for session in sessions for step in session.log.of(EndDelivered)]
        failures = Counter(f"prefetch: {step.failure}" for step in prefetches if step.failure)
        failures.update(f"end-of-call: {step.failure}" for step in ends if step.failure)
        return cls(
            len(sessions), took_s, Latencies.of(prefetches), Latencies.of(ends), dict(failures)
        )

    @property
    def calls_per_s(self) -> float:
        """How many calls were begun and ended in a second."""
        return self.calls / self.took_s if self.took_s else 0.0


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


def wait_for_handlers(log: Queries, session_id: str, *, timeout_s: float) -> HandledCall:
    """Return the call once it is stored and no handler is at work on it. Blocks.

    It does not wait for further attempts of a handler that failed. Raises `TimeoutError`, which
    names the handlers that are still at work.
    """
    handled = wait_for(lambda: _handled(log, session_id), timeout_s=timeout_s)
    if handled is None:
        raise TimeoutError(_why_late(log, session_id, timeout_s))
    return handled


def wait_for(look: Callable[[], T | None], *, timeout_s: float) -> T | None:
    """Call `look` until it returns something, and return that; None if there is not in time."""
    deadline = time.monotonic() + timeout_s
    while (value := look()) is None and time.monotonic() < deadline:
        threading.Event().wait(_PAUSE_S)
    return value


def _handled(log: Queries, session_id: str) -> HandledCall | None:
    if log.ask(_is_unprocessed, session_id):
        return None
    record = log.call(session_id)
    if record is None or any(run.state in _UNFINISHED for run in record.runs):
        return None
    return HandledCall(record)


def _is_unprocessed(connection: Connection, session_id: str) -> bool:
    waiting = (
        select(inbox.c.delivery_id)
        .join(deliveries, deliveries.c.id == inbox.c.delivery_id)
        .where(deliveries.c.session_id == session_id)
    )
    return bool(connection.scalar(select(exists(waiting))))


def _why_late(log: Queries, session_id: str, timeout_s: float) -> str:
    record = log.call(session_id)
    if record is None:
        return f"No call {session_id} was stored within {timeout_s:g} s."
    names = sorted({run.handler for run in record.runs if run.state in _UNFINISHED})
    if not names:
        return f"The call {session_id} was not processed within {timeout_s:g} s."
    return f"After {timeout_s:g} s these handlers are still at work: {', '.join(names)}."


@dataclass(frozen=True, slots=True)
class ExpectationResult:
    """One expectation: `found` says what happened instead where it was not met."""

    expected: str
    is_met: bool
    found: str = ""

    def __str__(self) -> str:
        return self.expected if self.is_met else f"{self.expected}: {self.found}"


def check(
    expected: Expectations,
    session: Session,
    *,
    outcome: str | None = None,
    handlers: Mapping[str, str] | None = None,
) -> list[ExpectationResult]:
    """Compare an ended session with what was expected.

    `handlers` has the state of the latest run of each; without it the expectations about the call
    log are left out. A scenario without expectations still expects that both webhooks accept what
    they are sent.
    """
    if expected == Expectations():
        return [_all_accepted(session)]
    results = [
        *_of_prefetch(expected, session),
        *_of_texts(expected, session),
        *_of_ending(expected, session),
    ]
    return results if handlers is None else [*results, *_of_log(expected, outcome, handlers)]


def _all_accepted(session: Session) -> ExpectationResult:
    steps = [*session.log.of(Prefetched), *session.log.of(EndDelivered)]
    failures = [step.failure for step in steps if step.failure is not None]
    text = "both webhooks take what they are sent"
    return ExpectationResult(text, not failures, "; ".join(failures))


def _of_prefetch(expected: Expectations, session: Session) -> Iterator[ExpectationResult]:
    step = next((step for step in session.log.of(Prefetched) if step.sent is not None), None)
    if expected.prefetch is not None:
        outcome = "none" if step is None else "failed" if step.failure else "answered"
        yield _same("prefetch", expected.prefetch, outcome, step.failure if step else None)
    if expected.prefetch_within_ms is not None:
        text = f"prefetch within {expected.prefetch_within_ms:g} ms"
        is_met = step is not None and step.took_ms <= expected.prefetch_within_ms
        actual = "none was sent" if step is None else f"it took {step.took_ms:.0f} ms"
        yield ExpectationResult(text, is_met, actual)
    for key, value in expected.metadata.items():
        is_there = key in session.metadata
        actual = repr(session.metadata[key]) if is_there else "nothing"
        is_met = is_there and session.metadata[key] == value
        yield ExpectationResult(f"metadata {key} is {value!r}", is_met, actual)


def _of_texts(expected: Expectations, session: Session) -> Iterator[ExpectationResult]:
    texts = session.texts
    for part in expected.prompt_contains:
        text = f"the prompt contains {part!r}"
        yield ExpectationResult(text, part in texts.prompt, "it does not")
    for part in expected.prompt_lacks:
        text = f"the prompt lacks {part!r}"
        yield ExpectationResult(text, part not in texts.prompt, "it contains it")
    if expected.first_message is not None:
        yield _same("first message", expected.first_message, texts.first_message or "")
    if expected.unresolved is not None:
        names = {name for names in texts.unresolved.values() for name in names}
        expected_names = ", ".join(sorted(expected.unresolved)) or "none"
        yield _same("unknown variables", expected_names, ", ".join(sorted(names)) or "none")


def _of_ending(expected: Expectations, session: Session) -> Iterator[ExpectationResult]:
    results = {step.name: step.result or "" for step in session.log.of(FunctionCalled)}
    for name, part in expected.functions.items():
        actual = repr(results[name]) if name in results else "it was not called"
        is_met = name in results and part in results[name]
        yield ExpectationResult(f"{name} gives {part!r}", is_met, actual)
    if expected.call_status is not None:
        yield _same("status", spell_status(expected.call_status), session.ending.call_status)
    if expected.end_of_call is not None:
        sent = [step for step in session.log.of(EndDelivered) if step.sent is not None]
        failure = sent[-1].failure if sent else None
        outcome = "none" if not sent else "refused" if failure else "accepted"
        yield _same("end-of-call", expected.end_of_call, outcome, failure)


def _of_log(
    expected: Expectations, outcome: str | None, handlers: Mapping[str, str]
) -> Iterator[ExpectationResult]:
    if expected.outcome is not None:
        yield _same("outcome", expected.outcome, outcome or "none")
    for name, state in expected.handlers.items():
        yield _same(f"handler {name}", state, handlers.get(name, "not called"))


def _same(what: str, expected: str, actual: str, why: str | None = None) -> ExpectationResult:
    because = f" ({why})" if why else ""
    return ExpectationResult(f"{what}: {expected}", expected == actual, f"{actual}{because}")


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of a scenario."""

    #: The session, which has ended.
    result: Session
    #: None where no end-of-call arrived, or the call log cannot be read.
    handled: HandledCall | None
    expectations: Sequence[ExpectationResult]
    #: The address that acknowledged the end-of-call, if that is not the receiver with this log.
    elsewhere: str | None = None

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        session: Session,
        handled: HandledCall | None,
        *,
        has_log: bool = True,
    ) -> Simulation:
        """Compare an ended session with what `scenario` expects.

        Without the call log, expectations about it are left out.
        """
        states = {run.handler: run.state for run in (handled.runs if handled else ())}
        elsewhere = _acknowledged_by(session) if has_log and handled is None else None
        expectations = check(
            scenario.expected,
            session,
            outcome=handled.call.outcome if handled else None,
            handlers=states if has_log else None,
        )
        return cls(session, handled, expectations, elsewhere)

    @property
    def session_id(self) -> str:
        """The id of the call."""
        return self.result.session_id

    def run(self, handler: str) -> Run:
        """Return the latest run of a handler; raises `LookupError` if it was not called."""
        if self.handled is None:
            raise LookupError(f"{handler!r} was not called: no end-of-call arrived for this call.")
        return self.handled.run(handler)

    @property
    def unmet(self) -> list[str]:
        """The expectations that were not met, in sentences."""
        return [str(each) for each in self.expectations if not each.is_met]

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


def _acknowledged_by(session: Session) -> str | None:
    ends = [end for end in session.log.of(EndDelivered) if end.failure is None]
    return next((end.sent.url for end in ends if end.sent is not None), None)

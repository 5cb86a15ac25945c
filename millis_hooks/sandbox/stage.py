"""Where scenarios are rehearsed: one receiver, and the way to it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..webhooks import Marker
from ..wire import Json
from .agent import ScriptedAgent
from .clock import Clock, SkippingClock
from .scenario import Scenario, with_agent_webhooks
from .session import Session, SessionResult
from .steps import EndDelivered, Prefetched, Step
from .transport import Transport

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

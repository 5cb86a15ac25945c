"""Rehearses calls against a service that runs elsewhere, through its own door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from ..call_log.queries import Queries
from ..webhooks import Marker
from ..wire import Json
from .handled import HandledCall, handled_call
from .scenario import Scenario
from .session import SessionResult
from .simulation import Simulation
from .stage import Load, Stage, Tell
from .transport import over_http


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

"""A scenario that was gone through: what came of it, and whether that was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..wire import Json
from .expectations import Finding, StoredCall, check
from .handled import HandledCall
from .scenario import Scenario
from .session import SessionResult
from .steps import EndDelivered


@dataclass(frozen=True, slots=True)
class Simulation:
    """What became of a scenario."""

    result: SessionResult
    #: None where no end-of-call arrived, or the call log is not at hand.
    handled: HandledCall | None
    findings: Sequence[Finding]

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
        return cls(result, handled, check(scenario, result, stored if has_log else None))

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


def has_arrived(result: SessionResult) -> bool:
    """Tell whether an end-of-call was acknowledged."""
    ends = result.log.of(EndDelivered)
    return any(end.sent is not None and end.failure is None for end in ends)

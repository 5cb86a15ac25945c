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

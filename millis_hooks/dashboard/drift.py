"""What Millis sent that its documentation does not know: unknown is normal, and should be seen."""

from __future__ import annotations

from dataclasses import dataclass

from ..call_log.drift import COUNT_CAP, DriftGroup, masked_report
from .pages import Asked


@dataclass(frozen=True, slots=True)
class DriftView:
    """The drift report; counts that reach `count_cap` stop there."""

    groups: tuple[DriftGroup, ...]
    is_complete: bool
    count_cap: int
    live_count: int


def show_drift(asked: Asked) -> DriftView:
    """Build the page of the drift report."""
    report = masked_report(asked.log.drift(), asked.settings.mask)
    return DriftView(
        report.groups, report.is_complete, COUNT_CAP, asked.log.live_count(now=asked.now)
    )

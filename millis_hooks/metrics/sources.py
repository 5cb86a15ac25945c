"""What is shown, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ..call_log import CallLog
from ..counts import AttemptCounts, RunnerStatus, WebhookCounts
from ..loop_lag import LoopLag


class Runner(Protocol):
    """What is asked of the runner of handlers."""

    @property
    def counts(self) -> AttemptCounts: ...

    @property
    def status(self) -> RunnerStatus: ...

    @property
    def handlers(self) -> list[tuple[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts of a service that count; `webhooks` by kind, `loops` by name."""

    webhooks: Mapping[str, WebhookCounts]
    runner: Runner
    call_log: CallLog
    loops: Mapping[str, LoopLag]
    now: Callable[[], datetime]

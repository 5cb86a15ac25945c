"""What is shown, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ..call_log import CallLog
from ..counts import WebhookCounts
from ..loop_lag import LoopLag
from ..runs.runner import Runner


@dataclass(frozen=True, slots=True)
class Sources:
    """The parts of a service that count; `webhooks` by kind, `loops` by name."""

    webhooks: Mapping[str, WebhookCounts]
    runner: Runner
    call_log: CallLog
    loops: Mapping[str, LoopLag]
    now: Callable[[], datetime]

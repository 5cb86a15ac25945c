"""`ParkedRun`: what a handler of `on_parked` is called with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..protocol.events import EndOfCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedRun:
    """A run that nothing more will come of by itself: somebody has to look at it, or replay it."""

    run_id: int
    #: The call it was about; its `idempotency_key` is the one that the parked handler had.
    call: EndOfCall = field(repr=False)
    #: The name of the handler that did not succeed.
    handler: str
    #: Why it is parked, in words.
    reason: str
    #: How many attempts were made.
    attempts: int
    #: What the last attempt raised, without secrets and phone numbers; None if it raised nothing.
    error_type: str | None = None
    error_message: str | None = None
    #: Aware, in UTC.
    parked_at: datetime

    @property
    def state(self) -> Any:
        """What the application's `lifespan` yielded."""
        return self.call.state

    @property
    def idempotency_key(self) -> str:
        """The same in every attempt to tell of this run; another when a replay is parked too."""
        return f"{self.call.session_id}:{self.handler}:parked:{self.run_id}"

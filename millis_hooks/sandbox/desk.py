"""What the parts of a session share: one call's identity, its log, and the way out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..webhooks import Marker
from .clock import Clock
from .spec import SessionSpec
from .steps import Answered, Sent, Step, StepLog
from .transport import Answer, Request, Transport, TransportError


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was sent, and how it was answered or why not."""

    sent: Sent | None
    answer: Answer | None
    failure: str | None
    took_ms: float

    def refusal(self) -> str | None:
        """Return why it was not taken: no answer, or a status that is none of success."""
        if self.failure is not None or self.answer is None or self.answer.is_success:
            return self.failure
        return f"answered with status {self.answer.status_code}"

    def fields(self) -> dict[str, Any]:
        """Return it as the fields that steps have of it."""
        return {
            "sent": self.sent,
            "answered": None if self.answer is None else Answered.of(self.answer),
            "took_ms": round(self.took_ms, 3),
            "failure": self.failure,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where the parts of a session do their work."""

    spec: SessionSpec
    session_id: str
    call_id: str
    transport: Transport
    clock: Clock
    log: StepLog
    #: Makes the header by which a receiver knows a request of this call as made up.
    mark: Marker | None
    began_s: float

    def add(self, step: Step) -> None:
        """Put a step into the log."""
        self.log.add(step, at_s=self.clock.elapsed_s() - self.began_s)

    def _marked(self, request: Request) -> Request:
        if self.mark is None:
            return request
        mark = self.mark(self.session_id, request.url, request.headers)
        return replace(request, headers=(*request.headers, *mark.items()))

    async def send(self, request: Request, *, timeout_s: float, marked: bool = False) -> Exchange:
        """Send a request and measure it; `marked` ones say that the call is rehearsed."""
        if marked:
            request = self._marked(request)
        sent = Sent.of(request)
        began_s = self.clock.measured_s()
        answer, failure = None, None
        try:
            answer = await self.transport.send(request, timeout_s=timeout_s)
        except TransportError as error:
            failure = str(error)
        return Exchange(sent, answer, failure, (self.clock.measured_s() - began_s) * 1000)

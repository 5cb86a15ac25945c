"""`Handler`: a registered function, the calls it wants, and how its runs are to be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from .events import EndOfCall, PrefetchRequest
from .parked import ParkedRun
from .retries import Backoff

#: What a handler is called for: a webhook, or a run that is parked.
HandlerHook: TypeAlias = Literal["prefetch", "end_of_call", "parked"]
#: What a handler is called with.
Event: TypeAlias = PrefetchRequest[Any] | EndOfCall | ParkedRun

#: How long a run's handler may take unless it says otherwise, in seconds.
DEFAULT_TIMEOUT_S = 60.0

#: The filters by the names that decorators give them, and the fields of `Handler` that hold them.
FILTERS = {
    "agent_id": "agent_ids",
    "channel": "channels",
    "call_status": "call_statuses",
    "outcome": "outcomes",
    "handler": "handlers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A registered function. A filter that is None lets everything through."""

    name: str
    hook: HandlerHook
    function: Callable[[Any], Any]
    is_async: bool
    place: str  # file:line, for messages
    agent_ids: frozenset[str] | None = None
    channels: frozenset[str] | None = None
    call_statuses: frozenset[str] | None = None
    outcomes: frozenset[str] | None = None
    handlers: frozenset[str] | None = None  # parked: whose runs it hears of
    when: Callable[[Any], object] | None = None
    metadata_model: type[BaseModel] | None = None
    #: None is `DEFAULT_TIMEOUT_S`; for prefetch, whose budget it is, the application's.
    timeout_s: float | None = None
    max_attempts: int = 5
    retry_backoff: Backoff = field(default_factory=Backoff)
    concurrency: int | None = None  # how many of its runs may be at work at once
    repeatable: bool = True  # may a person replay its runs
    on_change: bool = False  # is it called again when a later end changes the call

    def wants(self, event: Event) -> bool:
        """Tell whether the filters let `event` through, except `when`: that is the team's code."""
        if isinstance(event, ParkedRun):
            return self.hears_of(event.handler)
        return (
            (self.agent_ids is None or event.agent_id in self.agent_ids)
            and (self.channels is None or event.channel in self.channels)
            and (not isinstance(event, EndOfCall) or self._wants_ending(event))
        )

    def hears_of(self, handler: str) -> bool:
        """Tell whether it is to be called when a run of the handler of this name is parked."""
        return self.hook == "parked" and (self.handlers is None or handler in self.handlers)

    def _wants_ending(self, call: EndOfCall) -> bool:
        return (self.call_statuses is None or call.call_status in self.call_statuses) and (
            self.outcomes is None or call.outcome in self.outcomes
        )

    def filters(self) -> dict[str, list[str]]:
        """Return the filters that are set, by the names that decorators give them, and sorted."""
        values = {name: getattr(self, attribute) for name, attribute in FILTERS.items()}
        return {name: sorted(value) for name, value in values.items() if value is not None}

    def prepare(self, event: Event, state: object) -> Event:
        """Return `event` as this handler asked for it: its own metadata type, state and key."""
        if isinstance(event, ParkedRun):
            event.call._state, event.call._handler = state, event.handler
            return event
        if isinstance(event, EndOfCall):
            event._handler = self.name
        elif self.metadata_model is not None:
            typed = event.typed(self.metadata_model)
            event.problems = typed.problems  # told to whoever asked, too
            event = typed
        event._state = state
        return event

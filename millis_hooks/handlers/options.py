"""What the decorators take, and what each option may be.

A reader returns an option's value as `Handler` holds it, or raises `ValueError` with what to do.

`Handler`: a registered function, the calls it wants, and how its runs are to be done.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, TypedDict

from pydantic import BaseModel

from ..protocol.events import CallStatus, Channel, EndOfCall, Outcome, PrefetchRequest
from .failed_runs import ParkedRun
from .retries import Backoff
from .signatures import is_async

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


_Several: TypeAlias = str | Collection[str] | None


class PrefetchOptions(TypedDict, total=False):
    """The options of `on_prefetch`."""

    name: str | None
    agent_id: _Several
    channel: Channel | Collection[Channel] | None
    when: Callable[[PrefetchRequest], object] | None
    budget_s: float | None


class ParkedOptions(TypedDict, total=False):
    """The options of `on_parked`."""

    name: str | None
    handler: _Several
    max_attempts: int
    timeout_s: float
    retry_backoff: Backoff


class EndOfCallOptions(TypedDict, total=False):
    """The options of `on_end_of_call`."""

    name: str | None
    agent_id: _Several
    channel: Channel | Collection[Channel] | None
    call_status: _Several
    outcome: _Several
    when: Callable[[EndOfCall], object] | None
    max_attempts: int
    timeout_s: float
    retry_backoff: Backoff
    concurrency: int | None
    repeatable: bool
    on_change: bool


#: The names of the options of each decorator.
OPTIONS: Mapping[HandlerHook, Collection[str]] = {
    "prefetch": PrefetchOptions.__annotations__,
    "end_of_call": EndOfCallOptions.__annotations__,
    "parked": ParkedOptions.__annotations__,
}

#: The fields of `Handler` that are not named as the option is.
FIELDS = FILTERS | {"budget_s": "timeout_s"}

MAX_ATTEMPTS = 100


def read_option(name: str, value: object) -> Any:
    """Return the value for `Handler`; raises `ValueError` with what to do about a wrong one."""
    return None if value is None and name in _MAY_BE_NONE else _READERS[name](value)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence about the known name that is nearest to `name`, or nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _name(value: object) -> str:
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value
    raise ValueError("Give it a name that can be printed.")


def _names(value: Any) -> frozenset[str]:
    try:
        names = frozenset([value] if isinstance(value, str) else value)
    except TypeError:
        raise ValueError("Give it one text, or several.") from None
    if names and all(name and isinstance(name, str) for name in names):
        return names
    raise ValueError("It lets no call through. Leave it out, or give it texts to compare with.")


def _one_of(known: Iterable[str]) -> Callable[[object], frozenset[str]]:
    spelling = {_fold(name): str(name) for name in known}

    def read(value: object) -> frozenset[str]:
        names = _names(value)
        for name in sorted(names):
            if _fold(name) not in spelling:
                raise ValueError(
                    f"{name!r} is unknown.{suggest(name, spelling.values())} "
                    f"Known: {', '.join(spelling.values())}. For a new one, use when=."
                )
        return frozenset(spelling[_fold(name)] for name in names)

    return read


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


def _plain_function(value: object) -> Callable[[Any], object]:
    if callable(value) and not is_async(value):
        return value
    raise ValueError("It must be a plain function of the call.")


def _seconds(value: object) -> float:
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value <= sys.float_info.max
    ):
        return float(value)
    raise ValueError("Give it a number of seconds over 0.")


def _count(most: int | None = None) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= (most or value):
            return value
        raise ValueError(f"Give it a whole number from 1 {f'to {most}' if most else 'on'}.")

    return read


def _backoff(value: object) -> Backoff:
    if isinstance(value, Backoff):
        return value
    raise ValueError("Give it a Backoff, such as Backoff(first_s=10, factor=5).")


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("It is True or False.")


_READERS: Mapping[str, Callable[[object], object]] = {
    "name": _name,
    "agent_id": _names,
    "channel": _one_of(typing.get_args(Channel)),
    "call_status": _one_of(CallStatus),
    "outcome": _one_of(Outcome),
    "handler": _names,
    "when": _plain_function,
    "budget_s": _seconds,
    "timeout_s": _seconds,
    "max_attempts": _count(MAX_ATTEMPTS),
    "retry_backoff": _backoff,
    "concurrency": _count(),
    "repeatable": _bool,
    "on_change": _bool,
}
#: None leaves these as they are by default; elsewhere it may be thought to mean "without end".
_MAY_BE_NONE = {*FILTERS, "name", "when", "budget_s", "concurrency"}

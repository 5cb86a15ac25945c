"""The handler registry: which function wants which webhook, and for which calls.

Decorators return the function unchanged. Whatever can be checked is checked when it is registered:
a handler that could never be called fails at import, and the message names where it stands.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Never, TypeVar, overload

from pydantic import BaseModel

from .events import CallStatus, Channel, EndOfCall, Json, Outcome, PrefetchRequest, PrefetchResponse
from .exceptions import RegistrationError
from .settings import Hook

PrefetchAnswer = PrefetchResponse | dict[str, Json] | str | None
PrefetchFunction = Callable[[PrefetchRequest[Any]], PrefetchAnswer | Awaitable[PrefetchAnswer]]
EndOfCallFunction = Callable[[EndOfCall], object]
Event = PrefetchRequest[Any] | EndOfCall

P = TypeVar("P", bound=PrefetchFunction)
E = TypeVar("E", bound=EndOfCallFunction)

#: How long an end-of-call handler may take unless it says otherwise, in seconds.
DEFAULT_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A registered function. A filter that is None lets every call through."""

    name: str
    hook: Hook
    function: Callable[[Any], Any]
    is_async: bool
    place: str  # file:line, for messages
    agent_ids: frozenset[str] | None = None
    channels: frozenset[str] | None = None
    call_statuses: frozenset[str] | None = None
    outcomes: frozenset[str] | None = None
    when: Callable[[Any], object] | None = None
    metadata_model: type[BaseModel] | None = None
    timeout_s: float | None = None  # prefetch: its own budget; None is the application's

    def wants(self, call: Event) -> bool:
        """Tell whether the filters let `call` through, except `when`: that is the team's code."""
        return (
            (self.agent_ids is None or call.agent_id in self.agent_ids)
            and (self.channels is None or call.channel in self.channels)
            and (not isinstance(call, EndOfCall) or self._wants_ending(call))
        )

    def _wants_ending(self, call: EndOfCall) -> bool:
        return (self.call_statuses is None or call.call_status in self.call_statuses) and (
            self.outcomes is None or call.outcome in self.outcomes
        )

    def prepare(self, call: Event, state: object) -> Event:
        """Return `call` as this handler asked for it: its own metadata type, and the state."""
        if self.metadata_model is not None and isinstance(call, PrefetchRequest):
            typed = call.typed(self.metadata_model)
            call.problems = typed.problems  # told to whoever asked, too
            call = typed
        call._state = state
        return call


class Router:
    """A collection of handlers; several can be put together with `include`."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[Hook, str], Handler] = {}

    def __iter__(self) -> Iterator[Handler]:
        """All handlers, in the order of registration."""
        return iter(self._handlers.values())

    def matching(self, hook: Hook, call: Event) -> list[Handler]:
        """Return the handlers whose filters let `call` through, in the order of registration."""
        return [handler for handler in self if handler.hook == hook and handler.wants(call)]

    def get(self, hook: Hook, name: str) -> Handler | None:
        """Return the handler of this name, if there is one."""
        return self._handlers.get((hook, name))

    def include(self, router: Router) -> None:
        """Add the handlers of `router`; raises `RegistrationError` where a name is taken."""
        for handler in router:
            self.add(handler)

    def add(self, handler: Handler) -> None:
        """Add one handler; raises `RegistrationError` for a taken name or an impossible `when`."""
        if handler.when is not None and not _is_plain_function(handler.when):
            raise RegistrationError(
                f"{handler.place}: when= of {handler.name} must be a plain function of the call."
            )
        known = self._handlers.setdefault((handler.hook, handler.name), handler)
        if known is not handler:
            raise RegistrationError(
                f"Two {handler.hook} handlers are named {handler.name!r}: at {known.place} and at "
                f"{handler.place}. Rename one, or pass name=... to its decorator."
            )

    @overload
    def on_prefetch(self, function: P, /) -> P: ...
    @overload
    def on_prefetch(
        self,
        /,
        *,
        name: str | None = None,
        agent_id: str | Collection[str] | None = None,
        channel: Channel | Collection[Channel] | None = None,
        when: Callable[[PrefetchRequest], object] | None = None,
        budget_s: float | None = None,
    ) -> Callable[[P], P]: ...
    def on_prefetch(
        self,
        function: PrefetchFunction | None = None,
        /,
        *,
        name: str | None = None,
        agent_id: str | Collection[str] | None = None,
        channel: Channel | Collection[Channel] | None = None,
        when: Callable[[PrefetchRequest], object] | None = None,
        budget_s: float | None = None,
        **unknown: Never,
    ) -> Any:
        """Register a function that answers prefetch webhooks, before the call begins.

        It takes a `PrefetchRequest` and returns a `PrefetchResponse`, a `str` (the extra prompt),
        a dict in Millis' shape, or None. `budget_s` is its share of the caller's patience in
        seconds, the application's budget by default. Of several matching handlers all run, side by
        side. Raises `RegistrationError` for what cannot work.
        """

        def register(function: P) -> P:
            inspected = _inspect(function, "prefetch", PrefetchRequest, unknown, budget_s)
            self.add(
                Handler(
                    **inspected,
                    name=name or _name_of(function),
                    agent_ids=_names("agent_id", agent_id),
                    channels=_members("channel", channel, typing.get_args(Channel), function),
                    when=when,
                    metadata_model=_metadata_model(function),
                )
            )
            return function

        return register if function is None else register(function)

    @overload
    def on_end_of_call(self, function: E, /) -> E: ...
    @overload
    def on_end_of_call(
        self,
        /,
        *,
        name: str | None = None,
        agent_id: str | Collection[str] | None = None,
        channel: Channel | Collection[Channel] | None = None,
        call_status: str | Collection[str] | None = None,
        outcome: str | Collection[str] | None = None,
        when: Callable[[EndOfCall], object] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Callable[[E], E]: ...
    def on_end_of_call(
        self,
        function: EndOfCallFunction | None = None,
        /,
        *,
        name: str | None = None,
        agent_id: str | Collection[str] | None = None,
        channel: Channel | Collection[Channel] | None = None,
        call_status: str | Collection[str] | None = None,
        outcome: str | Collection[str] | None = None,
        when: Callable[[EndOfCall], object] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **unknown: Never,
    ) -> Any:
        """Register a function that is called once a call has ended and is safely stored.

        It takes an `EndOfCall`; what it returns is not used. Filters take one value or several.
        After `timeout_s` seconds it is given up. Raises `RegistrationError` for what cannot work.
        """

        def register(function: E) -> E:
            inspected = _inspect(function, "end_of_call", EndOfCall, unknown, timeout_s)
            self.add(
                Handler(
                    **inspected,
                    name=name or _name_of(function),
                    agent_ids=_names("agent_id", agent_id),
                    channels=_members("channel", channel, typing.get_args(Channel), function),
                    call_statuses=_members("call_status", call_status, [*CallStatus], function),
                    outcomes=_members("outcome", outcome, [*Outcome], function),
                    when=when,
                )
            )
            return function

        return register if function is None else register(function)


def _inspect(
    function: Callable[..., Any],
    hook: Hook,
    takes: type,
    unknown: dict[str, Any],
    timeout_s: float | None,
) -> dict[str, Any]:
    """Check what every handler must be; return the fields of `Handler` that follow from it."""
    if not callable(function):
        raise RegistrationError(f"A {hook} handler must be a function, not {function!r}.")
    place = _place_of(function)
    if unknown:
        known = "name, agent_id, channel, when" + (
            ", budget_s" if hook == "prefetch" else ", call_status, outcome, timeout_s"
        )
        raise RegistrationError(
            f"{place}: {_name_of(function)} asks for the unknown filter {next(iter(unknown))!r}. "
            f"on_{hook} takes {known}; anything else can be told by when=a function of the call."
        )
    if timeout_s is not None and not timeout_s > 0:
        raise RegistrationError(f"{place}: {_name_of(function)} gets {timeout_s} s; give it more.")
    _check_signature(function, hook, takes, place)
    return {
        "function": function,
        "hook": hook,
        "place": place,
        "is_async": inspect.iscoroutinefunction(_target(function)),
        "timeout_s": timeout_s,
    }


def _check_signature(function: Callable[..., Any], hook: Hook, takes: type, place: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # as of some built-in functions
        raise RegistrationError(
            f"{place}: what {_name_of(function)} takes cannot be told; wrap it in a function."
        ) from None
    parameters = signature.parameters.values()
    try:
        signature.bind(object())
    except TypeError:
        names = ", ".join(map(str, parameters))
        raise RegistrationError(
            f"{place}: {_name_of(function)}({names}) cannot be called with one {takes.__name__}. "
            f"Write it as {_name_of(function)}(call: {takes.__name__})."
        ) from None
    target = inspect.unwrap(_target(function))
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise RegistrationError(f"{place}: {_name_of(function)} yields; a handler must return.")
    annotation = _annotation_of(function)
    origin = typing.get_origin(annotation) or annotation
    if isinstance(origin, type) and origin in (EndOfCall, PrefetchRequest) and origin is not takes:
        raise RegistrationError(
            f"{place}: {_name_of(function)} takes {origin.__name__}, but on_{hook} calls it with "
            f"{takes.__name__}."
        )


def _annotation_of(function: Callable[..., Any]) -> Any:
    """Return what the first parameter is annotated with, or None if that cannot be told."""
    try:
        hints = typing.get_type_hints(_target(function))
        first = next(iter(inspect.signature(function).parameters))
    except (NameError, TypeError, StopIteration):
        return None
    return hints.get(first)


def _metadata_model(function: Callable[..., Any]) -> type[BaseModel] | None:
    for argument in typing.get_args(_annotation_of(function)):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return None


def _is_plain_function(function: object) -> bool:
    return callable(function) and not inspect.iscoroutinefunction(_target(function))


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind a partial or behind an object that can be called."""
    if isinstance(function, functools.partial):
        return _target(function.func)
    return function if inspect.isroutine(function) else type(function).__call__


def _name_of(function: Callable[..., Any]) -> str:
    behind = function.func if isinstance(function, functools.partial) else function
    return str(getattr(behind, "__name__", type(behind).__name__))


def _place_of(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(_target(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _names(filter_name: str, value: str | Collection[str] | None) -> frozenset[str] | None:
    if value is None:
        return None
    names = frozenset([value] if isinstance(value, str) else value)
    if not names or not all(names):
        raise RegistrationError(f"The filter {filter_name}={value!r} lets no call through.")
    return names


def _members(
    filter_name: str,
    value: str | Collection[str] | None,
    known: Collection[str],
    function: Callable[..., Any],
) -> frozenset[str] | None:
    """Return the filter's values, spelled as `known` spells them."""
    names = _names(filter_name, value)
    if names is None:
        return None
    spelling = {_fold(str(name)): str(name) for name in known}
    for name in names:
        if _fold(name) not in spelling:
            near = get_close_matches(name, spelling.values(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise RegistrationError(
                f"{_place_of(function)}: {_name_of(function)} asks for {filter_name}={name!r}."
                f"{hint} Known: {', '.join(spelling.values())}. For a new one, use when=."
            )
    return frozenset(spelling[_fold(name)] for name in names)


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")

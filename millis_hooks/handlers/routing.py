"""The router: the decorators that register handlers, and which calls match which handler."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Unpack, overload
from weakref import WeakSet

from pydantic import BaseModel

from ..exceptions import RegistrationError
from ..protocol.agent_names import check_agent, check_unique
from ..protocol.events import EndOfCall
from ..protocol.prefetch import PrefetchRequest, PrefetchResponse
from ..protocol.reading import Json
from .handler_call import Event, Handler, HandlerHook
from .options import (
    EndOfCallOptions,
    FailedOptions,
    FunctionOptions,
    PrefetchOptions,
    make_handler,
    suggest,
)
from .retries import FailedRun

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PrefetchAnswer: TypeAlias = PrefetchResponse | Mapping[str, object] | str | None
PrefetchFunction: TypeAlias = Callable[
    [PrefetchRequest[Any, Any]], PrefetchAnswer | Awaitable[PrefetchAnswer]
]
#: Results: names and plain values.
EndOfCallAnswer: TypeAlias = "Mapping[str, object] | BaseModel | DataclassInstance | None"
EndOfCallFunction: TypeAlias = Callable[
    [EndOfCall[Any, Any]], "EndOfCallAnswer | Awaitable[EndOfCallAnswer]"
]
#: What the agent gets: a text, or what JSON has.
FunctionAnswer: TypeAlias = (
    "str | float | date | time | Mapping[str, object] | Sequence[object] | BaseModel | "
    "DataclassInstance | None"
)
FailedFunction: TypeAlias = Callable[[FailedRun], object]

P = TypeVar("P", bound=PrefetchFunction)
T = TypeVar("T", bound=Callable[..., "FunctionAnswer | Awaitable[FunctionAnswer]"])
E = TypeVar("E", bound=EndOfCallFunction)
F = TypeVar("F", bound=FailedFunction)


@dataclass(frozen=True, slots=True)
class NamedAgent:
    """An agent's name, and where in the code it is given."""

    id: str
    name: str
    place: str


#: Every router that exists and that no application has, itself or by `include`.
_unused: WeakSet[Router] = WeakSet()


def forgotten_routers(router: Router) -> Iterator[str]:
    """Say which handlers are never called: those of routers that were made by the same code as
    the application with `router`, and that it does not include."""
    _unused.discard(router)
    for each in _unused:
        if list(each) and each.made_in.is_relative_to(router.made_in):
            names = ", ".join(f"{handler.name} ({handler.place})" for handler in each)
            yield (
                f"the handlers of a Router are not called: {names}. Pass the Router to "
                "MillisHooks(...), or to include()"
            )


def _folder_of_caller() -> Path:
    """Return the folder of the package that called this one; of a module without one, its own."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(_PACKAGE):
        frame = frame.f_back
    package = frame.f_globals.get("__package__") or ""
    parents = Path(frame.f_code.co_filename).absolute().parents
    return parents[min(package.count("."), len(parents) - 1)]


_PACKAGE = __name__.partition(".")[0] + "."


class Router:
    """A collection of handlers and names of agents; `include` adds those of another."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, str], Handler] = {}
        self._agents: dict[str, NamedAgent] = {}
        self.made_in = _folder_of_caller()
        _unused.add(self)

    def __iter__(self) -> Iterator[Handler]:
        """All handlers, in the order of registration."""
        return iter(self._handlers.values())

    def matching(self, hook: HandlerHook, event: Event) -> list[Handler]:
        """Return the handlers whose filters accept `event`, in the order of registration."""
        return [handler for handler in self if handler.hook == hook and handler.matches(event)]

    def runs_for(self, call: EndOfCall) -> list[str]:
        """Return the names of the handlers that are called for a call that has ended."""
        return [handler.name for handler in self.matching("end_of_call", call)]

    def hears_of_changes(self, name: str) -> bool:
        """Tell whether an end-of-call handler is called again when its call changes."""
        handler = self.get("end_of_call", name)
        return handler is not None and handler.on_change

    def functions(self) -> list[Handler]:
        """Return the functions, in the order of registration."""
        return [handler for handler in self if handler.hook == "function"]

    def tools(self, agent_id: str | None) -> list[dict[str, Json]]:
        """Return the functions of an agent as Millis knows them, without address and header;
        without an agent those that every agent has."""
        return [
            each.tool.entry()
            for each in self.functions()
            if each.tool is not None and agent_id in each.accepted.get("agent_id", {agent_id})
        ]

    def failure_handlers(self, name: str) -> list[Handler]:
        """Return the `on_failed` handlers that are called when a run of this handler has failed."""
        return [
            handler
            for handler in self
            if handler.hook == "failed" and name in handler.accepted.get("handler", {name})
        ]

    def get(self, hook: str, name: str) -> Handler | None:
        """Return the handler of this name, or None."""
        return self._handlers.get((hook, name))

    def include(self, router: Router) -> None:
        """Add the handlers of `router`; raises `RegistrationError` where a name is taken."""
        _unused.discard(router)
        for handler in router:
            self.add(handler)
        for agent in router._agents.values():
            self._add_agent(agent)

    def add(self, handler: Handler) -> None:
        """Add one handler; raises `RegistrationError` if another has its name."""
        present = self._handlers.setdefault((handler.hook, handler.name), handler)
        if present is not handler:
            raise RegistrationError(
                f"Two {handler.hook} handlers are named {handler.name!r}: at {present.place} and "
                f"at {handler.place}. Rename one, or pass name=... to its decorator."
            )

    def agent(self, agent_id: str, *, name: str) -> str:
        """Name an agent: pages and commands show the name in place of the id, which is returned.

        Raises `RegistrationError` for what cannot be an id or a name, and where either is taken.
        """
        caller = sys._getframe(1)
        place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
        try:
            agent_id, name = check_agent(agent_id, name)
        except ValueError as error:
            raise RegistrationError(f"{place}: {error}.") from None
        self._add_agent(NamedAgent(agent_id, name, place))
        return agent_id

    def agent_names(self) -> dict[str, str]:
        """Return the names of agents by id."""
        return {agent.id: agent.name for agent in self._agents.values()}

    def _add_agent(self, agent: NamedAgent) -> None:
        present = self._agents.setdefault(agent.id, agent)
        if present is not agent:
            raise RegistrationError(
                f"Agent {agent.id} is named twice: {present.name!r} at {present.place}, and "
                f"{agent.name!r} at {agent.place}."
            )
        try:
            check_unique(self.agent_names())
        except ValueError as error:
            raise RegistrationError(f"{agent.place}: {error}.") from None

    def check(self) -> None:
        """Check the names in `on_failed(handler=)`, once all handlers are registered.

        Raises `RegistrationError` for one that no end-of-call handler has.
        """
        known = [handler.name for handler in self if handler.hook == "end_of_call"]
        for handler in self:
            for name in sorted(handler.accepted.get("handler", frozenset()).difference(known)):
                raise RegistrationError(
                    f"{handler.place}: {handler.name} asks for handler={name!r}, but no "
                    f"end-of-call handler has that name.{suggest(name, known)} "
                    f"Known: {', '.join(known) or 'none'}."
                )

    @overload
    def on_prefetch(self, function: P, /) -> P: ...
    @overload
    def on_prefetch(self, /, **options: Unpack[PrefetchOptions]) -> Callable[[P], P]: ...
    def on_prefetch(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that answers prefetch webhooks, before the call begins.

        It takes a `PrefetchRequest` and returns a `PrefetchResponse`, a `str` (the extra prompt),
        a dict in Millis' shape, or None. If several handlers match, all run, side by side.

        `name=` is the function's own by default. `agent_id=`, `channel=`, `direction=` and
        `to_phone=`, the number that is called, filter by one value or several, `when=` by a
        function of the call. `budget_s=` is its share of the caller's patience in seconds, the
        application's budget by default. With `cache_s=` its answer is given again for that number
        of seconds, and until `stale_s=` while a new one is fetched; `key=`, a function of the call,
        says whose answer it is, by default that of the customer's number. Raises
        `RegistrationError` for what cannot work.
        """
        return self._register("prefetch", function, options)

    @overload
    def function(self, function: T, /) -> T: ...
    @overload
    def function(self, /, **options: Unpack[FunctionOptions]) -> Callable[[T], T]: ...
    def function(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that an agent calls while it talks: a tool of the agent.

        Its signature is what the model knows: the name, the docstring, and for each parameter its
        type, its words (`Annotated[int, "How many guests"]`) and its default. Types are `str`,
        `int`, `float`, `bool`, `date`, `time`, `datetime`, `Literal`, an `Enum`, and one of these
        or None. A parameter annotated `FunctionRequest` takes the request. It returns a `str`, a
        mapping, a model or other plain values; None is answered as done.

        `name=` is the function's own by default. It may take `timeout_s=` (5) seconds; if it is
        late or raises, the agent gets `fallback=`. `say=` is what the agent says meanwhile.
        `answer="text"` sends a `str` as plain text, not as JSON. `agent_id=` keeps it to one agent
        or several. `method=` (POST), `response_mode=`, `run_after_call=`,
        `execute_after_message=`, `exclude_session_id=` and `include_metadata=` are Millis' own.
        Raises `RegistrationError` for what cannot work.
        """
        return self._register("function", function, options)

    @overload
    def on_end_of_call(self, function: E, /) -> E: ...
    @overload
    def on_end_of_call(self, /, **options: Unpack[EndOfCallOptions]) -> Callable[[E], E]: ...
    def on_end_of_call(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that is called once a call has ended and is safely stored.

        It takes an `EndOfCall`. A mapping of names and plain values that it returns, a dataclass or
        a model, is stored as the call's results. One that raises is called again, until
        `max_attempts=` (5) have begun; then its run has failed. It may raise `Retry` and `GiveUp`.

        `name=` is the function's own by default. `agent_id=`, `channel=`, `direction=`,
        `to_phone=`, `call_status=` and `outcome=` filter by one value or several, `when=` by a
        function of the call. An attempt is given up after `timeout_s=` (60) seconds; the next waits
        as `retry_backoff=`, a `Backoff`, says. At most `concurrency=` of its runs are at work at
        once. `repeatable=False` keeps operators from replaying it. With `on_change=True` it is
        called again when a later end-of-call of the same session changes the call. Raises
        `RegistrationError` for what cannot work.
        """
        return self._register("end_of_call", function, options)

    @overload
    def on_failed(self, function: F, /) -> F: ...
    @overload
    def on_failed(self, /, **options: Unpack[FailedOptions]) -> Callable[[F], F]: ...
    def on_failed(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that is called when a run has failed for good, to alert the team.

        It takes a `FailedRun`; what it returns is not used. It has attempts of its own, and nothing
        is called when they all fail.

        `name=` is the function's own by default. `handler=` names the end-of-call handlers about
        whose failed runs it is called, one or several; all by default. `max_attempts=` (5),
        `timeout_s=` (60) and `retry_backoff=` are as in `on_end_of_call`. Raises
        `RegistrationError` for what cannot work.
        """
        return self._register("failed", function, options)

    on_parked = on_failed  # its name until 0.1

    def _register(
        self, hook: HandlerHook, function: Callable[..., Any] | None, options: dict[str, Any]
    ) -> Any:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.add(make_handler(hook, function, options))
            return function

        return register if function is None else register(function)

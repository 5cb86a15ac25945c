"""Handlers: the decorators that register them, their options, and which calls match which handler.

Whatever can be checked is checked at registration, so a handler that could never be called fails at
import; the message names the function and where it stands.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_type_hints,
    overload,
)
from weakref import WeakSet

from pydantic import BaseModel

from ..exceptions import RegistrationError
from ..protocol.agent_names import check_agent, check_unique
from ..protocol.call_status import CallStatus, Outcome
from ..protocol.events import EndOfCall
from ..protocol.functions import FunctionRequest, Method, ResponseMode, Tool
from ..protocol.phones import Channel, Direction, digits_of, international, looked_for
from ..protocol.prefetch import PrefetchRequest, PrefetchResponse
from ..protocol.reading import Json
from .functions import tool_of
from .retries import Backoff, FailedRun
from .signatures import check_signature, is_async, metadata_model, name_of, place_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: What a handler is called for: a webhook, or a run that has failed.
HandlerHook: TypeAlias = Literal["prefetch", "function", "end_of_call", "failed"]
#: The hooks whose handlers answer Millis while a call waits. They have no runs.
ANSWERING: frozenset[HandlerHook] = frozenset({"prefetch", "function"})
#: What a handler is called with.
Event: TypeAlias = (
    PrefetchRequest[Any, Any] | FunctionRequest[Any] | EndOfCall[Any, Any] | FailedRun
)

#: How long a run's handler may take by default, in seconds.
DEFAULT_TIMEOUT_S = 60.0
#: How long a function may take by default, in seconds.
DEFAULT_FUNCTION_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A registered function, with its options."""

    name: str
    hook: HandlerHook
    function: Callable[..., Any]
    is_async: bool
    place: str  # file:line, for messages
    metadata_model: type[BaseModel] | None = None
    #: The values that an attribute of the event may have, by the name of the attribute.
    accepted: Mapping[str, frozenset[str]] = field(default_factory=dict)
    when: Callable[[Any], object] | None = None
    #: None is `DEFAULT_TIMEOUT_S`; for prefetch, the application's budget.
    timeout_s: float | None = None
    #: Of a prefetch handler: how long its answer is given again, how long while a new one is
    #: fetched, and by what it is found.
    cache_s: float | None = None
    stale_s: float | None = None
    key: Callable[[Any], object] | None = None
    #: Of a function: what Millis knows of it, and what goes out when it fails or is late.
    tool: Tool | None = None
    fallback: str | None = None
    answer: Literal["json", "text"] = "json"
    max_attempts: int = 5
    retry_backoff: Backoff = field(default_factory=Backoff)
    concurrency: int | None = None  # most runs at work at once
    repeatable: bool = True  # whether an operator may replay its runs
    on_change: bool = False  # whether it is called again when a later end-of-call changes the call

    def matches(self, event: Event) -> bool:
        """Tell whether the filters accept `event`, except `when`, which is the team's own code."""
        return all(_compared(event, name) in values for name, values in self.accepted.items())

    def call(self, event: Any) -> Any:
        """Call the function as its signature asks for."""
        if self.tool is None:
            return self.function(event)
        request = {} if self.tool.takes_request is None else {self.tool.takes_request: event}
        return self.function(**event.arguments, **request)

    def filters(self) -> dict[str, list[str]]:
        """Return the accepted values, sorted, by the name of the filter."""
        return {name: sorted(values) for name, values in self.accepted.items()}

    def prepare(self, event: Event, state: object) -> Event:
        """Return `event` with this handler's metadata type, idempotency key and `state`."""
        if isinstance(event, FailedRun):
            event.call._state, event.call._handler = state, event.handler
            return event
        if self.metadata_model is not None and not isinstance(event, FunctionRequest):
            typed = event.typed(self.metadata_model)
            if isinstance(event, PrefetchRequest):
                event.problems = typed.problems  # the endpoint reports them
            event = typed
        if isinstance(event, EndOfCall):
            event._handler = self.name
        event._state = state
        return event


@dataclass(frozen=True, slots=True)
class NamedAgent:
    """An agent's name, and where in the code it is given."""

    id: str
    name: str
    place: str


def _compared(event: Event, name: str) -> object:
    """Return an attribute of an event as filters have it."""
    value: object = getattr(event, name)
    if name == "to_phone" and isinstance(value, str):
        return f"+{digits_of(looked_for(value))}"
    return value


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known name nearest to `name`, or an empty string."""
    near = get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check(is_valid: Callable[[Any], object], advice: str) -> Callable[[Any], Any]:
    """Return the check of an option, which returns its value or raises `ValueError`."""

    def check(value: Any) -> Any:
        if is_valid(value):
            return value
        raise ValueError(advice)

    return check


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, most: int = sys.maxsize) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _texts(value: Any) -> frozenset[str]:
    try:
        texts = frozenset([value] if isinstance(value, str) else value)
    except TypeError:
        raise ValueError("Give it one text, or several.") from None
    if texts and all(text and isinstance(text, str) for text in texts):
        return texts
    raise ValueError("It lets no call through. Leave it out, or give it texts to compare with.")


def _one_of(known: Iterable[str]) -> Callable[[object], frozenset[str]]:
    spelling = {_fold(name): str(name) for name in known}

    def check(value: object) -> frozenset[str]:
        names = _texts(value)
        for name in sorted(names):
            if _fold(name) not in spelling:
                raise ValueError(
                    f"{name!r} is unknown.{suggest(name, spelling.values())} "
                    f"Known: {', '.join(spelling.values())}. For a new one, use when=."
                )
        return frozenset(spelling[_fold(name)] for name in names)

    return check


def _numbers(value: Any) -> frozenset[str]:
    return frozenset(map(international, _texts(value)))


def _in_order(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, Collection) and all(isinstance(each, str) and each for each in texts):
        return list(texts)
    raise ValueError("Give it one text that the agent says, or several.")


def _choice(*known: str) -> Callable[[Any], Any]:
    return _check(lambda value: value in known, f"It is one of {', '.join(known)}.")


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


_NAME = _check(
    lambda name: isinstance(name, str) and name.strip() and name.isprintable(),
    "Give it a name that can be printed.",
)
_SECONDS = _check(
    lambda value: _is_number(value) and 0 < value <= sys.float_info.max,
    "Give it a number of seconds over 0.",
)
_ATTEMPTS = _check(
    lambda value: _is_count(value, MAX_ATTEMPTS),
    f"Give it a whole number from 1 to {MAX_ATTEMPTS}.",
)
_COUNT = _check(_is_count, "Give it a whole number from 1 on.")
_BACKOFF = _check(
    lambda value: isinstance(value, Backoff),
    "Give it a Backoff, such as Backoff(first_s=10, factor=5).",
)
_BOOL = _check(lambda value: isinstance(value, bool), "It is True or False.")
_WORDS = _check(
    lambda value: isinstance(value, str) and value.strip(),
    "Give it a text that the agent can speak from.",
)
_FUNCTION = _check(
    lambda value: callable(value) and not is_async(value),
    "It must be a plain function of the call.",
)
_CHANNELS = _one_of(get_args(Channel))
_DIRECTIONS = _one_of(get_args(Direction))

_Several: TypeAlias = str | Collection[str] | None
_Channels: TypeAlias = Channel | Collection[Channel] | None
_Directions: TypeAlias = Direction | Collection[Direction] | None


class _Options(TypedDict, total=False):
    name: Annotated[str | None, _NAME]


class _RunOptions(_Options, total=False):
    max_attempts: Annotated[int, _ATTEMPTS]
    timeout_s: Annotated[float, _SECONDS]
    retry_backoff: Annotated[Backoff, _BACKOFF]


class PrefetchOptions(_Options, total=False):
    """The options of `on_prefetch`."""

    agent_id: Annotated[_Several, _texts]
    channel: Annotated[_Channels, _CHANNELS]
    direction: Annotated[_Directions, _DIRECTIONS]
    to_phone: Annotated[_Several, _numbers]
    when: Annotated[Callable[[PrefetchRequest], object] | None, _FUNCTION]
    budget_s: Annotated[float | None, _SECONDS]
    cache_s: Annotated[float | None, _SECONDS]
    stale_s: Annotated[float | None, _SECONDS]
    key: Annotated[Callable[[PrefetchRequest], object] | None, _FUNCTION]


class EndOfCallOptions(_RunOptions, total=False):
    """The options of `on_end_of_call`."""

    agent_id: Annotated[_Several, _texts]
    channel: Annotated[_Channels, _CHANNELS]
    direction: Annotated[_Directions, _DIRECTIONS]
    to_phone: Annotated[_Several, _numbers]
    call_status: Annotated[_Several, _one_of(CallStatus)]
    outcome: Annotated[_Several, _one_of(Outcome)]
    when: Annotated[Callable[[EndOfCall], object] | None, _FUNCTION]
    concurrency: Annotated[int | None, _COUNT]
    repeatable: Annotated[bool, _BOOL]
    on_change: Annotated[bool, _BOOL]


class FailedOptions(_RunOptions, total=False):
    """The options of `on_failed`."""

    handler: Annotated[_Several, _texts]


class FunctionOptions(_Options, total=False):
    """The options of `function`."""

    agent_id: Annotated[_Several, _texts]
    timeout_s: Annotated[float, _SECONDS]
    fallback: Annotated[str | None, _WORDS]
    answer: Annotated[Literal["json", "text"], _choice("json", "text")]
    say: Annotated[str | Collection[str] | None, _in_order]
    method: Annotated[Method, _choice("POST", "GET")]
    response_mode: Annotated[ResponseMode | None, _choice("strict", "flexible")]
    run_after_call: Annotated[bool, _BOOL]
    execute_after_message: Annotated[bool, _BOOL]
    exclude_session_id: Annotated[bool, _BOOL]
    include_metadata: Annotated[bool, _BOOL]


#: Options that Millis knows under these names, and how long it waits.
_SWITCHES: Mapping[str, str] = {
    "say": "messages",
    **{
        name: name
        for name in (
            "response_mode",
            "run_after_call",
            "execute_after_message",
            "exclude_session_id",
            "include_metadata",
        )
    },
}


class _Hook(NamedTuple):
    decorator: str
    takes: type
    options: Mapping[str, Any]  # annotations: the type, and the check


def _annotations(options: type) -> Mapping[str, Any]:
    return get_type_hints(options, include_extras=True)


_HOOKS: Mapping[HandlerHook, _Hook] = {
    "prefetch": _Hook("on_prefetch", PrefetchRequest, _annotations(PrefetchOptions)),
    "function": _Hook("function", FunctionRequest, _annotations(FunctionOptions)),
    "end_of_call": _Hook("on_end_of_call", EndOfCall, _annotations(EndOfCallOptions)),
    "failed": _Hook("on_failed", FailedRun, _annotations(FailedOptions)),
}
_FILTERS = frozenset(
    {"agent_id", "channel", "direction", "to_phone", "call_status", "outcome", "handler"}
)


def make_handler(
    hook: HandlerHook, function: Callable[..., Any], options: Mapping[str, object]
) -> Handler:
    """Return `function` as a handler with these options.

    Raises `RegistrationError` for what cannot work.
    """
    decorator, takes, _ = _HOOKS[hook]
    if not callable(function):
        raise RegistrationError(f"{decorator} takes a function, not {function!r}.")
    checked = _checked(hook, function, options)
    if hook == "function":
        return _make_function(function, checked)
    check_signature(function, takes, decorator=decorator)
    accepted = {name: checked.pop(name) for name in sorted(_FILTERS & checked.keys())}
    _check_cache(function, checked, accepted)
    if "budget_s" in checked:
        checked["timeout_s"] = checked.pop("budget_s")
    return Handler(
        hook=hook,
        function=function,
        is_async=is_async(function),
        place=place_of(function),
        metadata_model=metadata_model(function, takes),
        accepted=accepted,
        **{"name": name_of(function)} | checked,
    )


def _check_cache(
    function: Callable[..., Any], checked: Mapping[str, Any], accepted: Mapping[str, object]
) -> None:
    """Raise `RegistrationError` for options of the cache that do not go together."""
    cache_s, stale_s = checked.get("cache_s"), checked.get("stale_s")
    why = None
    if cache_s is None and (stale_s is not None or "key" in checked):
        why = "stale_s= or key= without cache_s=. Say how long an answer is given again."
    elif cache_s is not None and stale_s is not None and stale_s < cache_s:
        why = f"stale_s={stale_s!r}, less than cache_s={cache_s!r}. Both count from the answer."
    elif cache_s is not None and "key" not in checked and accepted.get("channel") == {"web"}:
        why = "cache_s= without key=. Web calls have no number to know a caller by."
    if why is not None:
        raise RegistrationError(f"{place_of(function)}: {name_of(function)} asks for {why}")


def _make_function(function: Callable[..., Any], checked: dict[str, Any]) -> Handler:
    name = checked.pop("name", name_of(function))
    agent_id = checked.pop("agent_id", None)
    timeout_s = checked.pop("timeout_s", DEFAULT_FUNCTION_TIMEOUT_S)
    switches = {_SWITCHES[each]: checked.pop(each) for each in _SWITCHES if each in checked}
    method = checked.pop("method", "POST")
    tool = tool_of(function, name, timeout_s=timeout_s, method=method, switches=switches)
    return Handler(
        hook="function",
        name=name,
        function=function,
        is_async=is_async(function),
        place=place_of(function),
        tool=tool,
        timeout_s=timeout_s,
        accepted={} if agent_id is None else {"agent_id": agent_id},
        **checked,
    )


def _checked(
    hook: HandlerHook, function: Callable[..., Any], options: Mapping[str, object]
) -> dict[str, Any]:
    """Return the options that are set, checked."""
    where = f"{place_of(function)}: {name_of(function)} asks for"
    known = _HOOKS[hook].options
    checked = {}
    for option, value in options.items():
        if option not in known:
            hint = _known_options(hook, option)
            raise RegistrationError(f"{where} the unknown option {option!r}. {hint}")
        type_, check = get_args(known[option])
        if value is None and NoneType in get_args(type_):
            continue
        try:
            checked[option] = check(value)
        except ValueError as error:
            raise RegistrationError(f"{where} {option}={value!r}. {error}") from None
    return checked


def _known_options(hook: HandlerHook, unknown: str) -> str:
    decorator, _, known = _HOOKS[hook]
    rest = " Filter by anything else about a call with when=." if "when" in known else ""
    return f"{decorator} takes {', '.join(known)}.{suggest(unknown, known)}{rest}"


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

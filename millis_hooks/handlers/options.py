"""The options of handlers: what decorators take, how it is checked, and the handler they make.

Whatever can be checked is checked at registration, so a handler that could never be called fails at
import; the message names the function and where it stands.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeAlias,
    TypedDict,
    get_args,
    get_type_hints,
)

from ..exceptions import RegistrationError
from ..protocol.call_status import CallStatus, Outcome
from ..protocol.events import EndOfCall
from ..protocol.functions import FunctionRequest, Method, ResponseMode
from ..protocol.phones import Channel, Direction, international
from ..protocol.prefetch import PrefetchRequest
from .handler_call import DEFAULT_FUNCTION_TIMEOUT_S, Handler, HandlerHook
from .retries import Backoff, FailedRun
from .signatures import check_signature, is_async, metadata_model, name_of, place_of, tool_of

MAX_ATTEMPTS = 100


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

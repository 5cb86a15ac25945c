"""Makes a `Handler` of a function and its decorator's options.

Whatever can be checked is checked here: a handler that could never be called fails at import, and
the message names where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .events import EndOfCall, PrefetchRequest
from .exceptions import RegistrationError
from .handlers import Handler, HandlerHook
from .options import FIELDS, OPTIONS, read_option, suggest
from .parked import ParkedRun
from .signatures import check_signature, is_async, metadata_model, name_of, place_of

_TAKES: Mapping[HandlerHook, type] = {
    "prefetch": PrefetchRequest,
    "end_of_call": EndOfCall,
    "parked": ParkedRun,
}


def make_handler(
    hook: HandlerHook, function: Callable[..., Any], options: Mapping[str, object]
) -> Handler:
    """Return the handler that `function` is with these options.

    Raises `RegistrationError` for what cannot work.
    """
    if not callable(function):
        raise RegistrationError(f"on_{hook} takes a function, not {function!r}.")
    check_signature(function, _TAKES[hook], decorator=f"on_{hook}")
    return Handler(
        hook=hook,
        function=function,
        is_async=is_async(function),
        place=place_of(function),
        metadata_model=metadata_model(function) if hook == "prefetch" else None,
        **_fields(hook, function, options),
    )


def _fields(
    hook: HandlerHook, function: Callable[..., Any], options: Mapping[str, object]
) -> dict[str, Any]:
    """Return the fields of `Handler` that the options set."""
    where = f"{place_of(function)}: {name_of(function)} asks for"
    fields = {"name": name_of(function)}
    for option, value in options.items():
        if option not in OPTIONS[hook]:
            raise RegistrationError(
                f"{where} the unknown option {option!r}. {_taken(hook, option)}"
            )
        try:
            read = read_option(option, value)
        except ValueError as error:
            raise RegistrationError(f"{where} {option}={value!r}. {error}") from None
        if read is not None:
            fields[FIELDS.get(option, option)] = read
    return fields


def _taken(hook: HandlerHook, unknown: str) -> str:
    """Return what the decorator takes, to somebody who asked for something else."""
    known = OPTIONS[hook]
    rest = " Anything else about a call can be told by when=." if "when" in known else ""
    return f"on_{hook} takes {', '.join(known)}.{suggest(unknown, known)}{rest}"

"""What the decorators take, and what each option may be.

A reader returns an option's value as `Handler` holds it, or raises `ValueError` with what to do.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias, TypedDict

from .events import CallStatus, Channel, EndOfCall, Outcome, PrefetchRequest
from .handlers import FILTERS, HandlerHook
from .retries import Backoff
from .signatures import is_async

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

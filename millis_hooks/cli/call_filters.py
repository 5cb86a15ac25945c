"""The filters of the Calls page as options of the commands that take calls.

Each field of `CallFilter` is an option, whose kind follows from the type of the field.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from ..call_log.queries.filters import (
    CHANNELS,
    DIRECTIONS,
    HANDLER_STATES,
    OUTCOMES,
    RANGES,
    SOURCES,
    CallFilter,
)
from ..call_log.results import ResultFilter
from ..exceptions import ConfigError
from .options import one_of, read_pair, read_time

#: What `--help` says of each field, in its order.
_HELP = {
    "q": 'Words, "phrases", parts of numbers; all have to be there.',
    "source": "real, sandbox (simulated calls), test, or all.",
    "outcome": (
        "completed, chat, voicemail, timeout, unreached, failed, or lost (no end-of-call received)."
    ),
    "status": "Call status, such as user-ended. Repeat it for several.",
    "agent": "Agent ID. Repeat it for several.",
    "channel": "phone, web or chat.",
    "direction": "inbound or outbound.",
    "number": "Phone number of either side, or a part of it, in any format.",
    "range": "today (in UTC), 24h, 7d, 30d, 90d or all.",
    "since": "Received since, e.g. 2026-11-01 or 2026-11-01T14:00.",
    "until": "Received before.",
    "min_s": "Minimum duration in seconds.",
    "max_s": "Maximum duration in seconds.",
    "cost_min": "Minimum cost in credits.",
    "cost_max": "Maximum cost in credits.",
    "metadata": "Only calls with this metadata. If repeated, all must match.",
    "results": (
        "Only calls with this result, e.g. booked=true or 'score>=4'. If repeated, all must match."
    ),
    "function": "Only calls in which the agent called this function.",
    "provider": "Provider in the costs, such as elevenlabs, or of the number.",
    "handler": "retrying or failed: only calls with such a run. none: calls without runs.",
    "unparsed": "Only calls with an unparsed delivery.",
    "duplicate": "Only calls with more than one end-of-call.",
}
#: Options with other names than their fields. The last name is free in commands of runs.
_NAMES = {
    "status": ("--status", "--call-status"),
    "min_s": ("--min",),
    "max_s": ("--max",),
    "metadata": ("--meta",),
    "results": ("--result",),
    "handler": ("--handler", "--handler-state"),
}
_METAVARS = {"metadata": "KEY=VALUE", "results": "CONDITION"}
_CHOICES: Mapping[str, Collection[str]] = {
    "source": SOURCES,
    "outcome": OUTCOMES,
    "channel": CHANNELS,
    "direction": DIRECTIONS,
    "range": RANGES,
    "handler": HANDLER_STATES,
}


def takes_call_filters(
    *, source: str = "real", of_runs: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the filters of the Calls page; it is called with them as `filters`.

    `source` is the default of that option. A command `of_runs` has a --status and a --handler of
    its own: those of calls have their long names only.
    """
    defaults = {each.name: each.default for each in fields(CallFilter)}
    defaults |= {"source": source, "range": "all"}
    options = [_option(name, defaults[name], of_runs=of_runs) for name in _HELP]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        @wraps(command)
        def run(**values: Any) -> None:
            chosen = {name: values.pop(f"call_{name}") for name in _HELP}
            command(filters=_filter_of(chosen), **values)

        parameters = [*(each for name, each in own.items() if name != "filters"), *options]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _option(name: str, default: object, *, of_runs: bool) -> Parameter:
    """Return the option of a field, named apart from the command's own parameters."""
    type_ = get_type_hints(CallFilter)[name]
    names = _NAMES.get(name, (f"--{name.replace('_', '-')}",))
    parser = one_of(_CHOICES[name]) if name in _CHOICES else _PARSERS.get(type_)
    option = typer.Option(
        *(names[-1:] if of_runs else names),
        parser=parser,
        help=_HELP[name],
        metavar=_METAVARS.get(name),
    )
    kind: Any = list[str] if get_origin(type_) is tuple else _KINDS.get(type_, str)
    return Parameter(
        f"call_{name}", Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _filter_of(chosen: Mapping[str, Any]) -> CallFilter:
    """Return the filter of these values, by field; lists are of options that may repeat."""
    if chosen["range"] != "all" and (chosen["since"] or chosen["until"]):
        raise ConfigError("Choose one: --range, or --since and --until.")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()
    }
    filters = CallFilter(**values)
    # The moment is fixed here, so that every step of a long command takes the same calls.
    return replace(filters, range="all", since=filters.period(datetime.now(UTC))[0])


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise typer.BadParameter(f"{text!r} is not a finite number.")
    return number


def _result(text: str) -> ResultFilter:
    condition = ResultFilter.read(text)
    if condition is None:
        raise typer.BadParameter(f"{text!r} is not a condition, such as booked=true.")
    return condition


_KINDS: Mapping[Any, type] = {bool: bool, float | None: float}
#: How the text of an option is read, by the type of its field.
_PARSERS: Mapping[Any, Callable[[str], object]] = {
    float | None: _finite,
    datetime | None: read_time,
    tuple[tuple[str, str], ...]: read_pair,
    tuple[ResultFilter, ...]: _result,
}

"""Options that several commands share, and how their values are read.

Those that choose calls are the filters of the Calls page, for every command that takes calls.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias

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
from ..environment.sources import cleaned
from ..exceptions import ConfigError

_MAX_CHARS = 10_000
#: How an option takes a secret without it being visible in `ps` and in the shell's history.
SECRET_SOURCES = "- asks or reads a line, env:NAME a variable, file:PATH a file"

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Only print what would be done.")
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Since: TypeAlias = Annotated[
    str | None, typer.Option(help="Received since, e.g. 2026-11-01 or 2026-11-01T14:00.")
]
Secret: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"The service's secret; {SECRET_SOURCES}. By default from the settings.",
        metavar="-|env:|file:",
    ),
]
Target: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="Your application: app.py, app.py:name, package.module or package.module:name. By "
        "default app.py, if it is in this folder.",
    ),
]


def read_time(option: str, text: str | None) -> datetime | None:
    """Return the date or time of an option as aware UTC; without a zone it is taken as UTC.

    Raises `ConfigError` if it is neither.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{option}: {text!r} is not a date. Write it as 2026-11-01 or 2026-11-01T14:00."
        ) from None


def read_pair(option: str, text: str) -> tuple[str, str]:
    """Return key and value of KEY=VALUE. Raises `ConfigError`."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ConfigError(f"{option} takes KEY=VALUE, not {text!r}.")
    return key, value


def require_known(option: str, value: str | None, known: Collection[str]) -> None:
    """Raise `ConfigError` if a value is given that is not among the known ones."""
    if value is not None and value not in known:
        raise ConfigError(f"{option}: {value!r} is unknown. Known: {', '.join(known)}.")


def read_secret(option: str, text: str | None) -> str | None:
    """Return the secret that an option names (see `SECRET_SOURCES`), or the text itself.

    Raises `ConfigError` if there is nothing to read.
    """
    if text is None:
        return None
    kind, colon, name = text.partition(":")
    if text == "-":
        secret = cleaned(_ask(option))
    elif colon and kind == "env":
        secret = cleaned(os.environ.get(name, ""))
    elif colon and kind == "file":
        secret = cleaned(_read_file(option, Path(name)))
    else:
        return text
    if not isinstance(secret, str):
        raise ConfigError(f"{option} {text}: nothing is there.")
    return secret


def _ask(option: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(option.lstrip("-").capitalize(), hide_input=True, err=True))
    return sys.stdin.readline(_MAX_CHARS)


def _read_file(option: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{option} {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {file}: it is not text in UTF-8.") from None


def takes_call_filters(
    *, source: str = "real", of_runs: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the filters of the Calls page; it is called with them as `filters`.

    `source` is the default of that option. A command `of_runs` has a --status and a --handler of
    its own: those of calls have their long names only.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [
            each.replace(
                default=source if each.name == "source" else each.default,
                annotation=(of_runs and _LONG_NAMES.get(each.name)) or each.annotation,
            )
            for each in inspect.signature(call_filter, eval_str=True).parameters.values()
        ]
        own = inspect.signature(command, eval_str=True).parameters

        @wraps(command)
        def run(**values: Any) -> None:
            filters = call_filter(**{each.name: values.pop(each.name) for each in options})
            command(filters=filters, **values)

        parameters = [*(each for name, each in own.items() if name != "filters"), *options]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


_CALL_STATUS = "Call status, such as user-ended. Repeat it for several."
_HANDLER_STATE = "retrying or failed: only calls with such a run. none: calls without runs."
#: Options that have only their long name beside the --status and --handler of runs.
_LONG_NAMES = {
    "call_status": Annotated[list[str] | None, typer.Option("--call-status", help=_CALL_STATUS)],
    "handler_state": Annotated[str | None, typer.Option("--handler-state", help=_HANDLER_STATE)],
}


def call_filter(
    q: Annotated[
        str, typer.Option("--q", help='Words, "phrases", parts of numbers; all have to be there.')
    ] = "",
    source: Annotated[
        str, typer.Option(help="real, sandbox (simulated calls), test, or all.")
    ] = "real",
    outcome: Annotated[
        str | None,
        typer.Option(
            help="completed, chat, voicemail, timeout, unreached, failed, or lost (no "
            "end-of-call received)."
        ),
    ] = None,
    call_status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            "--call-status",
            help=_CALL_STATUS,
        ),
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="Agent ID. Repeat it for several.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="phone, web or chat.")] = None,
    direction: Annotated[str | None, typer.Option(help="inbound or outbound.")] = None,
    number: Annotated[
        str | None,
        typer.Option(help="Phone number of either side, or a part of it, in any format."),
    ] = None,
    range_: Annotated[
        str | None,
        typer.Option("--range", help="today (in UTC), 24h, 7d, 30d or 90d; all by default."),
    ] = None,
    since: Since = None,
    until: Annotated[str | None, typer.Option(help="Received before.")] = None,
    min_s: Annotated[
        float | None, typer.Option("--min", help="Minimum duration in seconds.")
    ] = None,
    max_s: Annotated[
        float | None, typer.Option("--max", help="Maximum duration in seconds.")
    ] = None,
    cost_min: Annotated[float | None, typer.Option(help="Minimum cost in credits.")] = None,
    cost_max: Annotated[float | None, typer.Option(help="Maximum cost in credits.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--meta",
            help="Only calls with this metadata. If repeated, all must match.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    result: Annotated[
        list[str] | None,
        typer.Option(
            help="Only calls with this result, e.g. booked=true or 'score>=4'. "
            "If repeated, all must match.",
            metavar="CONDITION",
        ),
    ] = None,
    function: Annotated[
        str | None, typer.Option(help="Only calls in which the agent called this function.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="Provider in the costs, such as elevenlabs, or of the number."),
    ] = None,
    handler_state: Annotated[
        str | None,
        typer.Option(
            "--handler",
            "--handler-state",
            help=_HANDLER_STATE,
        ),
    ] = None,
    unparsed: Annotated[
        bool, typer.Option("--unparsed", help="Only calls with an unparsed delivery.")
    ] = False,
    duplicate: Annotated[
        bool, typer.Option("--duplicate", help="Only calls with more than one end-of-call.")
    ] = False,
) -> CallFilter:
    """Return the filter that the options name; raises `ConfigError` for an unknown value."""
    require_known("--source", source, SOURCES)
    require_known("--outcome", outcome, OUTCOMES)
    require_known("--channel", channel, CHANNELS)
    require_known("--direction", direction, DIRECTIONS)
    require_known("--handler-state", handler_state, HANDLER_STATES)
    require_known("--range", range_, RANGES)
    if range_ and (since or until):
        raise ConfigError("Choose one: --range, or --since and --until.")
    chosen = CallFilter(
        range=range_ or "all",
        q=q,
        source=source,
        outcome=outcome,
        status=tuple(call_status or ()),
        agent=tuple(agent or ()),
        channel=channel,
        direction=direction,
        number=number,
        since=read_time("--since", since),
        until=read_time("--until", until),
        min_s=_finite("--min", min_s),
        max_s=_finite("--max", max_s),
        cost_min=_finite("--cost-min", cost_min),
        cost_max=_finite("--cost-max", cost_max),
        metadata=tuple(read_pair("--meta", pair) for pair in metadata or ()),
        results=tuple(map(_read_result, result or ())),
        function=function,
        provider=provider,
        handler=handler_state,
        unparsed=unparsed,
        duplicate=duplicate,
    )
    # The moment is fixed here, so that every step of a long command takes the same calls.
    return replace(chosen, range="all", since=chosen.period(datetime.now(UTC))[0])


def _finite(option: str, number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise ConfigError(f"{option} takes a finite number, not {number}.")
    return number


def _read_result(text: str) -> ResultFilter:
    condition = ResultFilter.read(text)
    if condition is None:
        raise ConfigError(f"--result takes a condition, as booked=true, not {text!r}.")
    return condition

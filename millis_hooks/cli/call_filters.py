"""The filters of the Calls page as options of the commands that take calls."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any

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
from .options import Since, read_pair, read_time, require_known


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
            for each in inspect.signature(CallOptions, eval_str=True).parameters.values()
        ]
        own = inspect.signature(command, eval_str=True).parameters

        @wraps(command)
        def run(**values: Any) -> None:
            chosen = CallOptions(**{each.name: values.pop(each.name) for each in options})
            command(filters=chosen.as_filter(), **values)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The options that choose calls; each field is one, as typer reads it."""

    q: Annotated[
        str, typer.Option("--q", help='Words, "phrases", parts of numbers; all have to be there.')
    ] = ""
    source: Annotated[str, typer.Option(help="real, sandbox (simulated calls), test, or all.")] = (
        "real"
    )
    outcome: Annotated[
        str | None,
        typer.Option(
            help="completed, chat, voicemail, timeout, unreached, failed, or lost (no "
            "end-of-call received)."
        ),
    ] = None
    call_status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            "--call-status",
            help=_CALL_STATUS,
        ),
    ] = None
    agent: Annotated[list[str] | None, typer.Option(help="Agent ID. Repeat it for several.")] = None
    channel: Annotated[str | None, typer.Option(help="phone, web or chat.")] = None
    direction: Annotated[str | None, typer.Option(help="inbound or outbound.")] = None
    number: Annotated[
        str | None,
        typer.Option(help="Phone number of either side, or a part of it, in any format."),
    ] = None
    range_: Annotated[
        str | None,
        typer.Option("--range", help="today (in UTC), 24h, 7d, 30d or 90d; all by default."),
    ] = None
    since: Since = None
    until: Annotated[str | None, typer.Option(help="Received before.")] = None
    min_s: Annotated[float | None, typer.Option("--min", help="Minimum duration in seconds.")] = (
        None
    )
    max_s: Annotated[float | None, typer.Option("--max", help="Maximum duration in seconds.")] = (
        None
    )
    cost_min: Annotated[float | None, typer.Option(help="Minimum cost in credits.")] = None
    cost_max: Annotated[float | None, typer.Option(help="Maximum cost in credits.")] = None
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--meta",
            help="Only calls with this metadata. If repeated, all must match.",
            metavar="KEY=VALUE",
        ),
    ] = None
    result: Annotated[
        list[str] | None,
        typer.Option(
            help="Only calls with this result, e.g. booked=true or 'score>=4'. "
            "If repeated, all must match.",
            metavar="CONDITION",
        ),
    ] = None
    function: Annotated[
        str | None, typer.Option(help="Only calls in which the agent called this function.")
    ] = None
    provider: Annotated[
        str | None,
        typer.Option(help="Provider in the costs, such as elevenlabs, or of the number."),
    ] = None
    handler_state: Annotated[
        str | None,
        typer.Option(
            "--handler",
            "--handler-state",
            help=_HANDLER_STATE,
        ),
    ] = None
    unparsed: Annotated[
        bool, typer.Option("--unparsed", help="Only calls with an unparsed delivery.")
    ] = False
    duplicate: Annotated[
        bool, typer.Option("--duplicate", help="Only calls with more than one end-of-call.")
    ] = False

    def as_filter(self) -> CallFilter:
        """Return the filter that the options name; raises `ConfigError` for an unknown value."""
        self._check()
        chosen = CallFilter(
            range=self.range_ or "all",
            q=self.q,
            source=self.source,
            outcome=self.outcome,
            status=tuple(self.call_status or ()),
            agent=tuple(self.agent or ()),
            channel=self.channel,
            direction=self.direction,
            number=self.number,
            since=read_time("--since", self.since),
            until=read_time("--until", self.until),
            min_s=_finite("--min", self.min_s),
            max_s=_finite("--max", self.max_s),
            cost_min=_finite("--cost-min", self.cost_min),
            cost_max=_finite("--cost-max", self.cost_max),
            metadata=tuple(read_pair("--meta", pair) for pair in self.metadata or ()),
            results=tuple(map(_read_result, self.result or ())),
            function=self.function,
            provider=self.provider,
            handler=self.handler_state,
            unparsed=self.unparsed,
            duplicate=self.duplicate,
        )
        # The moment is fixed here, so that every step of a long command takes the same calls.
        return replace(chosen, range="all", since=chosen.period(datetime.now(UTC))[0])

    def _check(self) -> None:
        require_known("--source", self.source, SOURCES)
        require_known("--outcome", self.outcome, OUTCOMES)
        require_known("--channel", self.channel, CHANNELS)
        require_known("--direction", self.direction, DIRECTIONS)
        require_known("--handler-state", self.handler_state, HANDLER_STATES)
        require_known("--range", self.range_, RANGES)
        if self.range_ and (self.since or self.until):
            raise ConfigError("Choose one: --range, or --since and --until.")


def _finite(option: str, number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise ConfigError(f"{option} takes a finite number, not {number}.")
    return number


def _read_result(text: str) -> ResultFilter:
    condition = ResultFilter.read(text)
    if condition is None:
        raise ConfigError(f"--result takes a condition, as booked=true, not {text!r}.")
    return condition

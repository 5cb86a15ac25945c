"""The filters of the Calls page as options, the same for every command that chooses calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from ..call_log.queries.filters import (
    CHANNELS,
    DIRECTIONS,
    HANDLER_STATES,
    OUTCOMES,
    SOURCES,
    CallFilter,
)
from .options import (
    ResultsOfCall,
    Since,
    SourceOfCalls,
    Until,
    read_pair,
    read_results,
    read_time,
    require_known,
)


def takes_call_filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `call_filter`; it is called with their `CallFilter`."""
    options = inspect.signature(call_filter, eval_str=True).parameters
    own = [
        parameter
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
        if name != "filters"
    ]

    @wraps(command)
    def run(**values: Any) -> None:
        filters = call_filter(**{name: values.pop(name) for name in options})
        command(filters=filters, **values)

    parameters = [*own, *options.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def call_filter(
    q: Annotated[
        str, typer.Option("--q", help='Words, "phrases", parts of numbers; all have to be there.')
    ] = "",
    source: SourceOfCalls = "real",
    outcome: Annotated[
        str | None,
        typer.Option(
            help="completed, chat, voicemail, timeout, unreached, failed, or lost (no "
            "end-of-call received)."
        ),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Call status, such as user-ended. Repeat it for several."),
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
    since: Since = None,
    until: Until = None,
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
    result: ResultsOfCall = None,
    function: Annotated[
        str | None, typer.Option(help="Only calls in which the agent called this function.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="Provider in the costs, such as elevenlabs, or of the number."),
    ] = None,
    handler: Annotated[
        str | None,
        typer.Option(
            help="retrying or failed: only calls with such a run. none: calls without runs."
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
    require_known("source", source, SOURCES)
    require_known("outcome", outcome, OUTCOMES)
    require_known("channel", channel, CHANNELS)
    require_known("direction", direction, DIRECTIONS)
    require_known("handler state", handler, HANDLER_STATES)
    return CallFilter(
        range="all",
        q=q,
        source=source,
        outcome=outcome,
        status=tuple(status or ()),
        agent=tuple(agent or ()),
        channel=channel,
        direction=direction,
        number=number,
        since=read_time(since),
        until=read_time(until),
        min_s=min_s,
        max_s=max_s,
        cost_min=cost_min,
        cost_max=cost_max,
        metadata=tuple(read_pair("--meta", pair) for pair in metadata or ()),
        results=read_results(result),
        function=function,
        provider=provider,
        handler=handler,
        unparsed=unparsed,
        duplicate=duplicate,
    )

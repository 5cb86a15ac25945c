"""The options that choose calls: the list's filters, by the names they have in its address."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, TypeAlias

import typer

from ..call_log.queries.filters import CHANNELS, DIRECTIONS, HANDLER_STATES, OUTCOMES, CallFilter
from ..exceptions import ConfigError
from .options import read_time

Query: TypeAlias = Annotated[
    str, typer.Option("--q", help="What was said, or a part of a number or an id.")
]
Outcome: TypeAlias = Annotated[
    str | None,
    typer.Option(help="completed, chat, voicemail, timeout, unreached, error, or lost: no end."),
]
Status: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Millis' status, as user-ended; several are alternatives.")
]
Agent: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="An agent's id; several are alternatives.")
]
Channel: TypeAlias = Annotated[str | None, typer.Option(help="phone, web or chat.")]
Direction: TypeAlias = Annotated[str | None, typer.Option(help="inbound or outbound.")]
Number: TypeAlias = Annotated[
    str | None, typer.Option(help="A phone number of either side, however it is written.")
]
Since: TypeAlias = Annotated[
    str | None, typer.Option(help="Received since, as 2026-11-01 or 2026-11-01T14:00.")
]
Until: TypeAlias = Annotated[str | None, typer.Option(help="Received before.")]
Least: TypeAlias = Annotated[float | None, typer.Option("--min", help="At least so many seconds.")]
Most: TypeAlias = Annotated[float | None, typer.Option("--max", help="At most so many seconds.")]
CostLeast: TypeAlias = Annotated[
    float | None, typer.Option("--cost-min", help="At least so many credits.")
]
CostMost: TypeAlias = Annotated[
    float | None, typer.Option("--cost-max", help="At most so many credits.")
]
Metadata: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--meta", help="Has this metadata; several all have to be.", metavar="KEY=VALUE"),
]
HandlerState: TypeAlias = Annotated[
    str | None,
    typer.Option("--handler", help="failed or parked: has such a run; none: no handler ran."),
]
Unparsed: TypeAlias = Annotated[
    bool, typer.Option("--unparsed", help="Something received for it could not be read.")
]
Duplicate: TypeAlias = Annotated[
    bool, typer.Option("--duplicate", help="Its end was received more than once.")
]


def read_filter(
    *,
    since: str | None,
    until: str | None,
    status: list[str] | None,
    agent: list[str] | None,
    metadata: list[str] | None,
    **others: Any,
) -> CallFilter:
    """Return the filter of these options, which take each its field of `CallFilter`.

    Without times it is for calls of any time. Raises `ConfigError` for a value that means nothing.
    """
    _require_known("outcome", others["outcome"], OUTCOMES)
    _require_known("channel", others["channel"], CHANNELS)
    _require_known("direction", others["direction"], DIRECTIONS)
    _require_known("handler state", others["handler"], HANDLER_STATES)
    return CallFilter(
        range="all",
        since=read_time(since),
        until=read_time(until),
        status=tuple(status or ()),
        agent=tuple(agent or ()),
        metadata=tuple(map(_pair, metadata or ())),
        **others,
    )


def _require_known(what: str, value: str | None, known: Collection[str]) -> None:
    if value is not None and value not in known:
        raise ConfigError(f"There is no {what} {value!r}. Known: {', '.join(known)}.")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--meta is KEY=VALUE, not {text!r}.")
    return key, value

"""`runs`: how the handlers did, across calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..exceptions import ConfigError
from .opened_log import opened
from .terminal import add_row, console, print_json, table

if TYPE_CHECKING:
    from ..call_log.records import Attempt, Run
    from ..call_log.run_queries import ListedRun

#: The states of a run, in the order of its life.
STATES = ("pending", "running", "failed", "parked", "succeeded")

_HEADS = ("Run", "Handler", "Session", "State", "Attempts", "When (UTC)", "Error")
#: Columns that make room on a narrow terminal, down to so many characters; numbers, times and ids
#: that are cut are of no use.
_SHORTENED = {"Handler": 12, "Error": 5}


def list_runs(
    status: Annotated[
        str | None, typer.Option(help=f"Only runs that are {', '.join(STATES)}.")
    ] = None,
    handler: Annotated[str | None, typer.Option(help="Only runs of this handler.")] = None,
    session: Annotated[str | None, typer.Option(help="Only runs for this session.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many runs at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List handler runs, newest first; of a run and its replays, the latest."""
    from ..call_log import run_queries
    from ..call_log.masked_records import masked_listed_run
    from ..masking import MaskPolicy
    from ..settings import Settings

    require_known(status, STATES)
    of_any_state = run_queries.RunFilter(handler, session)
    wanted = run_queries.RunFilter(handler, session, status)
    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    with opened(settings) as database, database.reader.connect() as connection:
        found = run_queries.list_runs(connection, wanted, limit=limit)
        listed = [masked_listed_run(run, mask) for run in found]
        counts = run_queries.count_runs(connection, of_any_state)
    if as_json:
        print_json(listed)
        return
    typer.echo(_counted(counts))
    if listed:
        _print_table(listed, datetime.now(UTC))


def require_known(status: str | None, known: Collection[str]) -> None:
    """Raise ConfigError if `status` is none of those there are."""
    if status is not None and status not in known:
        raise ConfigError(f"There is no status {status!r}. Known: {', '.join(known)}.")


def marked(run: ListedRun | Run) -> str:
    """Return the handler's name, and what its run is besides an ordinary one."""
    marks = [f"alert of run {run.parked_run_id}"] if run.parked_run_id is not None else []
    if run.is_replay:
        marks.append("replay")
    return f"{run.handler} ({', '.join(marks)})" if marks else run.handler


def tried(run: ListedRun | Run) -> str:
    """Return how many of its attempts the run has spent."""
    if run.max_attempts is None or run.spent > run.max_attempts:  # registered anew, with fewer
        return str(run.spent)
    return f"{run.spent} of {run.max_attempts}"


def when(run: ListedRun | Run, now: datetime) -> str:
    """Return when the run is tried again, or since when it is as it is; the date if not today."""
    at = run.due_at or run.state_since
    shown = f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}"
    return f"next {shown}" if run.due_at else shown


def trouble(reason: str | None, tried_last: ListedRun | Attempt | None) -> str:
    """Return why a run is parked and what its last attempt failed with."""
    if tried_last is None or tried_last.error_message == reason:
        return reason or ""
    error = ": ".join(filter(None, (tried_last.error_type, tried_last.error_message)))
    return "; ".join(filter(None, (reason, error)))


def _counted(counts: Mapping[str, int]) -> str:
    told = [f"{counts[state]:,} {state}" for state in STATES if state in counts]
    return ", ".join(told) or "No runs."


def _print_table(listed: Sequence[ListedRun], now: datetime) -> None:
    shown = table(*_HEADS)
    for column in shown.columns:
        column.min_width = _SHORTENED.get(str(column.header))
        column.no_wrap = column.min_width is None
    for run in listed:
        cells = (
            str(run.id),
            marked(run),
            run.session_id,
            run.state,
            tried(run),
            when(run, now),
            trouble(run.reason, run),
        )
        add_row(shown, *cells, one_line=True)
    console().print(shown)

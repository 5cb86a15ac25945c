"""`runs` lists handler runs; `replay` runs handlers again, for a call, a run or many runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated

import typer

from ..call_log.database import Database
from ..call_log.queries.filters import ALL_CALLS, CallFilter
from ..call_log.queries.records import Attempt, Run
from ..call_log.queries.runs import ListedRun, RunFilter, count_runs, handler_names
from ..call_log.queries.runs import list_runs as query_runs
from ..call_log.redaction import masked_listed_run
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..runs.replay import (
    NEVER,
    Preview,
    Replayed,
    Selection,
    preview,
    replay_batch,
    replay_call,
    replay_run,
)
from ..settings import Settings
from .call_filters import takes_call_filters
from .common import open_log, paced, print_json, record
from .options import AsJson, DryRun, Yes, one_of
from .terminal import add_row, confirm, console, fail, note, progress, table

#: The states of a run in the order of its life.
STATES = ("pending", "running", "retrying", "failed", "succeeded")

_HEADS = ("Run", "Handler", "Session", "State", "Attempts", "When (UTC)", "Error")
#: The columns that a narrow terminal shortens, and their least width in characters. Numbers, times
#: and ids are of no use if they are cut.
_SHORTENED = {"Handler": 12, "Error": 5}


@takes_call_filters(source="all", of_runs=True)
def list_runs(
    filters: CallFilter,
    status: Annotated[
        str | None,
        typer.Option(parser=one_of(STATES), help=f"Only runs that are {', '.join(STATES)}."),
    ] = None,
    handler: Annotated[str | None, typer.Option(help="Only runs of this handler.")] = None,
    session: Annotated[str | None, typer.Option(help="Only runs for this session.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of runs.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List handler runs, newest first. Replays replace the run they repeat.

    The other options choose the calls that the runs are of, as on the Calls page.
    """
    chosen = RunFilter(handler, session, status, filters)
    settings, now = Settings.load(), datetime.now(UTC)
    mask = MaskPolicy.of(settings)
    with open_log(settings) as database, database.reader.connect() as connection:
        listed = query_runs(connection, chosen, now, limit=limit)
        runs = [masked_listed_run(run, mask) for run in listed]
        counts = count_runs(connection, replace(chosen, state=None), now)
    if as_json:
        print_json(runs)
        return
    typer.echo(_summary(counts))
    if runs:
        _print_table(runs, now)


def handler_label(run: ListedRun | Run) -> str:
    """Return the handler's name, and whether the run is a replay or reports a failed run."""
    marks = [f"alert of run {run.failed_run_id}"] if run.failed_run_id is not None else []
    if run.is_replay:
        marks.append("replay")
    return f"{run.handler} ({', '.join(marks)})" if marks else run.handler


def attempts_label(run: ListedRun | Run) -> str:
    """Return how many of its attempts the run has spent."""
    if run.max_attempts is None or run.spent > run.max_attempts:  # registered again, with fewer
        return str(run.spent)
    return f"{run.spent} of {run.max_attempts}"


def time_label(run: ListedRun | Run, now: datetime) -> str:
    """Return the time of the next attempt, or of the last change; the date if it is not today."""
    at = run.due_at or run.state_since
    text = f"{at:%H:%M:%S}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}"
    return f"next {text}" if run.due_at else text


def error_label(reason: str | None, last: ListedRun | Attempt | None) -> str:
    """Return why a run failed, and the error of its last attempt."""
    if last is None or last.error_message == reason:
        return reason or ""
    error = ": ".join(filter(None, (last.error_type, last.error_message)))
    return "; ".join(filter(None, (reason, error)))


def _summary(counts: Mapping[str, int]) -> str:
    parts = [f"{counts[state]:,} {state}" for state in STATES if state in counts]
    return ", ".join(parts) or "No runs."


def _print_table(runs: Sequence[ListedRun], now: datetime) -> None:
    rows = table(*_HEADS)
    for column in rows.columns:
        column.min_width = _SHORTENED.get(str(column.header))
        column.no_wrap = column.min_width is None
    for run in runs:
        cells = (
            str(run.id),
            handler_label(run),
            run.session_id,
            run.state,
            attempts_label(run),
            time_label(run, now),
            error_label(run.reason, run),
        )
        add_row(rows, *cells, one_line=True)
    console().print(rows)


@takes_call_filters(source="all", of_runs=True)
def replay(
    filters: CallFilter,
    session_id: Annotated[
        str | None, typer.Argument(help="Session ID of the call whose handlers run again.")
    ] = None,
    run: Annotated[int | None, typer.Option(help="Number of a run.", min=1)] = None,
    handler: Annotated[
        str | None,
        typer.Option(
            help="Only runs of this handler; with --status never, calls that it has not run for."
        ),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            parser=one_of((*STATES, NEVER)),
            help=f"Runs that are {', '.join(STATES)}; {NEVER}: calls without a run of --handler.",
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Run handlers again with the stored payload: for a call, or for runs.

    The other options choose the calls that the runs are of, as on the Calls page. Prints the number
    of runs and asks, unless you name one call or one run.
    """
    are_many = bool(handler or status or filters != ALL_CALLS)
    if sum((session_id is not None, run is not None, are_many)) != 1:
        raise ConfigError(
            "Choose what to replay: either a session id, or --run, or some of --handler, "
            "--status, --since and the other filters."
        )
    with open_log(Settings.load()) as database:
        if are_many:
            selection = Selection(handler, status, filters)
            replayed = _replay_many(database, selection, asks=not yes, is_trial=dry_run)
        else:
            replayed = _replay_one(database, session_id, run, is_trial=dry_run)
            if not dry_run:
                _record(database, replayed, session_id)
    typer.echo(
        ("Nothing was replayed. It would be: " if dry_run else "") + printable(f"{replayed}.")
    )
    if replayed.changed and not dry_run:
        note("The running service calls the handlers. See the result: millis-hooks runs")


def _record(database: Database, replayed: Replayed, session_id: str | None = None) -> None:
    if replayed.changed:
        record(database, "replay", session_id or f"{replayed}")


def _replay_one(
    database: Database, session_id: str | None, run_id: int | None, *, is_trial: bool
) -> Replayed:
    with database.writer.connect() as connection, connection.begin() as transaction:
        if session_id is not None:
            replayed = replay_call(connection, session_id, datetime.now(UTC))
        else:
            replayed = replay_run(connection, run_id or 0, datetime.now(UTC))
        if is_trial:
            transaction.rollback()
    if replayed is None:
        what = f"call {session_id}" if session_id is not None else f"run {run_id}"
        fail(f"There is no {what} in the call log.")
    return replayed


def _replay_many(
    database: Database, selection: Selection, *, asks: bool, is_trial: bool
) -> Replayed:
    with database.reader.connect() as connection:
        _require_handler(selection.handler, handler_names(connection))
        planned = preview(connection, selection, datetime.now(UTC))
    if planned.changed:
        typer.echo(printable(_plan(planned, selection.handler)))
    if is_trial or not planned.changed:
        return replace(planned.runs, queued=planned.runs.queued + planned.first_runs)
    if asks:
        confirm("Replay them?", refusal="Nothing was replayed.")
    return _carry_out(database, selection, planned.total)


def _require_handler(handler: str | None, names: Sequence[str]) -> None:
    if handler is None or handler in names:
        return
    near = get_close_matches(handler, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = f"Known: {', '.join(names)}." if names else "The service registers them when it starts."
    raise ConfigError(f"There is no end-of-call handler {handler!r}.{hint} {known}")


def _plan(planned: Preview, handler: str | None) -> str:
    runs = planned.runs
    numbers = {
        f"first runs of {handler}": planned.first_runs,
        "replays": runs.queued,
        "next attempts brought forward": runs.brought_forward,
    }
    parts = ", ".join(f"{number:,} {kind}" for kind, number in numbers.items() if number)
    warning = " Handlers may have effects again." if runs.queued else ""
    return f"Runs: {planned.changed:,} ({parts}).{warning}"


def _carry_out(database: Database, selection: Selection, total: int) -> Replayed:
    done = Replayed()

    def stopped() -> str:
        return f"Stopped after {done.total:,} of {total:,}{f': {done}' if done.total else ''}."

    try:
        with progress(total, stopped=stopped) as show_done:
            for batch in paced(_batches(database, selection), rests=True):
                done += batch
                show_done(done.total)
    finally:
        _record(database, done)
    return done


def _batches(database: Database, selection: Selection) -> Iterator[Replayed]:
    cursor, is_over = None, False
    while not is_over:
        with database.writer.begin() as connection:
            batch, cursor = replay_batch(connection, selection, datetime.now(UTC), cursor)
        yield batch
        is_over = cursor is None

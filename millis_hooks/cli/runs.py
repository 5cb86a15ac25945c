"""`runs`: how the handlers did, across calls.

`replay`: has handlers called again with what is stored, for a call, a run or many.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated

import typer

from ..call_log.database import Database
from ..call_log.queries import runs
from ..call_log.queries.records import Attempt, Run
from ..call_log.queries.runs import ListedRun, handler_names
from ..call_log.redaction import masked_listed_run
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..runs.replay import (
    Preview,
    Replayed,
    Selection,
    preview,
    replay_batch,
    replay_call,
    replay_run,
)
from ..settings import Settings
from .common import open_log, print_json, record
from .options import read_time
from .terminal import INTERRUPTED, add_row, console, fail, note, progress, table

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
    require_known(status, STATES)
    of_any_state = runs.RunFilter(handler, session)
    wanted = runs.RunFilter(handler, session, status)
    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    with open_log(settings) as database, database.reader.connect() as connection:
        found = runs.list_runs(connection, wanted, limit=limit)
        listed = [masked_listed_run(run, mask) for run in found]
        counts = runs.count_runs(connection, of_any_state)
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


_STATUSES = (*STATES, "never")
_ONE_WAY = (
    "Choose what to replay in one way: a session id, --run, or any of --handler, --status, --since "
    "and --until."
)


def replay(
    session_id: Annotated[
        str | None, typer.Argument(help="The session whose handlers run again, dash and all.")
    ] = None,
    run: Annotated[int | None, typer.Option(help="One run, by its number.", min=1)] = None,
    handler: Annotated[
        str | None,
        typer.Option(help="Runs of this handler, and first runs for calls it never had."),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            help=f"Runs that are {', '.join(STATES)}; never: calls that --handler has not had."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Calls received since, as 2026-11-01 or 2026-11-01T14:00.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Calls received before.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Run handlers again with the stored payload: for one call, one run, or many runs."""
    require_known(status, _STATUSES)
    filters = (handler, status, read_time(since), read_time(until))
    wanted = Selection(*filters) if any(filters) else None
    if sum(way is not None for way in (session_id, run, wanted)) != 1:
        raise ConfigError(_ONE_WAY)
    with open_log(Settings.load()) as database:
        if wanted is not None:
            replayed = _replay_many(database, wanted, asks=not yes)
        elif run is not None:
            replayed = _replay_run(database, run)
        else:
            replayed = _replay_call(database, session_id or "")
        _record(database, replayed, session_id)
    typer.echo(printable(f"{replayed}."))
    if replayed.changed:
        note("The service does them while it runs. See how they go: millis-hooks runs")


def _record(database: Database, replayed: Replayed, session_id: str | None = None) -> None:
    if replayed.changed:
        record(database, "replay", session_id or f"{replayed}")


def _replay_call(database: Database, session_id: str) -> Replayed:
    with database.writer.begin() as connection:
        replayed = replay_call(connection, session_id, datetime.now(UTC))
    if replayed is None:
        fail(f"There is no call {session_id} in the call log.")
    return replayed


def _replay_run(database: Database, run_id: int) -> Replayed:
    with database.writer.begin() as connection:
        replayed = replay_run(connection, run_id, datetime.now(UTC))
    if replayed is None:
        fail(f"There is no run {run_id} in the call log.")
    return replayed


def _replay_many(database: Database, wanted: Selection, *, asks: bool) -> Replayed:
    with database.reader.connect() as connection:
        _require_handler(wanted.handler, handler_names(connection))
        planned = preview(connection, wanted)
    if not planned.changed:
        return planned.runs
    typer.echo(printable(_plan(planned, wanted.handler)))
    if asks:
        _ask()
    return _carry_out(database, wanted, planned.total)


def _require_handler(handler: str | None, known: Sequence[str]) -> None:
    if handler is None or handler in known:
        return
    near = get_close_matches(handler, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = f" Known: {', '.join(known)}." if known else " The service tells which when it starts."
    raise ConfigError(f"There is no end-of-call handler {handler!r}.{hint}{names}")


def _plan(planned: Preview, handler: str | None) -> str:
    runs = planned.runs
    numbers = {
        f"first runs of {handler}": planned.first_runs,
        "replays": runs.queued,
        "next attempts brought forward": runs.brought_forward,
    }
    told = ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number)
    warning = " Handlers may have effects again." if runs.queued else ""
    return f"Runs: {planned.changed:,} ({told}).{warning}"


def _ask() -> None:
    if not sys.stdin.isatty():
        raise ConfigError("Nobody can be asked here. Add --yes to replay them.")
    if not typer.confirm("Replay them?"):
        fail("Nothing was replayed.")


def _carry_out(database: Database, wanted: Selection, total: int) -> Replayed:
    done = Replayed()
    try:
        with progress(total) as tell_done:
            for batch in _batches(database, wanted):
                done += batch
                tell_done(done.total)
    except KeyboardInterrupt:
        _record(database, done)
        come_to = f"{done.total:,} of {total:,}" + (f": {done}" if done.total else "")
        fail(f"Stopped after {come_to}.", status=INTERRUPTED)
    return done


def _batches(database: Database, wanted: Selection) -> Iterator[Replayed]:
    """Replay batch by batch; a service that acknowledges meanwhile gets its turns."""
    cursor = None
    while True:
        began = time.perf_counter()
        with database.writer.begin() as connection:
            batch, cursor = replay_batch(connection, wanted, datetime.now(UTC), cursor)
        yield batch
        if cursor is None:
            return
        time.sleep(time.perf_counter() - began)

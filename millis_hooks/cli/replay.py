"""`replay`: has handlers called again with what is stored, for a call, a run or many."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from ..exceptions import ConfigError
from ..printable import printable
from .moments import read_moment
from .opened_log import opened
from .progress import progress
from .recorded import record
from .runs import STATES, require_known
from .terminal import INTERRUPTED, fail, note

if TYPE_CHECKING:
    from ..call_log.database import Database
    from ..runs.replay import Preview, Replayed, Wanted

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
    from ..runs.replay import Wanted
    from ..settings import Settings

    require_known(status, _STATUSES)
    filters = (handler, status, read_moment(since), read_moment(until))
    wanted = Wanted(*filters) if any(filters) else None
    if sum(way is not None for way in (session_id, run, wanted)) != 1:
        raise ConfigError(_ONE_WAY)
    with opened(Settings.load()) as database:
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
    from ..runs.replay import replay_call

    with database.writer.begin() as connection:
        replayed = replay_call(connection, session_id, datetime.now(UTC))
    if replayed is None:
        fail(f"There is no call {session_id} in the call log.")
    return replayed


def _replay_run(database: Database, run_id: int) -> Replayed:
    from ..runs.replay import replay_run

    with database.writer.begin() as connection:
        replayed = replay_run(connection, run_id, datetime.now(UTC))
    if replayed is None:
        fail(f"There is no run {run_id} in the call log.")
    return replayed


def _replay_many(database: Database, wanted: Wanted, *, asks: bool) -> Replayed:
    from ..call_log.run_queries import handler_names
    from ..runs.replay import preview

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


def _carry_out(database: Database, wanted: Wanted, total: int) -> Replayed:
    from ..runs.replay import Replayed

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


def _batches(database: Database, wanted: Wanted) -> Iterator[Replayed]:
    """Replay batch by batch; a service that acknowledges meanwhile gets its turns."""
    from ..runs.replay import replay_batch

    cursor = None
    while True:
        began = time.perf_counter()
        with database.writer.begin() as connection:
            batch, cursor = replay_batch(connection, wanted, datetime.now(UTC), cursor)
        yield batch
        if cursor is None:
            return
        time.sleep(time.perf_counter() - began)

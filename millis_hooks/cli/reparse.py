"""`reparse`: has stored deliveries read again, after an upgrade, a fix or a changed setting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .moments import read_moment
from .opened_log import opened
from .progress import progress
from .removing import is_served
from .terminal import INTERRUPTED, fail, note

if TYPE_CHECKING:
    from ..call_log.reparse import Reparse
    from ..call_log.rereading import Reread


def reparse(
    unparsed: Annotated[
        bool, typer.Option("--unparsed", help="Only deliveries that could not be read.")
    ] = False,
    since: Annotated[
        str | None, typer.Option(help="Received since, as 2026-11-01 or 2026-11-01T14:00.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only this session, dash and all.")] = None,
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Do not go on where the last one was stopped.")
    ] = False,
) -> None:
    """Read stored deliveries again, and bring calls, costs, search and drift up to date.

    Also while the service runs. No handler is called again; a call that could not be read before
    gets its runs now. One that was stopped goes on where it was.
    """
    from ..call_log.reparse import Chosen, Reparse, registered_runs
    from ..settings import Settings
    from ..version import __version__

    settings = Settings.load()
    chosen = Chosen(unparsed, read_moment(since), session)
    with opened(settings) as database:
        with database.reader.connect() as connection:
            runs_for = registered_runs(connection)
        work = Reparse(
            database,
            chosen,
            version=__version__,
            own_numbers=settings.own_numbers,
            runs_for=runs_for,
            afresh=afresh,
        )
        if work.is_resumed:
            note("Going on where the last one was stopped.")
        reread = _carry_out(work, rests=is_served(database))
    if session is not None and not reread.deliveries:
        fail(f"There is no delivery of session {session} in the call log.")
    typer.echo(_told(reread))


def _carry_out(work: Reparse, *, rests: bool) -> Reread:
    from ..call_log.rereading import Reread

    reread = Reread()
    try:
        with progress(work.place.last) as tell_done:
            for batch in work.batches(rest=time.sleep if rests else None):
                reread += batch
                tell_done(work.place.after)
    except KeyboardInterrupt:
        fail(f"Stopped. {_told(reread)} Begin again to go on.", status=INTERRUPTED)
    return reread


def _told(reread: Reread) -> str:
    told = f"Deliveries read: {reread.deliveries:,}; calls changed: {reread.changed_calls:,}."
    if reread.recovered:
        told += f" Readable now: {reread.recovered:,}."
    if reread.unreadable:
        told += f" Not readable: {reread.unreadable:,}."
    return told

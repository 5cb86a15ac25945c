"""`prune`: removes what is older than it may become.

`backup`: copies the call log while the service goes on.

`vacuum`: gives back the space that removed calls have left in the file.

`reparse`: has stored deliveries read again, after an upgrade, a fix or a changed setting.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from ..call_log.database import Database
from ..call_log.upkeep import retention
from ..call_log.upkeep import vacuum as vacuuming
from ..call_log.upkeep.backup import back_up
from ..call_log.upkeep.removal import BATCH_ALONE_S, BATCH_S, writing_by
from ..call_log.upkeep.reprocess import Chosen, Reparse, Reread, registered_runs
from ..call_log.upkeep.retention import doubt_of_clock
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..settings import Settings
from ..version import __version__
from .common import is_served, open_log, record
from .forget import ask, carry_out, rested, told_kept
from .options import read_time
from .terminal import INTERRUPTED, fail, note, progress

_KEEPS_ALL = (
    "MILLIS_HOOKS_RETENTION_DAYS is 0, which keeps everything. Say how old calls may become: --days"
)


def prune(
    days: Annotated[
        int | None,
        typer.Option(
            min=1, max=36_500, help="How old calls may become; else MILLIS_HOOKS_RETENTION_DAYS."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    clock_is_right: Annotated[
        bool,
        typer.Option("--clock-is-right", help="Remove although nothing has come in for long."),
    ] = False,
) -> None:
    """Remove calls that are too old, with all that belongs to them.

    The service does the same by itself, every hour. Calls whose handlers are not done stay until
    they are.
    """
    settings = Settings.load()
    kept_days = days or settings.retention_days
    if not kept_days:
        raise ConfigError(_KEEPS_ALL)
    now = datetime.now(UTC)
    before = now - timedelta(days=kept_days)
    with open_log(settings) as database:
        if not clock_is_right:
            _require_right_clock(database, kept=timedelta(days=kept_days), now=now)
        with progress(None):
            planned = retention.plan(database.reader, before=before)
        typer.echo(f"Received before {before:%Y-%m-%d %H:%M} UTC: {planned}.")
        if planned.kept:
            note(told_kept(planned.kept))
        if dry_run or not planned.total:
            return
        if not yes:
            ask("Remove them?")
        served = is_served(database)
        batches = retention.prune(
            database.reader,
            writing_by(database.writer),
            before=before,
            now=now,
            batch_s=BATCH_S if served else BATCH_ALONE_S,
        )
        age = f"received before {before:%Y-%m-%d %H:%M} UTC"
        gone = carry_out(
            rested(batches, rests=served),
            planned,
            lambda gone: record(database, "prune", f"{gone}, {age}"),
        )
    typer.echo(f"Removed: {gone}.")
    note(
        "The file keeps its size, and new calls take the space. millis-hooks vacuum gives it back."
    )


def _require_right_clock(database: Database, *, kept: timedelta, now: datetime) -> None:
    with database.reader.connect() as connection:
        doubt = doubt_of_clock(connection, kept=kept, now=now)
    if doubt is not None:
        raise ConfigError(
            f"The clock may be wrong: {doubt}. If it is right, add --clock-is-right. Else have the "
            "machine set it: timedatectl set-ntp true"
        )


def backup(
    file: Annotated[Path, typer.Argument(help="The file to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy the call log into FILE, with every call that was acknowledged when the copy began.

    The service may be at work. To go back to a copy: stop the service, move the log away with its
    -wal and -shm, and put the copy in its place.
    """
    with open_log(Settings.load()) as database:
        size_bytes = database.path.stat().st_size
        began = datetime.now(UTC)
        try:
            with progress(size_bytes, in_bytes=True) as tell_done:
                copied_bytes = back_up(
                    database,
                    file,
                    force=force,
                    copied=lambda done, total: tell_done(size_bytes * done // total),
                )
        except KeyboardInterrupt:
            fail("Stopped. Nothing was written.", status=INTERRUPTED)
    typer.echo(
        printable(
            f"{file}: {megabytes(copied_bytes)}, checked and sound. It has every call that was "
            f"acknowledged before {began:%Y-%m-%d %H:%M:%S} UTC."
        )
    )


_SERVED = (
    "A service is at work on this log, and nothing can be stored while the file is rewritten: "
    "prefetch is answered, ended calls get 503. Stop it first, or add --force."
)


def vacuum(
    force: Annotated[
        bool, typer.Option("--force", help="Do it even while the service is at work.")
    ] = False,
) -> None:
    """Rewrite the call log's file without unused space.

    Removed calls leave space that new ones take, so this is only needed after much was removed at
    once. It needs twice the size of what stays on the disk, and nothing can be stored meanwhile.
    """
    with open_log(Settings.load()) as database:
        before = vacuuming.space(database)
        if before.free_bytes < before.needed_bytes:
            needed, free = megabytes(before.needed_bytes), megabytes(before.free_bytes)
            fail(f"{needed} are needed beside the log for a time, {free} are free.")
        if not force and is_served(database):
            fail(_SERVED)
        try:
            with progress(None):
                after = vacuuming.vacuum(database)
        except KeyboardInterrupt:
            fail("Stopped. The file is as it was.", status=INTERRUPTED)
    typer.echo(f"{megabytes(before.file_bytes)} before, {megabytes(after.file_bytes)} after.")


def megabytes(size_bytes: int) -> str:
    """Return a size as people read it."""
    return f"{size_bytes / 1_000_000:,.1f} MB"


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
    settings = Settings.load()
    chosen = Chosen(unparsed, read_time(since), session)
    with open_log(settings) as database:
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

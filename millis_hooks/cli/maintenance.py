"""Upkeep of the call log: `prune`, `backup`, `vacuum`, `reparse` and `forget`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..call_log.database import Database
from ..call_log.processing import Processor
from ..call_log.queries.filters import CallFilter, sessions_of
from ..call_log.tables import rereads
from ..call_log.upkeep import file as log_file
from ..call_log.upkeep import removal as removing
from ..call_log.upkeep import retention
from ..call_log.upkeep.file import back_up
from ..call_log.upkeep.removal import (
    BATCH_ALONE_S,
    BATCH_S,
    PAGES,
    PAGES_ALONE,
    Matches,
    Removal,
    empty_wal,
    rewrite_search_index,
    writing_by,
)
from ..call_log.upkeep.reprocess import Chosen, Reparse, Reread, registered_runs
from ..call_log.writer import Writer
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..protocol.phones import digits_of, looked_for
from ..sandbox.emulator.store import sandbox_file
from ..settings import Settings
from ..version import __version__
from .call_filters import takes_call_filters
from .common import is_served, note_kept, open_log, paced, remove
from .options import DryRun, Force, Yes, read_time
from .terminal import confirm, fail, note, progress

#: How often `reparse` looks how much still waits, in seconds.
_LOOK_S = 0.5


Days: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, max=36_500, help="Age in days (MILLIS_HOOKS_RETENTION_DAYS by default)."),
]
ClockIsRight: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--clock-is-right", help="Remove calls although nothing was received for a long time."
    ),
]


def prune(
    days: Days = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    clock_is_right: ClockIsRight = False,
) -> None:
    """Remove old calls with all their data.

    The service does the same every hour. Calls whose runs have not finished stay until they have.
    """
    settings = Settings.load()
    kept_days = days or settings.retention_days
    if not kept_days:
        raise ConfigError(
            "MILLIS_HOOKS_RETENTION_DAYS is 0, which keeps everything. Give an age: --days"
        )
    now = datetime.now(UTC)
    before = now - timedelta(days=kept_days)
    limit = f"{before:%Y-%m-%d %H:%M} UTC"
    with open_log(settings) as database:
        if not clock_is_right:
            _require_right_clock(database, kept=timedelta(days=kept_days), now=now)
        with progress(None):
            planned = retention.plan(database.reader, before=before)
        typer.echo(f"Received before {limit}: {planned}.")
        note_kept(planned.kept)
        if dry_run or not planned.total:
            return
        if not yes:
            confirm("Remove them?", refusal="Nothing was removed.")
        served = is_served(database)
        batch_s = BATCH_S if served else BATCH_ALONE_S
        write = writing_by(database.writer)
        batches = retention.prune(database.reader, write, before=before, now=now, batch_s=batch_s)
        batches = paced(batches, rests=served)
        removed = remove(database, batches, planned, "prune", details=f", received before {limit}")
    typer.echo(f"Removed: {removed}.")
    note("The file keeps its size, and new calls use the space. millis-hooks vacuum shrinks it.")


def _require_right_clock(database: Database, *, kept: timedelta, now: datetime) -> None:
    with database.reader.connect() as connection:
        doubt = retention.doubt_of_clock(connection, kept=kept, now=now)
    if doubt is not None:
        raise ConfigError(
            f"The clock may be wrong: {doubt}. If it is right, add --clock-is-right. If not, let "
            "the machine set it: timedatectl set-ntp true"
        )


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write.")], force: Force = False
) -> None:
    """Copy the call log into a file while the service runs.

    The copy has every call that was acknowledged when it began. To restore it: stop the service,
    move the log away with its -wal and -shm, and put the copy in its place.
    """
    with open_log(Settings.load()) as database:
        size_bytes = database.path.stat().st_size
        began = datetime.now(UTC)
        with progress(
            size_bytes, in_bytes=True, stopped=lambda: "Stopped. Nothing was written."
        ) as show_done:
            copied_bytes = back_up(
                database,
                file,
                force=force,
                copied=lambda done, total: show_done(size_bytes * done // total),
            )
    typer.echo(
        printable(
            f"{file}: {_megabytes(copied_bytes)}, checked and sound. It has every call that was "
            f"acknowledged before {began:%Y-%m-%d %H:%M:%S} UTC."
        )
    )


def vacuum(
    force: Annotated[
        bool, typer.Option("--force", help="Run even while the service is running.")
    ] = False,
) -> None:
    """Rewrite the call log's file without unused space.

    New calls use the space of removed ones, so this is only needed after many were removed at once.
    It needs disk space for twice the remaining data, and nothing can be stored while it runs.
    """
    with open_log(Settings.load()) as database:
        before = log_file.space(database)
        if before.free_bytes < before.needed_bytes:
            needed, free = _megabytes(before.needed_bytes), _megabytes(before.free_bytes)
            fail(f"It needs {needed} beside the log for a time, and {free} are free.")
        if not force and is_served(database):
            fail(
                "A service runs on this log, and nothing can be stored while the file is "
                "rewritten: prefetch is answered, end-of-calls get 503. Stop it first, or add "
                "--force."
            )
        with progress(None, stopped=lambda: "Stopped. The file is unchanged."):
            after = log_file.vacuum(database)
    typer.echo(f"{_megabytes(before.file_bytes)} before, {_megabytes(after.file_bytes)} after.")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1_000_000:,.1f} MB"


def reparse(
    unparsed: Annotated[bool, typer.Option("--unparsed", help="Only unparsed deliveries.")] = False,
    since: Annotated[
        datetime | None,
        typer.Option(parser=read_time, help="Received since, e.g. 2026-11-01 or 2026-11-01T14:00."),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    afresh: Annotated[
        bool,
        typer.Option("--afresh", help="Start from the beginning, not where the last one stopped."),
    ] = False,
) -> None:
    """Read stored deliveries again, and update calls, costs, search and drift.

    A running service does it when it has nothing else to do; otherwise this command does it.
    Handlers are not called again, but a call that could not be read before gets its runs. If it is
    interrupted, the next reparse continues.
    """
    settings = Settings.load()
    chosen = Chosen(unparsed, since, session)
    with open_log(settings) as database, _processor(database, settings) as processor:
        work = Reparse(
            database,
            chosen,
            version=__version__,
            own_numbers=settings.own_numbers,
            afresh=afresh,
        )
        if work.is_resumed:
            note("Continuing where the last one was interrupted.")
        result = _carry_out(work, database, processor)
    if session is not None and not result.deliveries:
        fail(f"There is no delivery of session {session} in the call log.")
    typer.echo(_summary(result))


@contextmanager
def _processor(database: Database, settings: Settings) -> Iterator[Processor]:
    with database.reader.connect() as connection:
        runs_for = registered_runs(connection)
    writer = Writer(database.writer)
    writer.start()
    try:
        yield Processor(
            database,
            writer,
            runs_for=runs_for,
            own_numbers=settings.own_numbers,
            mask=MaskPolicy.of(settings),
        )
    finally:
        writer.close()


def _carry_out(work: Reparse, database: Database, processor: Processor) -> Reread:
    waiting = work.total

    def stopped() -> str:
        result = _summary(work.result(waiting=waiting))
        return f"Stopped. {result} Run the command again to continue."

    with progress(work.total, stopped=stopped) as show_done:
        work.put_back()
        while waiting := work.waiting():
            show_done(work.total - waiting)
            _do_some(database, processor)
        work.end()
    return work.result(waiting=0)


def _do_some(database: Database, processor: Processor) -> None:
    """Read again for a second, or leave it to a service that runs."""
    if is_served(database):
        time.sleep(_LOOK_S)
        return
    until = time.monotonic() + _LOOK_S
    while time.monotonic() < until and processor.process_chunk(rereads):
        pass


def _summary(result: Reread) -> str:
    text = f"Deliveries read: {result.deliveries:,}."
    if result.recovered:
        text += f" Readable now: {result.recovered:,}."
    if result.unreadable:
        text += f" Not readable: {result.unreadable:,}."
    return text


#: So many sessions are named in a list.
_MOST_SESSIONS = 20
#: How often to try to empty the -wal file while others read it, and the pause between.
_TRIES, _PAUSE_S = 30, 0.1
_REMAINS = "Deleted data may remain in the file: millis-hooks vacuum removes it."
_NOT_REMOVED = (
    "Backups and exports still have it. Data deleted earlier may remain in free space of the file: "
    "millis-hooks vacuum removes it."
)
_SANDBOX = (
    "Calls of the sandbox are in {file}, for a day or until the next one after that, and were not "
    "searched. To remove them now, delete that file while no service runs; agents made in the "
    "sandbox go with it."
)


@takes_call_filters()
def forget(
    filters: CallFilter,
    who: Annotated[
        str | None,
        typer.Argument(
            metavar="NUMBER|SESSION_ID", help="Phone number in any format, or session ID."
        ),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove everything about a phone number, one call, or the calls that filters choose.

    For a number, this removes every call from or to it, and every call whose prefetch, metadata or
    results contain it. The filters are those of the Calls page: `calls` with the same ones lists
    what they choose. The removed data is overwritten in the file.
    """
    if (who is not None) == filters.is_narrow:
        raise ConfigError(
            "Choose what to forget: either a number or a session id, or filters such as --since "
            "and --agent. Calls of a number among them: --number."
        )
    settings = Settings.load()
    with open_log(settings) as database:
        if who is None:
            with database.reader.connect() as connection:
                matches = Matches(sessions_of(connection, filters, datetime.now(UTC)))
        else:
            matches = _find(database, who, settings)
        planned = removing.plan_forgetting(database.reader, matches)
        typer.echo(printable(f"Stored about it: {planned}.{_list(matches.session_ids)}"))
        note_kept(planned.kept)
        if dry_run:
            return
        kept = planned.kept
        if planned.total:
            kept = _forget(database, matches, planned, asks=not yes)
    file = sandbox_file(settings)
    if isinstance(file, Path) and file.exists():
        note(_SANDBOX.format(file=file))
    if settings.prefetch_fallback == "last_good":
        note("The service may still answer for this caller from memory (last_good): restart it.")
    if kept:
        fail("Not everything is forgotten. Do this again once those calls are done.")


def _find(database: Database, who: str, settings: Settings) -> Matches:
    session = removing.find_session(database.reader, who)
    if session.session_ids:
        return session
    if not removing.is_number(who):
        fail(f"There is no session {who} in the call log, and this is not a telephone number.")
    number = looked_for(who)
    if digits_of(number) in map(digits_of, settings.own_numbers):
        raise ConfigError("This is one of MILLIS_HOOKS_OWN_NUMBERS: every call is with it.")
    with progress(None):
        matches = removing.find_number(database.reader, number)
        mentions = removing.mentions(database.reader, number, matches)
    if not number.startswith("+") and not (matches.session_ids or matches.delivery_ids):
        note("Numbers of calls have a country code. If this has none, write it as +14155550199.")
    if mentions:
        note(f"Other sessions mention it, and stay:{_list(mentions)}")
    return matches


def _list(session_ids: Sequence[str]) -> str:
    lines = "".join(f"\n  {session_id}" for session_id in session_ids[:_MOST_SESSIONS])
    more = len(session_ids) - _MOST_SESSIONS
    return f"{lines}\n  and {more:,} more" if more > 0 else lines


def _forget(database: Database, matches: Matches, planned: Removal, *, asks: bool) -> int:
    """Remove the matches, and return how many calls had to stay."""
    if asks:
        confirm("Remove them for good?", refusal="Nothing was removed.")
    served = is_served(database)
    batches = removing.forget(
        writing_by(database.writer), matches, batch_s=BATCH_S if served else BATCH_ALONE_S
    )
    removed = remove(database, paced(batches, rests=served), planned, "forget")
    typer.echo(f"Removed: {removed}.")
    _erase(database, rests=served)
    note(_NOT_REMOVED)
    return removed.kept


def _erase(database: Database, *, rests: bool) -> None:
    """Overwrite in the file what deleting has left there."""
    pages = PAGES if rests else PAGES_ALONE
    steps = rewrite_search_index(writing_by(database.writer), pages=pages)
    with progress(None, stopped=lambda: f"Stopped. {_REMAINS}"):
        for _ in paced(steps, rests=rests):
            pass
        for _ in range(_TRIES):
            if empty_wal(database.writer):
                return
            time.sleep(_PAUSE_S)
    note("Somebody reads the log without pause: the -wal file keeps old pages until it is closed.")

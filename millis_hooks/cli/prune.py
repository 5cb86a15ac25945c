"""`prune`: removes what is older than it may become."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ..exceptions import ConfigError
from .opened_log import opened
from .progress import progress
from .recorded import record
from .removing import ask, carry_out, is_served, rested, told_kept
from .terminal import note

if TYPE_CHECKING:
    from ..call_log.database import Database

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
    from ..call_log import retention
    from ..call_log.removal import BATCH_ALONE_S, BATCH_S, writing_by
    from ..settings import Settings

    settings = Settings.load()
    kept_days = days or settings.retention_days
    if not kept_days:
        raise ConfigError(_KEEPS_ALL)
    now = datetime.now(UTC)
    before = now - timedelta(days=kept_days)
    with opened(settings) as database:
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
    from ..call_log.retention import doubt_of_clock

    with database.reader.connect() as connection:
        doubt = doubt_of_clock(connection, kept=kept, now=now)
    if doubt is not None:
        raise ConfigError(
            f"The clock may be wrong: {doubt}. If it is right, add --clock-is-right. Else have the "
            "machine set it: timedatectl set-ntp true"
        )

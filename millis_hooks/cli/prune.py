"""`prune`: removes what is older than it may become."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from ..exceptions import ConfigError
from .opened_log import opened
from .progress import progress
from .recorded import record
from .removing import ask, carry_out, is_served, rested, told_kept
from .terminal import note

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

"""`reconcile`: ends that never arrived, from Millis' call logs into the call log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from .moments import read_moment
from .opened_log import opened
from .progress import progress
from .removing import is_served
from .terminal import INTERRUPTED, fail, note

if TYPE_CHECKING:
    from ..call_log.database import Database
    from ..millis_api import MillisApi
    from ..reconcile import Reconciled
    from ..settings import Settings

_SERVED = "The service calls the handlers for them within seconds."
_NOT_SERVED = "The service calls the handlers for them when it starts."


def reconcile(
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin with the calls of this date or time, UTC unless it says; by default where "
            "the last look ended."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is lacking.")] = False,
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once",
            help="Do not give webhooks 5 minutes to arrive by themselves: for rehearsals.",
        ),
    ] = False,
) -> None:
    """Fetch from Millis' call logs the ends that never arrived, and have them handled.

    Needs MILLIS_HOOKS_API_KEY; the service then does the same by itself, every few minutes. Calls
    whose end is in the log stay as they are, so it may be cut short and begun again.
    """
    from ..millis_api import MillisApi
    from ..settings import Settings

    begin = read_moment(since)
    settings = Settings.load()
    api = MillisApi.of(settings)
    with opened(settings) as database:
        found = _look(database, api, begin, settings, is_trial=dry_run, at_once=at_once)
        typer.echo(("Nothing was stored. " if dry_run else "") + str(found))
        if found.filled and not dry_run:
            note(_SERVED if is_served(database) else _NOT_SERVED)


def _look(
    database: Database,
    api: MillisApi,
    since: datetime | None,
    settings: Settings,
    *,
    is_trial: bool,
    at_once: bool,
) -> Reconciled:
    from ..call_log.removal import writing_by
    from ..reconcile import SETTLES_IN, Reconciled, Reconciliation
    from ..redaction import redacting

    so_far = Reconciled()
    try:
        with progress(None) as tell_done:

            def tell(now_known: Reconciled) -> None:
                nonlocal so_far
                so_far = now_known
                tell_done(now_known.listed + now_known.unknown)

            reconciliation = Reconciliation(
                api,
                database.reader,
                writing_by(database.writer),
                now=lambda: datetime.now(UTC),
                redact=redacting(settings),
                is_trial=is_trial,
                settles_in=timedelta() if at_once else SETTLES_IN,
                tell=tell,
            )
            return asyncio.run(reconciliation.look(since or reconciliation.since()))
    except KeyboardInterrupt:
        fail(f"Stopped. {so_far} Begin again to go on.", status=INTERRUPTED)

"""`forget` removes everything that is stored about a telephone number, or of one session."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..call_log.database import Database
from ..call_log.upkeep import removal as removing
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
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..protocol.phones import digits_of, looked_for
from ..sandbox.emulator.store import sandbox_file
from ..settings import Settings
from .common import is_served, note_kept, open_log, paced, remove
from .options import DryRun, Yes
from .terminal import INTERRUPTED, confirm, fail, note, progress

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


def forget(
    who: Annotated[
        str, typer.Argument(metavar="NUMBER|SESSION_ID", help="A number in any spelling, or an id.")
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove everything about a telephone number, or one session.

    Of a number that is every session from it, to it or with it, and every one whose prefetch or
    metadata names it. What is removed is overwritten in the file.
    """
    settings = Settings.load()
    with open_log(settings) as database:
        matches = _find(database, who, settings)
        planned = removing.plan_forgetting(database.reader, matches)
        typer.echo(printable(f"Stored about it: {planned}.{_list(matches.session_ids)}"))
        note_kept(planned.kept)
        if dry_run:
            return
        kept = planned.kept
        if planned.total:
            kept = _carry_out(database, matches, planned, asks=not yes)
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


def _carry_out(database: Database, matches: Matches, planned: Removal, *, asks: bool) -> int:
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
    try:
        with progress(None):
            for _ in paced(steps, rests=rests):
                pass
            for _ in range(_TRIES):
                if empty_wal(database.writer):
                    return
                time.sleep(_PAUSE_S)
    except KeyboardInterrupt:
        fail(f"Stopped. {_REMAINS}", status=INTERRUPTED)
    note("Somebody reads the log without pause: the -wal file keeps old pages until it is closed.")

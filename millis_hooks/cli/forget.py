"""`forget`: removes everything kept about a telephone number, or under one session.

What commands that remove something have in common: a question, a bar, and manners towards a
service that is at work on the same log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ..call_log.database import Database
from ..call_log.upkeep import forget as forgetting
from ..call_log.upkeep.forget import Found
from ..call_log.upkeep.removal import (
    BATCH_ALONE_S,
    BATCH_S,
    PAGES,
    PAGES_ALONE,
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
from .common import is_served, open_log, record
from .terminal import INTERRUPTED, fail, note, progress

T = TypeVar("T")


def ask(question: str) -> None:
    """End the command unless somebody says yes."""
    if not sys.stdin.isatty():
        raise ConfigError("Nobody can be asked here. Add --yes to remove them.")
    if not typer.confirm(question):
        fail("Nothing was removed.")


def rested(batches: Iterator[T], *, rests: bool) -> Iterator[T]:
    """Yield batch by batch; if it `rests`, a service gets as much time as each has taken."""
    began = time.perf_counter()
    for batch in batches:
        yield batch
        if rests:
            time.sleep(time.perf_counter() - began)
        began = time.perf_counter()


def carry_out(
    batches: Iterator[Removal], planned: Removal, tell: Callable[[Removal], None]
) -> Removal:
    """Remove batch by batch, with a bar, and return what went; `tell` hears it, however it ends."""
    gone = Removal()
    try:
        with progress(planned.total) as tell_done:
            for removed in batches:
                gone += removed
                tell_done(gone.total)
    except KeyboardInterrupt:
        fail(f"Stopped. Removed so far: {gone}.", status=INTERRUPTED)
    finally:
        tell(gone)
    return gone


def told_kept(number: int) -> str:
    """Say how many stay, and why."""
    return f"Kept for now: {number:,}, as handlers are not done or deliveries not processed."


_NO_COUNTRY = "Numbers of calls have a country code. If this has none, write it as +14155550199."
#: So many sessions are named in a list.
_NAMED = 20
#: How often the -wal file is tried again when somebody reads from it, and after what pause.
_TRIES, _PAUSE_S = 30, 0.1

_STILL_THERE = "What was deleted may still lie in the file: millis-hooks vacuum removes it."
_ELSEWHERE = (
    "Backups and exports keep what they have. What was deleted earlier may lie in free space of "
    "the file: millis-hooks vacuum removes it."
)
_REHEARSED = (
    "Calls rehearsed in the sandbox lie in {file}, for a day or until the next one after that, and "
    "were not looked through. To be rid of them now, remove it while no service is at work; agents "
    "made there go with it."
)
_REMEMBERED = "The service may still answer for this caller from memory (last_good): restart it."


def forget(
    who: Annotated[
        str, typer.Argument(metavar="NUMBER|SESSION_ID", help="A number, however it is written.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove everything about a telephone number, or one session.

    Of a number, that is every session from it, to it or with it, and every one whose prefetch or
    metadata names it. What is removed is overwritten in the file.
    """
    settings = Settings.load()
    with open_log(settings) as database:
        found = _find(database, who, settings)
        planned = forgetting.plan(database.reader, found)
        typer.echo(printable(f"Kept about it: {planned}.{_named(found.session_ids)}"))
        if planned.kept:
            note(told_kept(planned.kept))
        if dry_run:
            return
        kept = _carry_out(database, found, planned, asks=not yes) if planned.total else planned.kept
    if (rehearsals := _rehearsal_file(settings)) is not None:
        note(_REHEARSED.format(file=rehearsals))
    if settings.prefetch_fallback == "last_good":
        note(_REMEMBERED)
    if kept:
        fail("Not everything is forgotten. Do this again once they are done.")


def _carry_out(database: Database, found: Found, planned: Removal, *, asks: bool) -> int:
    """Remove what was found, and return how many calls had to stay."""
    if asks:
        ask("Remove them for good?")
    served = is_served(database)
    batches = forgetting.forget(
        writing_by(database.writer), found, batch_s=BATCH_S if served else BATCH_ALONE_S
    )
    gone = carry_out(
        rested(batches, rests=served), planned, lambda gone: record(database, "forget", str(gone))
    )
    typer.echo(f"Removed: {gone}.")
    _erase(database, rests=served)
    note(_ELSEWHERE)
    return gone.kept


def _find(database: Database, who: str, settings: Settings) -> Found:
    found = forgetting.find_session(database.reader, who)
    if found.session_ids:
        return found
    if not forgetting.is_number(who):
        fail(f"There is no session {who} in the call log, and this is no telephone number.")
    number = looked_for(who)
    if digits_of(number) in map(digits_of, settings.own_numbers):
        raise ConfigError("This is one of MILLIS_HOOKS_OWN_NUMBERS: every call is with it.")
    with progress(None):
        found = forgetting.find_number(database.reader, number)
        others = forgetting.mentions(database.reader, number, found)
    if not number.startswith("+") and not (found.session_ids or found.delivery_ids):
        note(_NO_COUNTRY)
    if others:
        note(f"It is spoken of in other sessions too, which stay:{_named(others)}")
    return found


def _rehearsal_file(settings: Settings) -> Path | None:
    file = sandbox_file(settings)
    return file if isinstance(file, Path) and file.exists() else None


def _named(session_ids: Sequence[str]) -> str:
    shown = "".join(f"\n  {session_id}" for session_id in session_ids[:_NAMED])
    more = len(session_ids) - _NAMED
    return f"{shown}\n  and {more:,} more" if more > 0 else shown


def _erase(database: Database, *, rests: bool) -> None:
    """Remove from the file what deleting has left in it."""
    steps = rewrite_search_index(writing_by(database.writer), pages=PAGES if rests else PAGES_ALONE)
    try:
        with progress(None):
            for _ in rested(steps, rests=rests):
                pass
            for _ in range(_TRIES):
                if empty_wal(database.writer):
                    return
                time.sleep(_PAUSE_S)
    except KeyboardInterrupt:
        fail(f"Stopped. {_STILL_THERE}", status=INTERRUPTED)
    note("Somebody reads the log without pause: the -wal file keeps old pages until it is closed.")

"""`copy`: takes a whole call log to another database, of either kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .given_secrets import WAYS, given_secret
from .opened_log import opened
from .progress import progress
from .removing import is_served
from .terminal import INTERRUPTED, add_row, console, fail, note, table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ..call_log.database import Database
    from ..call_log.transfer.moving import Compared

_STOPPED = "Stopped. Nothing is lost: begin again to go on."
_TARGET_SERVED = "A service is at work on the log that is to be the copy. Stop it first."
_SOURCE_SERVED = (
    "A service is at work on the source, so the copy is not finished: what came since {since} UTC "
    "is missing. Stop the service and begin again; that takes over what has changed."
)
_MOVED = "The copy is finished. Set MILLIS_HOOKS_DATABASE_URL to it, and start the service."


def copy(
    source: Annotated[
        str,
        typer.Option("--from", help=f"The call log to copy: sqlite:///millis_hooks.db; {WAYS}."),
    ],
    target: Annotated[
        str,
        typer.Option("--to", help=f"The database to copy it to, as --from; {WAYS}."),
    ],
) -> None:
    """Copy a whole call log into an empty database, from SQLite to PostgreSQL or back.

    Both are compared at the end, row for row. One that was stopped is begun again and goes on. Let
    it run while the service is at work, then stop the service and copy again: the second time takes
    over what has changed since. Until it is finished no service starts on the copy. The source is
    only read.

    An address with a password does not belong into arguments: `--to -` asks for it, and `--to
    env:NAME` takes it from a variable.
    """
    here_url, there_url = given_secret("--from", source), given_secret("--to", target)
    with (
        _opened("--from", here_url) as here,
        _opened("--to", there_url, may_make=True) as there,
    ):
        try:
            _copy(here, there)
        except KeyboardInterrupt:
            fail(_STOPPED, status=INTERRUPTED)


@contextmanager
def _opened(option: str, url: str | None, *, may_make: bool = False) -> Iterator[Database]:
    from sqlalchemy import make_url

    from ..call_log.database import is_file
    from ..setting_sources import Given
    from ..settings import Settings

    settings = Settings.load(database_url=Given(url, option))
    file = Path(make_url(settings.database_url).database or "")
    if is_file(settings.database_url) and not may_make and not file.is_file():
        fail(f"There is no call log {file}.")
    with opened(settings, may_make=may_make) as database:
        yield database


def _copy(source: Database, target: Database) -> None:
    from ..call_log.transfer.copying import snapshot
    from ..call_log.transfer.ids import last_ids
    from ..call_log.transfer.moving import begin, finish

    if is_served(target):
        fail(_TARGET_SERVED)
    if begin(source, target):
        note("Going on with an earlier copy.")
    since, served = datetime.now(UTC), is_served(source)
    with snapshot(source) as state:
        _copy_rows(state, target)
        compared = _compare(state, target)
        ids = last_ids(state)
    _show(compared)
    if wrong := [each.table for each in compared if not each.is_same]:
        fail(f"Not the same on both sides: {', '.join(wrong)}. Begin again, that mends it.")
    if served or is_served(source):
        fail(_SOURCE_SERVED.format(since=f"{since:%Y-%m-%d %H:%M:%S}"))
    finish(target, ids)
    typer.echo(_MOVED)


def _copy_rows(state: Connection, target: Database) -> None:
    from ..call_log.transfer.copying import copy_rows, count_rows

    with progress(count_rows(state)) as tell_done:
        for done in copy_rows(state, target):
            tell_done(done)


def _compare(state: Connection, target: Database) -> list[Compared]:
    from ..call_log.transfer.copying import count_rows, snapshot
    from ..call_log.transfer.moving import compare

    with snapshot(target) as copied:
        total = count_rows(state) + count_rows(copied)
        with progress(total) as tell_done:
            return list(compare(state, copied, tell_done))


def _show(compared: list[Compared]) -> None:
    shown = table("Table", "Rows", "Hash")
    for each in compared:
        if each.source.rows or not each.is_same:
            add_row(shown, each.table, f"{each.source.rows:,}", each.source.digest)
    console().print(shown)

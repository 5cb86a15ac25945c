"""What commands that remove something have in common: a question, a bar, and manners towards a
service that is at work on the same log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import typer

from ..exceptions import ConfigError
from .progress import progress
from .terminal import INTERRUPTED, fail

if TYPE_CHECKING:
    from ..call_log.database import Database
    from ..call_log.removal import Removal

T = TypeVar("T")


def ask(question: str) -> None:
    """End the command unless somebody says yes."""
    if not sys.stdin.isatty():
        raise ConfigError("Nobody can be asked here. Add --yes to remove them.")
    if not typer.confirm(question):
        fail("Nothing was removed.")


def is_served(database: Database) -> bool:
    """Tell whether a service is at work on this log."""
    from ..call_log.holder import FileHolder
    from ..runs.many_processes import processes_at_work

    if not database.is_file:
        with database.reader.connect() as connection:
            return bool(processes_at_work(connection))
    place = FileHolder(database.runner_lock)
    try:
        return not place.hold()
    except OSError:  # no service could have made the file either
        return False
    finally:
        place.let_go()


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
    from ..call_log.removal import Removal

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

"""`vacuum`: gives back the space that removed calls have left in the file."""

from __future__ import annotations

from typing import Annotated

import typer

from .opened_log import opened
from .progress import progress
from .removing import is_served
from .terminal import INTERRUPTED, fail

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
    from ..call_log import vacuum as vacuuming
    from ..settings import Settings

    with opened(Settings.load()) as database:
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

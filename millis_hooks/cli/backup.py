"""`backup`: copies the call log while the service goes on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ..printable import printable
from .opened_log import opened
from .progress import progress
from .terminal import INTERRUPTED, fail
from .vacuum import megabytes


def backup(
    file: Annotated[Path, typer.Argument(help="The file to make.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy the call log into FILE, with every call that was acknowledged when the copy began.

    The service may be at work. To go back to a copy: stop the service, move the log away with its
    -wal and -shm, and put the copy in its place.
    """
    from ..call_log.backup import back_up
    from ..settings import Settings

    with opened(Settings.load()) as database:
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

"""A bar for what takes its time, beside the output that may be piped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar, on a terminal only; yield what is told how much is done by now."""
    gc.enable()  # commands that end soon do without: see `main`
    from rich.console import Console

    out = Console(stderr=True)
    if not out.is_terminal:
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    how_much = DownloadColumn() if in_bytes else MofNCompleteColumn()
    with Progress(BarColumn(), how_much, TimeRemainingColumn(), console=out, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)

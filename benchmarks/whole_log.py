"""What the commands that go through a whole call log take: memory, and calls per second.

Each runs on a log of 10,000 calls and on one of 1,000,000, and the peak of its resident memory must
not be more than 50 MB higher on the large one. What `export` writes, `import` reads into a new log,
which `prune` then empties. The logs are those of `call_log.py`, in `--folder`; the large one takes
its room there four times.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bystanders import Bystanders
from .call_log import SMALL
from .generate import made
from .report import Row, print_report, progress

MAX_GROWTH_MB = 50
_COMMAND_LINE = "from millis_hooks.cli import main; main()"


@dataclass(frozen=True)
class Work:
    """A command, and the log it is given."""

    name: str
    arguments: Sequence[str]
    log: Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--folder", type=Path, required=True, help="where the logs are kept")
    chosen = parser.parse_args()
    bystanders = Bystanders()
    rows = list(measure(chosen.folder, chosen.calls))
    print_report(f"Commands on {chosen.calls:,} calls against {SMALL:,}", rows, bystanders)


def measure(folder: Path, count: int) -> Iterator[Row]:
    sizes = {size: made(folder, size) for size in (SMALL, count)}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        works = {size: list(_works(log, Path(scratch), size)) for size, log in sizes.items()}
        for small, large in zip(works[SMALL], works[count], strict=True):
            (small_mb, _), (large_mb, took_s) = _run(small), _run(large)
            rate = f"{count / took_s:,.0f} calls/s"
            progress(f"{large.name}: {rate}, {large_mb:.0f} MB, {small_mb:.0f} MB on the small log")
            yield Row(
                f"{large.name}: memory", large_mb - small_mb, "MB", rate, at_most=MAX_GROWTH_MB
            )


def _works(log: Path, scratch: Path, size: int) -> Iterator[Work]:
    """Yield the commands in an order in which each finds what it needs."""
    exported, imported = scratch / f"{size}.jsonl", scratch / f"{size}.db"
    yield Work("export to csv", ["export", str(scratch / f"{size}.csv")], log)
    yield Work("export to jsonl", ["export", str(exported), "--raw"], log)
    yield Work("import of jsonl", ["import", str(exported)], imported)
    yield Work("prune", ["prune", "--days", "1", "--yes"], imported)
    yield Work("reparse", ["reparse", "--afresh"], log)


def _run(work: Work) -> tuple[float, float]:
    """Run the command; return the peak of its resident memory in MB, and how many s it took."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _COMMAND_LINE, *work.arguments]
    place = {"MILLIS_HOOKS_DATABASE_URL": f"sqlite:///{work.log}"}
    pid = os.posix_spawn(sys.executable, command, os.environ | place)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"millis-hooks {' '.join(work.arguments)} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - began


if __name__ == "__main__":
    main()

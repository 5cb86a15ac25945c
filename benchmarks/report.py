"""What every program prints: one aligned table, each row with its target and whether it was met."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .bystanders import Bystanders
from .load import Load

_HEADINGS = ("", "ours", "other", "figure", "target", "")


@dataclass(frozen=True)
class Row:
    """One figure and what it has to be; without a target it is there to be known."""

    what: str
    figure: float
    unit: str = "x"
    ours: str = ""
    other: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool:
        # NaN, the figure of nothing measured, meets no target.
        return (self.at_least is None or self.figure >= self.at_least) and (
            self.at_most is None or self.figure <= self.at_most
        )

    def cells(self) -> tuple[str, ...]:
        figure = f"{_number(self.figure)} {self.unit}"
        if self.at_least is not None:
            target = f">= {self.at_least:g}"
        elif self.at_most is not None:
            target = f"<= {self.at_most:g}"
        else:
            return (self.what, self.ours, self.other, figure, "", "")
        verdict = "ok" if self.is_met else "MISSED"
        return (self.what, self.ours, self.other, figure, target, verdict)


def print_report(title: str, rows: Sequence[Row], bystanders: Bystanders) -> None:
    """Print the table; exit with status 1 if a target was missed or the run is not valid.

    Call it when all servers have ended: what they took is only then known to be ours.
    """
    table = [_HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_HEADINGS))]
    print(title)
    for cells in table:
        what, *others = cells
        aligned = [what.ljust(widths[0])]
        aligned += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(aligned).rstrip())
    is_valid = (share := bystanders.share()) <= bystanders.max_share
    if not is_valid:
        print(f"NOT VALID: other processes took {share:.0%} of the machine meanwhile.")
    if not is_valid or not all(row.is_met for row in rows):
        sys.exit(1)


def progress(text: str) -> None:
    """Say on stderr what has just been measured, so that the table stays alone on stdout."""
    print(text, file=sys.stderr, flush=True)


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of each round: the machine drifts from round to round.

    NaN if one round has no ratio.
    """
    ratios = [a / b if b else math.nan for a, b in zip(over, under, strict=True)]
    return math.nan if any(map(math.isnan, ratios)) else statistics.median(ratios)


def seen(latency_ms: float, done: Load) -> float:
    """Return a latency of `done`, or infinity if nothing was answered: `wrk` says 0 then."""
    return latency_ms if done.requests_per_s else math.inf


def median(values: Sequence[float], unit: str) -> str:
    return f"{_number(statistics.median(values))}{unit}"


def options(description: str | None, **defaults: int) -> argparse.Namespace:
    """Read the command line: each default is an option of that name."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=_positive, default=default, help=f"default {default}")
    return parser.parse_args()


def sync_ms() -> float:
    """Return how long this disk takes to sync 4 kB: the median of 50 times."""
    took = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("expected a number above 0")
    return number


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

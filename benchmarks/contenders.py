"""Who is compared with whom, and how each of them is started.

One server runs at a time, on a directory of its own: what one still has to do in the background
must not cost the next.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .load import Server
from .rivals import SECRET
from .stored import CallLogFile

#: How long the caller waits for the team's code: the default, spelled out for `blocked`.
BUDGET_S = 2.0

Target = str | Sequence[str]

STARLETTE = "benchmarks.rivals:bare_starlette"
LITESTAR = "benchmarks.rivals:litestar_app"
FASTAPI = "benchmarks.rivals:fastapi_app"
HANDWRITTEN = "benchmarks.rivals_end_of_call:handwritten"
APPEND_ONLY = "benchmarks.rivals_end_of_call:append_only"


def ours(app: str = "app:hooks") -> Sequence[str]:
    """The command that serves one of our applications."""
    return [sys.executable, "-m", "benchmarks.serve", f"benchmarks.{app}", "{port}"]


OURS = ours()


@dataclass(frozen=True)
class Contest:
    """A started contender, and the directory it keeps its files in."""

    server: Server
    storage: Path

    @property
    def call_log(self) -> CallLogFile:
        return CallLogFile(self.storage / "millis_hooks.db")


@contextmanager
def started(target: Target) -> Iterator[Contest]:
    """Serve `target` from an empty directory, which is gone afterwards; `TMPDIR` says where."""
    with storage() as directory, Server(target, environment(directory)) as server:
        yield Contest(server, directory)


@contextmanager
def storage() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="millis-hooks-bench-") as directory:
        yield Path(directory)


def environment(directory: Path) -> dict[str, str]:
    """The variables by which every contender finds its secret and its directory."""
    return {
        "MILLIS_HOOKS_SECRETS": SECRET,
        "MILLIS_HOOKS_DATABASE_URL": f"sqlite:///{directory / 'millis_hooks.db'}",
        "MILLIS_HOOKS_PREFETCH_BUDGET_S": str(BUDGET_S),
        "BENCH_STORAGE": str(directory),
    }

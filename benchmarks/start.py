"""Time from the start of the process to its first answer, against a bare Starlette application."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .bystanders import Bystanders
from .contenders import OURS, environment, storage
from .load import HEADERS, LOAD_CORE, PREFETCH, SERVER_CORE, free_port, uvicorn
from .report import Row, median, median_ratio, options, print_report, progress

BARE = uvicorn("benchmarks.bare:app")
#: As it is started in production.
COMMAND_LINE = [
    str(Path(sys.executable).with_name("millis-hooks")),
    *["run", "benchmarks.app:hooks", "--log-level", "warning", "--port", "{port}"],
]
MAX_RATIO = 2.5
POLL_S = 0.001
TIMEOUT_S = 30


def main() -> None:
    chosen = options(__doc__, rounds=7)
    bystanders = Bystanders()
    os.sched_setaffinity(0, {LOAD_CORE})
    took: dict[str, list[float]] = defaultdict(list)
    with storage() as kept:
        _start(BARE, kept)  # these read the files into memory, and make bytecode and a call log
        _start(OURS, kept)
        _start(COMMAND_LINE, kept)
        for _ in range(chosen.rounds):
            took["bare"].append(_start(BARE, kept))
            took["started again"].append(_start(OURS, kept))
            took["started again, by millis-hooks run"].append(_start(COMMAND_LINE, kept))
            with storage() as empty:
                took["with a new call log"].append(_start(OURS, empty))
            progress(", ".join(f"{name} {times[-1]:.0f} ms" for name, times in took.items()))
    bare = took.pop("bare")
    rows = [_row(name, times, bare) for name, times in took.items()]
    print_report(f"Time to the first answer, median of {chosen.rounds}", rows, bystanders)


def _row(name: str, times_ms: list[float], bare_ms: list[float]) -> Row:
    return Row(
        name,
        median_ratio(times_ms, bare_ms),
        ours=median(times_ms, " ms"),
        other=median(bare_ms, " ms"),
        at_most=MAX_RATIO,
    )


def _start(command: Sequence[str], directory: Path) -> float:
    """Start a server, wait for its first answer and stop it; return the wait in milliseconds."""
    port = free_port()
    pinned = ["taskset", "-c", str(SERVER_CORE), *command]
    began = time.perf_counter()
    process = subprocess.Popen(
        [part.replace("{port}", str(port)) for part in pinned],
        env=_surroundings(directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_answer(f"http://127.0.0.1:{port}{PREFETCH}", began + TIMEOUT_S, process)
        return (time.perf_counter() - began) * 1000
    finally:
        process.terminate()
        process.wait(15)


def _surroundings(directory: Path) -> dict[str, str]:
    """The environment, but for one variable: an installed package has its bytecode, so the first
    start has to make that of a checkout."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **environment(directory)}


def _wait_for_answer(url: str, end: float, process: subprocess.Popen[bytes]) -> None:
    """Ask until there is a 200; raises `urllib.error.HTTPError` for another answer."""
    request = urllib.request.Request(url, headers=HEADERS)
    while time.perf_counter() < end and process.poll() is None:
        try:
            urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
            return
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(POLL_S)
    raise RuntimeError(f"no answer from {url}")


if __name__ == "__main__":
    main()

"""The applications of `runs`: one whose handler notes when it begins, one with no handler at all.

Notes go into a file in the directory of the call log, one line each: the session's id and the time
in nanoseconds since the epoch.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from millis_hooks import EndOfCall, MillisHooks

from .beginnings import NOTES

_notes = os.open(
    Path(os.environ["BENCH_STORAGE"]) / NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
)

notes = MillisHooks()


@notes.on_end_of_call
async def note(call: EndOfCall) -> None:
    began_ns = time.time_ns()
    os.write(_notes, f"{call.session_id} {began_ns}\n".encode())


#: What the same service costs when nothing has to be done after a call.
leaves = MillisHooks()

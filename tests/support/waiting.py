"""Waiting for what happens by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST_PAUSE_S = 0.05
#: A limit that is over soon, but not before what begins at once has begun on a busy machine.
SOON_S = 0.5


def eventually(look: Callable[[], T], *, deadline_s: float = 60.0) -> T:
    """Look again until there is something to see, and return it.

    The deadline is for what never happens; how long the rest takes is the machine's. What takes
    longer is looked at less often: looking takes its time too.
    """
    deadline, pause_s = time.monotonic() + deadline_s, 0.002
    while not (seen := look()):
        assert time.monotonic() < deadline, "it has not happened"
        threading.Event().wait(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
    return seen

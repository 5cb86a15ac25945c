"""Waiting for what happens by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, deadline_s: float = 60.0) -> T:
    """Look again until there is something to see, and return it.

    The deadline is for what never happens; how long the rest takes is the machine's.
    """
    deadline = time.monotonic() + deadline_s
    while not (seen := look()):
        assert time.monotonic() < deadline, "it has not happened"
        threading.Event().wait(0.005)
    return seen

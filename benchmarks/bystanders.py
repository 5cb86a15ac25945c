"""Tells whether a run had the machine to itself.

On a core it has to share, a server of several threads is given more time than one of a single
thread, and the ratios between them mean nothing.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

#: The share of all cores that others may take before a run is not valid.
MAX_SHARE = 0.05


class Bystanders:
    """All processes but this one and its children, from now on."""

    def __init__(self, *, max_share: float = MAX_SHARE) -> None:
        """Allow them more where one of them, such as a database, belongs to what is measured."""
        self.max_share = max_share
        self._began = time.monotonic()
        self._taken_before_s = _busy_s() - _own_s()

    def share(self) -> float:
        """Return how much of all cores they have taken. Children still running count as theirs."""
        available_s = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(_busy_s() - _own_s() - self._taken_before_s, 0.0) / available_s


def _busy_s() -> float:
    """Return the seconds all cores have worked for processes, since the machine started."""
    user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)

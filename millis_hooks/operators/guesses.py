"""Slows down guessing, and locks nobody out."""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict
from datetime import datetime, timedelta

_FORGOTTEN_AFTER = timedelta(minutes=15)
_REMEMBERED = 4096
#: What was wrong longer ahead than this was so by a clock that has since been set back.
_CLOCK_TOLERANCE = timedelta(minutes=1)


class Guesses:
    """Counts wrong passwords by whom or whose, in memory, and says how long the next must wait.

    The wait doubles from the first that is not free up to `longest_wait_s`, and is forgotten after
    a quarter of an hour or with the right password.
    """

    def __init__(self, *, free: int = 5, longest_wait_s: int = 60) -> None:
        self._free = free
        self._longest_wait_s = longest_wait_s
        self._failures: OrderedDict[str, tuple[int, datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, key: str, now: datetime) -> int:
        """Return the seconds until the next try, 0 for at once."""
        with self._lock:
            count, last = self._recent(key, now)
        if count < self._free:
            return 0
        doublings = min(count - self._free + 1, 10)
        pause_s = min(1 << doublings, self._longest_wait_s)
        return max(math.ceil(pause_s - (now - last).total_seconds()), 0)

    def add(self, key: str, now: datetime) -> None:
        """Count one wrong password."""
        with self._lock:
            count, _ = self._recent(key, now)
            self._failures[key] = (count + 1, now)
            self._failures.move_to_end(key)
            if len(self._failures) > _REMEMBERED:
                self._failures.popitem(last=False)

    def forget(self, key: str) -> None:
        """Forget what was wrong."""
        with self._lock:
            self._failures.pop(key, None)

    def _recent(self, key: str, now: datetime) -> tuple[int, datetime]:
        count, last = self._failures.get(key, (0, now))
        is_recent = -_CLOCK_TOLERANCE <= now - last <= _FORGOTTEN_AFTER
        return (count, last) if is_recent else (0, now)


def network_of(client: str) -> str:
    """Return whom an address stands for: one subscriber has a whole /64 of IPv6 addresses."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed, 64), strict=False))

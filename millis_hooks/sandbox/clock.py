"""Time as a session sees it: the real one, or one that skips the waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Clock(Protocol):
    """Tells the time and lets it pass."""

    #: Whether letting time pass takes that time.
    is_live: bool

    def now(self) -> datetime:
        """Return the time of day, aware and in UTC."""

    def elapsed_s(self) -> float:
        """Return seconds since some moment, those skipped included."""

    def measured_s(self) -> float:
        """Return seconds since some moment, to measure how long something really takes."""

    async def pass_time(self, seconds: float) -> None:
        """Return when so much time has passed."""


class LiveClock:
    """The real time: a person is talking."""

    is_live = True

    def now(self) -> datetime:
        return _utc_now()

    def elapsed_s(self) -> float:
        return time.monotonic()

    def measured_s(self) -> float:
        return time.perf_counter()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SkippingClock:
    """Lets time pass without waiting for it: nobody listens to a script.

    The time of day stays the real one, so that a receiver finds calls that have just ended, and
    none that end in the future.
    """

    is_live = False

    def __init__(
        self,
        now: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._now = now
        self._monotonic = monotonic
        self._skipped = timedelta()

    def now(self) -> datetime:
        return self._now()

    def elapsed_s(self) -> float:
        return self._monotonic() + self._skipped.total_seconds()

    def measured_s(self) -> float:
        return self._monotonic()

    async def pass_time(self, seconds: float) -> None:
        self._skipped += timedelta(seconds=seconds)
        await asyncio.sleep(0)

"""Retention and compression of old bodies, on a thread of the service.

Deliveries come first: a batch is small, and after each the thread rests for many times as long as
it took.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Engine

from ...masking.error_report import describe_failure
from ..writer import Writer

if TYPE_CHECKING:
    from .removal import Removal

logger = logging.getLogger("millis_hooks.housekeeping")

T = TypeVar("T")

#: After a start there is other work to do.
FIRST_S = 60.0
EVERY_S = 3600.0
#: How many times as long as a batch took is rested after it, and how long in a flood.
REST = 9
REST_IN_FLOOD_S = 1.0


_DOUBTED = (
    "nothing is removed, because the clock may be wrong: %s. If it is right, remove what is old "
    "with `millis-hooks prune --clock-is-right`, or wait until calls have come in for a day"
)


class Housekeeper:
    """Sees to the call log every hour, in the one process of several that `is_ours` says."""

    def __init__(
        self,
        reader: Engine,
        writer: Writer,
        *,
        retention_days: int,
        pack_after_days: int,
        is_ours: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`retention_days` of 0 keeps everything, `pack_after_days` of 0 as it came."""
        self._reader = reader
        self._writer = writer
        self._retention = timedelta(days=retention_days)
        self._packed_after = timedelta(days=pack_after_days)
        self._is_ours = is_ours
        self._now = now
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-housekeeping", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish the batch at hand; the rest goes another time."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def tidy(self) -> Removal:
        """Prune once, and return what went; nothing goes while the clock is in doubt.

        Raises `StorageError`.
        """
        from .removal import Removal  # none of it is needed to begin with
        from .retention import doubt_of_clock, prune

        now = self._now()
        if not self._retention:
            return Removal()
        with self._reader.connect() as connection:
            doubt = doubt_of_clock(connection, kept=self._retention, now=now)
        if doubt is not None:
            logger.error(_DOUBTED, doubt)
            return Removal()
        before = now - self._retention
        gone = Removal()
        for removed in self._unhurried(
            prune(self._reader, self._writer.run, before=before, now=now)
        ):
            gone += removed
        if gone.total:
            logger.info("%s removed, received before %s", gone, f"{before:%Y-%m-%d %H:%M} UTC")
        return gone

    def pack(self) -> int:
        """Compress old bodies; return the bytes it saved. Raises `StorageError`."""
        from .vacuum import pack_older

        if not self._packed_after:
            return 0
        before = self._now() - self._packed_after
        return sum(self._unhurried(pack_older(self._reader, self._writer.run, before=before)))

    def _unhurried(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batch after batch, with a rest after each, until all is done or closing."""
        began = time.perf_counter()
        for batch in batches:
            yield batch
            if self._closing.wait(self._rest_s(time.perf_counter() - began)):
                break
            began = time.perf_counter()

    def _run(self) -> None:
        wait_s = FIRST_S
        while not self._closing.wait(wait_s):
            wait_s = EVERY_S
            try:
                if self._is_ours():
                    self.tidy()
                    self.pack()
            except Exception as error:  # whatever it is: the thread must live
                logger.error(
                    "the call log is not tidied for another hour: %s", describe_failure(error)
                )

    def _rest_s(self, took_s: float) -> float:
        return max(REST * took_s, REST_IN_FLOOD_S if self._writer.is_flooded else 0.0)

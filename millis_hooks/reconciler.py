"""Reconciles with Millis' call logs now and then, on a thread inside the service."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from .exceptions import MillisApiError
from .failures import describe_failure
from .reconcile import Reconciliation

logger = logging.getLogger("millis_hooks.reconcile")

#: After a start there is other work to do first, for so many seconds; and after as many more, one
#: process of several sees that it is the one now.
FIRST_S = 30.0


class Reconciler:
    """Looks every `every_s` seconds, in the one process of several that `is_ours` says."""

    def __init__(
        self,
        prepare: Callable[[], Reconciliation],
        *,
        every_s: float,
        is_ours: Callable[[], bool],
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        """`prepare` makes each look; `on_filled` is called when ends were stored."""
        self._prepare = prepare
        self._every_s = every_s
        self._is_ours = is_ours
        self._on_filled = on_filled
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-reconcile", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Leave off, wherever it is; what is not fetched yet is the next time."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def look(self) -> None:
        """Look once, and say in the log what came of it; never raises."""
        try:
            reconciliation = self._prepare()
            found = await reconciliation.look(reconciliation.since())
        except MillisApiError as error:
            logger.warning("calls without an end wait for the next look: %s", error)
        except Exception as error:  # whatever it is: the thread must live
            failure = describe_failure(error)
            logger.error("calls without an end wait for the next look: %s", failure)
        else:
            if found.filled:
                logger.info("%d calls filled in from Millis' call logs", found.filled)
                self._on_filled()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._look_until_closed())

    async def _look_until_closed(self) -> None:
        looking = asyncio.create_task(self._look_now_and_then())
        await self._closing.wait()
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FIRST_S)
            if self._is_ours():
                await self.look()
                await asyncio.sleep(self._every_s)

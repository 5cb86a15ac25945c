"""Work with Millis' API beside the service, repeated on a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..exceptions import MillisApiError
from ..masking.error_report import describe_failure

logger = logging.getLogger("millis_hooks.millis_api")


class RepeatedWork:
    """Does `work` every `every_s` seconds in the process where `is_ours` returns True.

    A failure changes nothing. Those of Millis' API are logged once until the next success.
    """

    def __init__(
        self,
        work: Callable[[], Awaitable[None]],
        *,
        name: str,
        title: str,
        first_s: float,
        every_s: float,
        is_ours: Callable[[], bool] = lambda: True,
    ) -> None:
        """Name the thread `name`, and the work `title` in logs.

        `first_s` are seconds before the work is done first, and between looks whether it is ours.
        """
        self._work = work
        self._title = title
        self._first_s = first_s
        self._every_s = every_s
        self._is_ours = is_ours
        self._has_failed = False
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def close(self) -> None:
        """Cancel the work, and wait until it has ended."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def do_once(self) -> None:
        """Do the work once; never raises."""
        try:
            await self._work()
        except MillisApiError as error:
            self._log(logging.DEBUG if self._has_failed else logging.WARNING, error)
            self._has_failed = True
        except Exception as error:  # of any kind: the thread must continue
            self._log(logging.ERROR, describe_failure(error))
        else:
            self._has_failed = False

    def _log(self, level: int, failure: object) -> None:
        logger.log(level, "%s failed, and is repeated later: %s", self._title, failure)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._repeat_until_closed())

    async def _repeat_until_closed(self) -> None:
        repeating = asyncio.create_task(self._repeat())
        await self._closing.wait()
        repeating.cancel()
        with suppress(asyncio.CancelledError):
            await repeating

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(self._first_s)
            if self._is_ours():
                await self.do_once()
                await asyncio.sleep(self._every_s)

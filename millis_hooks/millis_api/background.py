"""Work with Millis' API beside the service: a thread with an event loop, and what it does there."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from ..exceptions import MillisApiError
from ..masking.error_report import describe_failure

logger = logging.getLogger("millis_hooks.millis_api")


class LoopThread:
    """Runs one coroutine on a thread of its own until it is closed."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        self._work = work
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

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._work_until_closed())

    async def _work_until_closed(self) -> None:
        working = asyncio.create_task(self._work())
        await self._closing.wait()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working


#: Seconds before names of agents are fetched first, and between two times.
_FIRST_S = 2.0
_EVERY_S = 600.0


class AgentNameFetcher:
    """Fetches the names that agents have at Millis, on a thread, every ten minutes.

    A failure changes nothing, and is logged once until the next success.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[dict[str, str]]],
        on_names: Callable[[dict[str, str]], None],
    ) -> None:
        """Call `on_names`, on the thread, with the names."""
        self._fetch = fetch
        self._on_names = on_names
        self._has_failed = False
        self._thread = LoopThread(self._fetch_repeatedly, name="millis-hooks-agents")
        self.start, self.close = self._thread.start, self._thread.close

    async def fetch(self) -> None:
        """Fetch once; never raises."""
        try:
            self._on_names(await self._fetch())
        except MillisApiError as error:
            self._log(str(error))
        except Exception as error:  # of any kind: the thread must go on
            self._log(str(describe_failure(error)))
        else:
            self._has_failed = False

    def _log(self, failure: str) -> None:
        level = logging.DEBUG if self._has_failed else logging.WARNING
        logger.log(level, "names of agents could not be fetched, and are later: %s", failure)
        self._has_failed = True

    async def _fetch_repeatedly(self) -> None:
        await asyncio.sleep(_FIRST_S)
        while True:
            await self.fetch()
            await asyncio.sleep(_EVERY_S)

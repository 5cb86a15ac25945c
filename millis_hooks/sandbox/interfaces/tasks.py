"""Tasks that are ended together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and return when they have ended; what they raise is nobody's any more."""
    ending = set(tasks)
    for task in ending:
        task.cancel()
    if ending:
        # Not gather: cancelled itself, it would forget who cancelled it.
        await asyncio.wait(ending)
    for task in ending:
        if not task.cancelled():
            task.exception()

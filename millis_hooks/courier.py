"""Brings callbacks from one event loop to another without waking it for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

#: Turns of the sending loop that a bag stays open while bags are shared. Turns with nothing to wait
#: for take microseconds, and in a flood each brings more to carry.
TURNS = 3


class Courier:
    """Brings callbacks from one loop to another, in a flood those of a few turns together.

    Waking a thread costs several times what a callback does. Other threads may send too; their
    callbacks go alone.
    """

    def __init__(
        self, origin: asyncio.AbstractEventLoop, target: asyncio.AbstractEventLoop
    ) -> None:
        self._origin = origin
        self.target = target
        self._bag: list[Callable[[], object]] = []
        self._turns = 1

    def send(self, callback: Callable[..., object], *args: object) -> None:
        """Have `callback` called on the target's thread, soon."""
        if _running_loop() is not self._origin:
            self._hand_over(partial(callback, *args))
            return
        self._bag.append(partial(callback, *args))
        if len(self._bag) == 1:
            self._origin.call_soon(self._empty_bag, self._turns)

    def _empty_bag(self, turns: int) -> None:
        if turns > 1:
            self._origin.call_soon(self._empty_bag, turns - 1)
            return
        bag, self._bag = self._bag, []
        self._turns = TURNS if len(bag) > 1 else 1
        self._hand_over(partial(_call_all, bag))

    def _hand_over(self, callback: Callable[[], object]) -> None:
        # A handler may come back after the loop it was asked from has ended.
        with suppress(RuntimeError):
            self.target.call_soon_threadsafe(callback)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _call_all(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        callback()

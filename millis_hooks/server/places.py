"""The places for connections. A new connection always gets one: when all are taken, the connection
that has waited longest for its peer is closed. One that is being answered is never closed for
another.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

logger = logging.getLogger("millis_hooks.server")

#: How often the log says that connections are closed to make room for others.
_SAY_EVERY_S = 60.0


@dataclass(slots=True, eq=False)
class Place:
    """The place of one connection. `network` is the network of its client; None is not counted.

    `close` is called to make room for another connection.
    """

    network: str | None
    close: Callable[[], None]
    brought_secret: bool = False
    is_other: bool = False  # holds a request that is not for a webhook


class ConnectionPlaces:
    """The places of one server, `kept` of them for the webhooks.

    One network gets at most a tenth of the places for connections that have brought no secret.
    """

    def __init__(self, most: int, *, kept: int) -> None:
        self._most = most
        self._most_of_one = max(most // 10, 1)
        self._most_others = most - min(kept, most // 10)
        self._taken: set[Place] = set()
        # Those whose peer has to act, longest first: without a secret, and with one.
        self._strangers: dict[Place, None] = {}
        self._with_secret: dict[Place, None] = {}
        self._of_network: Counter[str] = Counter()
        self._others = 0
        self._said_at: float | None = None

    def take(self, place: Place, occupied: int) -> bool:
        """Give `place` to a new connection; False if all others are being answered.

        `occupied` counts it, and websockets too, which have no place here.
        """
        network = place.network
        if network is not None and self._of_network[network] >= self._most_of_one:
            is_there = self._make_room(
                lambda other: other.network == network and not other.brought_secret
            )
        else:
            is_there = occupied <= self._most or self._make_room()
        if is_there:
            self._taken.add(place)
            self._count(place, 1)
            self.wait(place)
        return is_there

    def begin_other(self, place: Place, occupied: int) -> bool:
        """Begin a request that is not for a webhook; False if others have all places there are."""
        if not place.is_other:
            websockets = occupied - len(self._taken)
            has_room = self._others + websockets < self._most_others
            if not has_room and not self._make_room(lambda other: other.is_other):
                return False
            place.is_other = True
            self._others += 1
        return True

    def end_other(self, place: Place) -> None:
        """End such a request, if one was begun."""
        self._others -= place.is_other
        place.is_other = False

    def wait(self, place: Place) -> None:
        """Note that from now on the peer has to act."""
        self.work(place)
        if place in self._taken:
            (self._with_secret if place.brought_secret else self._strangers)[place] = None

    def work(self, place: Place) -> None:
        """Note that the peer is being answered."""
        self._strangers.pop(place, None)
        self._with_secret.pop(place, None)

    def bring_secret(self, place: Place) -> None:
        """Note that the peer is one of those the service is for."""
        if place.brought_secret or place not in self._taken:
            return
        self._count(place, -1)
        place.brought_secret = True
        if place in self._strangers:
            self.wait(place)

    def free(self, place: Place) -> None:
        """Take the place back; once is enough."""
        if place in self._taken:
            self._taken.discard(place)
            self._count(place, -1)
            self.work(place)
            self.end_other(place)

    def _make_room(self, is_meant: Callable[[Place], bool] = lambda place: True) -> bool:
        """Close the one that waits longest of those meant; False if there is none."""
        waiting = chain(self._strangers, self._with_secret)
        longest = next((place for place in waiting if is_meant(place)), None)
        if longest is None:
            return False
        self._say()
        self.free(longest)
        longest.close()
        return True

    def _say(self) -> None:
        now = time.monotonic()
        if self._said_at is None or now - self._said_at >= _SAY_EVERY_S:
            self._said_at = now
            logger.warning(
                "connections are closed to make room for new ones: %d are open", len(self._taken)
            )

    def _count(self, place: Place, change: int) -> None:
        if place.network is None or place.brought_secret:
            return
        self._of_network[place.network] += change
        if not self._of_network[place.network]:
            del self._of_network[place.network]

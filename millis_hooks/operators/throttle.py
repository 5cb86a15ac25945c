"""Slows down guessing, and locks nobody out.

Wrong passwords use up tries: those of the browser that is known to the name, else those of the
address and those of the name. Tries come back one by one with time, and by nothing else: a right
password costs none and brings none back, so nobody guesses faster by signing in between. A browser
that has signed in as this name before shares its tries with nobody, so no stranger can use them up.

The counts are in the memory of one process: each replica has its own, and a restart forgets them.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: Whose tries are counted: those of a known browser, a session, an address or a name.
Kind: TypeAlias = Literal["browser", "session", "address", "name"]
Key: TypeAlias = tuple[Kind, str]

#: How many wrong passwords are looked at without a wait.
_FREE: Mapping[Kind, int] = {"browser": 5, "session": 5, "address": 5, "name": 50}
#: How long it takes until one try comes back.
PAUSE = timedelta(seconds=1)
#: Of each kind so many keys are remembered, and so many wrong passwords.
_REMEMBERED = 4096
#: So many passwords are remembered that had to wait: half a minute of guessing on many connections.
_WAITING = 16_384


class Throttle:
    """Counts tries by key, in bounded memory.

    Beside its free tries each key has one more, for a password that had to wait, comes again, and
    was not wrong lately. An operator comes again with the same password; who guesses has a new one
    each time, or one that was wrong.
    """

    def __init__(self) -> None:
        #: When each key will have all its tries back.
        self._whole_at: Mapping[Kind, OrderedDict[str, datetime]] = {
            kind: OrderedDict() for kind in _FREE
        }
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: OrderedDict[bytes, None] = OrderedDict()
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()

    def wait_s(self, keys: Sequence[Key], guess: str, now: datetime) -> int:
        """Return the seconds until `guess` may be looked at, 0 for at once."""
        with self._lock:
            return self._wait_s(keys, guess, now)

    def is_slow(self, key: Key, now: datetime) -> bool:
        """Whether a new password has to wait for this key."""
        with self._lock:
            return self._debt(key, now) > PAUSE * (_FREE[key[0]] - 1)

    def take(self, keys: Sequence[Key], guess: str, now: datetime) -> int:
        """Use up one try of each key and return 0; or none, and the seconds to wait."""
        with self._lock:
            wait_s = self._wait_s(keys, guess, now)
            if not wait_s:
                for key in keys:
                    self._change(key, now, PAUSE)
            return wait_s

    def give_back(self, keys: Sequence[Key], now: datetime) -> None:
        """Take back what `take` used up: the password was right, or was not looked at."""
        with self._lock:
            for key in keys:
                self._change(key, now, -PAUSE)

    def note_wrong(self, guess: str) -> None:
        """Remember that this was looked at, and wrong."""
        with self._lock:
            _remember(self._wrong, self._digest(guess), None)

    def _wait_s(self, keys: Sequence[Key], guess: str, now: datetime) -> int:
        digest = self._digest(guess)
        wanted = 1 if digest in self._waiting and digest not in self._wrong else 2
        waits = [
            self._debt((kind, who), now) - PAUSE * (_FREE[kind] + 1 - wanted) for kind, who in keys
        ]
        wait_s = max(math.ceil(max(waits).total_seconds()), 0)
        if wait_s:
            _remember(self._waiting, digest, None, most=_WAITING)
        return wait_s

    def _debt(self, key: Key, now: datetime) -> timedelta:
        """Return how long it takes until all tries are back.

        None can take longer than all of them do: the clock has been set back then.
        """
        kind, who = key
        debt = self._whole_at[kind].get(who, now) - now
        return debt if timedelta() < debt <= PAUSE * (_FREE[kind] + 1) else timedelta()

    def _change(self, key: Key, now: datetime, by: timedelta) -> None:
        kind, who = key
        _remember(self._whole_at[kind], who, now + self._debt(key, now) + by)

    def _digest(self, guess: str) -> bytes:
        data = guess.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest()


def _remember(kept: OrderedDict[K, V], key: K, value: V, *, most: int = _REMEMBERED) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)

"""The throttle of wrong passwords, and cookies of known browsers.

The throttle slows down guessing and excludes no operator. Wrong passwords use up tries: those of a
known browser, else those of the address and those of the name. One try comes back each second, and
in no other way: a right password costs none and brings none back, so signing in between guesses
does not speed them up. Nobody else uses up the tries of a known browser. The counts are in the
memory of one process: each replica has its own, and a restart forgets them.

A known browser has signed in as a name before: its cookie, a random id signed for that name, gives
no access, and only separates its wrong passwords from those of others. See "device cookies",
https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies
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

from itsdangerous import BadSignature, Signer

#: How long a browser stays known after it signed in.
KNOWN_FOR_S = 365 * 24 * 3600


def browser_cookie(key: bytes, name: str) -> str:
    """Return a new cookie for a browser that signed in as `name`.

    `key` is secret and changes with the password: an old password gives no valid cookies.
    """
    return _signer(key, name).sign(secrets.token_urlsafe(16)).decode()


def browser_id(key: bytes, name: str | None, cookie: str | None) -> str | None:
    """Return the id of a browser, None if it has not signed in as `name`."""
    if not name or not cookie:
        return None
    try:
        return _signer(key, name).unsign(cookie.encode("utf-8", "replace")).decode()
    except BadSignature:
        return None


def _signer(key: bytes, name: str) -> Signer:
    return Signer(key, salt=f"millis_hooks.browser.{name}", digest_method=hashlib.sha256)


K = TypeVar("K")
V = TypeVar("V")

#: Whose tries are counted: those of a known browser, a session, an address or a name.
Kind: TypeAlias = Literal["browser", "session", "address", "name"]
Key: TypeAlias = tuple[Kind, str]

#: How many wrong passwords are looked at without a wait.
_FREE: Mapping[Kind, int] = {"browser": 5, "session": 5, "address": 5, "name": 50}
#: How long it takes until one try comes back.
PAUSE = timedelta(seconds=1)
#: The most keys that are remembered of each kind, and the most wrong passwords.
_REMEMBERED = 4096
#: So many passwords are remembered that had to wait: half a minute of guessing on many connections.
_WAITING = 16_384


class Throttle:
    """Counts tries by key, in bounded memory.

    Beside its free tries each key has one more, for a password that had to wait, is sent again, and
    was not wrong lately. An operator sends the same password again; an attacker sends a new one
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
        tries = 1 if digest in self._waiting and digest not in self._wrong else 2
        waits = [self._debt(key, now) - PAUSE * (_FREE[key[0]] + 1 - tries) for key in keys]
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

"""Sessions of operators, cookies of known browsers, and the throttle of wrong passwords.

A session is stored under the hash of its cookie's id; functions with a connection work in the
caller's transaction. A known browser has signed in as a name before: its cookie, a random id signed
for that name, gives no access, and only separates its wrong passwords from those of others. See
"device cookies",
https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies

The throttle slows down guessing and excludes no operator. Wrong passwords use up tries: those of a
known browser, else those of the address and those of the name. One try comes back each second, and
in no other way: a right password costs none and brings none back, so signing in between guesses
does not speed them up. Nobody else uses up the tries of a known browser. The counts are in the
memory of one process: each replica has its own, and a restart forgets them.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar

from itsdangerous import BadSignature, Signer
from sqlalchemy import Connection, Row, delete, insert, select, update

from ..call_log.sanitize import clean_text
from ..call_log.tables import operator_sessions

#: The time of last use is written at most so often.
SEEN_EVERY = timedelta(minutes=1)
_MOST_LISTED = 200
_BROWSER_CHARS = 300


@dataclass(frozen=True, slots=True)
class Lasts:
    """How long sessions last: `idle` without a request unless kept, and at most `longest`."""

    idle: timedelta = timedelta(hours=12)
    longest: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Session:
    """A session for display; its `key` is not the value of its cookie."""

    key: str
    operator: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime
    client: str | None
    browser: str | None


_COLUMNS = (
    operator_sessions.c.id_hash.label("key"),
    *(operator_sessions.c[name] for name in tuple(Session.__dataclass_fields__)[1:]),
)


def start(
    connection: Connection,
    operator: str,
    *,
    now: datetime,
    lasts: Lasts,
    keep: bool,
    client: str,
    browser: str,
) -> str:
    """Start a session, delete expired ones, and return its id, which is not stored."""
    connection.execute(delete(operator_sessions).where(operator_sessions.c.expires_at <= now))
    session_id = secrets.token_urlsafe(32)
    ends_at = now + lasts.longest
    row = {
        "id_hash": key_of(session_id),
        "operator": operator,
        "created_at": now,
        "last_seen_at": now,
        "confirmed_at": now,
        "expires_at": ends_at if keep else min(now + lasts.idle, ends_at),
        "ends_at": ends_at,
        "idle_s": None if keep else int(lasts.idle.total_seconds()),
        "client": client or None,
        "browser": clean_text(browser[:_BROWSER_CHARS]) or None,
    }
    connection.execute(insert(operator_sessions), row)
    return session_id


def find(connection: Connection, key: str, now: datetime) -> Row[Any] | None:
    """Return the row of a session that has not expired."""
    session = select(operator_sessions).where(
        operator_sessions.c.id_hash == key, operator_sessions.c.expires_at > now
    )
    return connection.execute(session).one_or_none()


def see(connection: Connection, session: Row[Any], now: datetime) -> None:
    """Note that a session is in use, and extend it."""
    changes: dict[str, datetime] = {"last_seen_at": now}
    if session.idle_s is not None and session.ends_at is not None:
        changes["expires_at"] = min(now + timedelta(seconds=session.idle_s), session.ends_at)
    _change(connection, session.id_hash, changes)


def confirm(connection: Connection, key: str, now: datetime) -> None:
    """Note that the password was given once more."""
    _change(connection, key, {"confirmed_at": now})


def end(connection: Connection, key: str, *, operator: str | None = None) -> str | None:
    """End a session, of `operator` if given; return its operator, None if there is none."""
    ended = delete(operator_sessions).where(operator_sessions.c.id_hash == key)
    if operator is not None:
        ended = ended.where(operator_sessions.c.operator == operator)
    return connection.scalar(ended.returning(operator_sessions.c.operator))


def end_all(connection: Connection, operator: str) -> int:
    """End every session of an operator and return how many there were."""
    ended = delete(operator_sessions).where(operator_sessions.c.operator == operator)
    return connection.execute(ended).rowcount


def listed(
    connection: Connection, now: datetime, *, operator: str | None = None
) -> tuple[Session, ...]:
    """Return sessions that have not expired, of one operator or of all, the last used first."""
    rows = select(*_COLUMNS).where(operator_sessions.c.expires_at > now)
    if operator is not None:
        rows = rows.where(operator_sessions.c.operator == operator)
    newest = rows.order_by(operator_sessions.c.last_seen_at.desc()).limit(_MOST_LISTED)
    return tuple(Session(*row) for row in connection.execute(newest))


def key_of(session_id: str) -> str:
    """Return the key that a session is stored under."""
    return hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()


def _change(connection: Connection, key: str, columns: dict[str, datetime]) -> None:
    changed = update(operator_sessions).where(operator_sessions.c.id_hash == key)
    connection.execute(changed.values(columns))


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
#: Of each kind so many keys are remembered, and so many wrong passwords.
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

"""Who may look: signs the operator in and out of the dashboard, and slows guessing down.

A session lives in the call log under the hash of its id; the browser holds the id, signed. Signing
out, or a new password, therefore ends a session whoever still has its cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from itsdangerous import BadData, URLSafeSerializer
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from .call_log.tables import operator_sessions
from .exceptions import StorageError

OPERATOR = "admin"
SESSION_LASTS = timedelta(hours=12)
KEPT_SESSION_LASTS = timedelta(days=30)

_FREE_FAILURES = 5
_LONGEST_WAIT_S = 60
_FORGOTTEN_AFTER = timedelta(minutes=15)
_CLIENTS_REMEMBERED = 4096

T = TypeVar("T")


class Write(Protocol):
    """Runs a function in a transaction of the call log's one writer, and waits for the commit."""

    def __call__(self, work: Callable[[Connection], T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody who is signed in."""

    name: str


@dataclass(frozen=True, slots=True)
class SignedIn:
    """The cookie to hand out; without `max_age_s` it goes when the browser closes."""

    cookie: str
    max_age_s: int | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Not signed in. `retry_after_s` above 0 means that the password was not even looked at."""

    retry_after_s: int = 0


class Operators:
    """Sessions of the one operator, `admin`. Blocks; raises StorageError."""

    def __init__(
        self,
        engine: Engine,
        *,
        write: Write,
        signing_key: bytes,
        password: SecretStr | str | None,
        now: Callable[[], datetime],
    ) -> None:
        plain = password.get_secret_value() if isinstance(password, SecretStr) else password
        self._password = _digest(plain) if plain else None
        # With the password in the key, a new password ends every session of the old one.
        self._serializer = URLSafeSerializer(
            hmac.digest(signing_key, self._password or b"", "sha256"),
            salt="millis_hooks.operator",
        )
        self._engine = engine
        self._write = write
        self._now = now
        self._guesses = Guesses()

    @property
    def has_password(self) -> bool:
        """Whether anybody can sign in at all."""
        return self._password is not None

    def log_in(
        self, username: str, password: str, *, client: str = "", keep: bool = False
    ) -> SignedIn | Refused:
        """Start a session of 12 hours, or of 30 days to `keep`.

        `client` is whom to slow down after several wrong passwords: the address of the peer.
        """
        now = self._now()
        if wait_s := self._guesses.wait_s(client, now):
            return Refused(wait_s)
        if not self._is_right(username, password):
            self._guesses.add(client, now)
            return Refused()
        self._guesses.forget(client)
        lasts = KEPT_SESSION_LASTS if keep else SESSION_LASTS
        return SignedIn(self._start(now, now + lasts), int(lasts.total_seconds()) if keep else None)

    def resume(self, cookie: str | None) -> Operator | None:
        """Return the operator whose cookie this is, or None if the session is over or forged."""
        session_id = self._session_id(cookie)
        if session_id is None or self._password is None:
            return None
        session = select(operator_sessions.c.operator).where(
            operator_sessions.c.id_hash == _id_hash(session_id),
            operator_sessions.c.expires_at > self._now(),
        )
        try:
            with self._engine.connect() as connection:
                name = connection.scalar(session)
        except SQLAlchemyError as error:
            raise StorageError("the operator's session could not be read") from error
        return None if name is None else Operator(name)

    def log_out(self, cookie: str | None) -> None:
        """End the session of this cookie, wherever else the cookie is kept."""
        session_id = self._session_id(cookie)
        if session_id is not None:
            ended = delete(operator_sessions).where(
                operator_sessions.c.id_hash == _id_hash(session_id)
            )
            self._write(lambda connection: connection.execute(ended))

    def _is_right(self, username: str, password: str) -> bool:
        # Both are always compared, as digests: the time taken says nothing about either.
        right_name = hmac.compare_digest(_digest(username), _digest(OPERATOR))
        right_password = hmac.compare_digest(_digest(password), self._password or b"")
        return right_name and right_password

    def _start(self, now: datetime, expires_at: datetime) -> str:
        session_id = secrets.token_urlsafe(32)
        row = {
            "id_hash": _id_hash(session_id),
            "operator": OPERATOR,
            "created_at": now,
            "last_seen_at": now,
            "expires_at": expires_at,
        }

        def start(connection: Connection) -> None:
            connection.execute(
                delete(operator_sessions).where(operator_sessions.c.expires_at <= now)
            )
            connection.execute(insert(operator_sessions).values(row))

        self._write(start)
        return str(self._serializer.dumps(session_id))

    def _session_id(self, cookie: str | None) -> str | None:
        if not cookie:
            return None
        try:
            session_id = self._serializer.loads(cookie.encode("utf-8", "replace"))
        except BadData:
            return None
        return session_id if isinstance(session_id, str) else None


class Guesses:
    """Counts wrong passwords by client, in memory, and says how long the next guess must wait.

    Nobody is locked out: the wait doubles up to a minute, and is forgotten after a quarter of an
    hour or with the right password.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, datetime]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, client: str, now: datetime) -> int:
        """Return the seconds until this client may try again, 0 for at once."""
        with self._lock:
            count, last = self._recent(client, now)
        if count < _FREE_FAILURES:
            return 0
        pause_s = min(1 << (count - _FREE_FAILURES + 1), _LONGEST_WAIT_S)
        return max(math.ceil(pause_s - (now - last).total_seconds()), 0)

    def add(self, client: str, now: datetime) -> None:
        """Count one wrong password."""
        with self._lock:
            count, _ = self._recent(client, now)
            self._failures[_network(client)] = (count + 1, now)
            self._failures.move_to_end(_network(client))
            if len(self._failures) > _CLIENTS_REMEMBERED:
                self._failures.popitem(last=False)

    def forget(self, client: str) -> None:
        """Forget what this client got wrong."""
        with self._lock:
            self._failures.pop(_network(client), None)

    def _recent(self, client: str, now: datetime) -> tuple[int, datetime]:
        count, last = self._failures.get(_network(client), (0, now))
        return (0, now) if now - last > _FORGOTTEN_AFTER else (count, last)


def _network(client: str) -> str:
    """One subscriber has a whole /64 of IPv6 addresses to guess from."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if address.version == 4:
        return client
    return str(ipaddress.ip_network((address.packed, 64), strict=False))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _id_hash(session_id: str) -> str:
    return hashlib.sha256(session_id.encode()).hexdigest()

"""Operators of the dashboard: accounts, sign-in, sessions, and the audit log.

All of it is kept in the call log, so every process that serves the log knows the same. A session is
stored under the hash of its id. The browser holds the id, signed with a key that the operator's
password is part of. Signing out, or a new password, therefore ends a session for every copy of its
cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from itsdangerous import Signer
from pydantic import SecretStr
from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, insert, select, update

from ..call_log.dialects import reading_errors
from ..call_log.sanitize import clean_text
from ..call_log.tables import operator_sessions
from ..call_log.writer import Write
from ..environment.addresses import network_of
from ..exceptions import StorageError
from . import accounts, audit
from .accounts import OPERATOR as OPERATOR
from .accounts import TOKEN_PREFIX as TOKEN_PREFIX
from .accounts import Account as Account
from .accounts import Credential, credential_of_setting, is_right
from .accounts import Operator as Operator
from .accounts import ReadToken as ReadToken
from .accounts import Role as Role
from .audit import COMMAND_LINE as COMMAND_LINE
from .audit import Action as Action
from .audit import AuditEntry as AuditEntry
from .throttle import KNOWN_FOR_S as KNOWN_FOR_S
from .throttle import Key as Key
from .throttle import Throttle, browser_cookie, browser_id

T = TypeVar("T")

#: The time of last use is written at most so often.
SEEN_EVERY = timedelta(minutes=1)
_MOST_LISTED = 200
_BROWSER_CHARS = 300
_sessions = operator_sessions.c


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
    _sessions.id_hash.label("key"),
    *(_sessions[name] for name in tuple(Session.__dataclass_fields__)[1:]),
)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """The cookie to set; without `max_age_s` it lasts until the browser closes.

    `known_browser` is a cookie that outlives the session: tries of this browser for this name are
    counted separately from now on.
    """

    cookie: str
    max_age_s: int | None
    known_browser: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not signed in. With `retry_after_s` above 0 the password was not checked."""

    retry_after_s: int = 0


class Operators:
    """Accounts and sessions: `admin`, whose password is a setting, and the named operators.

    Every method blocks and raises StorageError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        write: Write,
        signing_key: bytes,
        password: SecretStr | str | None,
        now: Callable[[], datetime],
        lasts: Lasts | None = None,
    ) -> None:
        self._engine = engine
        self._write = write
        self._signing_key = signing_key
        self._admin = credential_of_setting(password)
        self._now = now
        self.lasts = lasts or Lasts()
        self._throttle = Throttle()
        self._hashing = threading.Lock()

    @property
    def has_password(self) -> bool:
        """Whether there is an operator who can sign in."""
        return self._admin is not None or self.are_named

    @property
    def are_named(self) -> bool:
        """Whether there are operators besides `admin`."""
        with self._reading() as connection:
            return accounts.are_any(connection)

    def turn(
        self, username: str, password: str, *, client: str = "", known_browser: str | None = None
    ) -> Key | Refused:
        """Return whether a password may be checked now, one at a time for each key.

        The key is that of a known browser, else that of the address. Quick, as nothing is hashed.
        """
        name = accounts.clean_name(username)
        keys = self._keys(name, client, known_browser)
        if wait_s := self._throttle.wait_s(keys, _guess(name, password), self._now()):
            return Refused(wait_s)
        return keys[0]

    def log_in(
        self,
        username: str,
        password: str,
        *,
        client: str = "",
        browser: str = "",
        keep: bool = False,
        instead_of: str | None = None,
        known_browser: str | None = None,
    ) -> SignedIn | Refused:
        """Start a session, to `keep` when the browser closes; end the session `instead_of`.

        Wrong passwords are counted by `client`, the address of the peer, and by `known_browser`,
        the cookie of an earlier sign-in.
        """
        now = self._now()
        name = accounts.clean_name(username)
        keys = self._keys(name, client, known_browser)
        if refused := self._check(name, password, keys, client, now):
            return refused
        name = str(name)
        replaced = self._verified(instead_of)
        session_id = secrets.token_urlsafe(32)
        row = self._row(session_id, name, now, keep=keep, client=client, browser=browser)

        def start(connection: Connection) -> None:
            if replaced is not None:
                _end(connection, _sessions.id_hash == replaced[0].id_hash)
            _end(connection, _sessions.expires_at <= now)
            self._note(connection, name, "sign_in", client=client)
            connection.execute(insert(operator_sessions), row)

        self._write(start)
        credential = self._credential(name)
        if credential is None:  # removed while they signed in
            return Refused()
        cookie = self._signer(credential).sign(session_id).decode()
        max_age_s = int(self.lasts.longest.total_seconds()) if keep else None
        return SignedIn(cookie, max_age_s, browser_cookie(self._key(credential), name))

    def _row(
        self, session_id: str, name: str, now: datetime, *, keep: bool, client: str, browser: str
    ) -> dict[str, Any]:
        idle, ends_at = self.lasts.idle, now + self.lasts.longest
        return {
            "id_hash": _key_of(session_id),
            "operator": name,
            "created_at": now,
            "last_seen_at": now,
            "confirmed_at": now,
            "expires_at": ends_at if keep else min(now + idle, ends_at),
            "ends_at": ends_at,
            "idle_s": None if keep else int(idle.total_seconds()),
            "client": client or None,
            "browser": clean_text(browser[:_BROWSER_CHARS]) or None,
        }

    def confirm(self, operator: Operator, password: str, *, client: str = "") -> Refused | None:
        """Check the password of a signed-in operator once more; None if it is right."""
        now = self._now()
        keys: list[Key] = [("session", operator.session)]
        if refused := self._check(operator.name, password, keys, client, now):
            return refused
        self._write(lambda connection: _change(connection, operator.session, confirmed_at=now))
        return None

    def resume(self, cookie: str | None, *, is_use: bool = True) -> Operator | None:
        """Return the operator of a cookie, or None if the session is over or forged.

        A session ends after some time without use; this request counts as one if it `is_use`.
        """
        verified = self._verified(cookie)
        if verified is None:
            return None
        (session, credential), now = verified, self._now()
        if is_use and now - session.last_seen_at >= SEEN_EVERY:
            changes = {"last_seen_at": now}
            if session.idle_s is not None and session.ends_at is not None:
                idle = timedelta(seconds=session.idle_s)
                changes["expires_at"] = min(now + idle, session.ends_at)
            with suppress(StorageError):  # pages are shown also while nothing can be written
                self._write(lambda connection: _change(connection, session.id_hash, **changes))
        return Operator(session.operator, credential.role, session.id_hash, session.confirmed_at)

    def bearer(self, token: str, *, client: str = "") -> Operator | Refused:
        """Return who reads with a token. Wrong ones are slowed down as passwords are.

        A right one never waits: it cannot be guessed, and others may share the address.
        """
        now = self._now()
        keys: list[Key] = [("address", network_of(client))]
        with self._reading() as connection:
            owner = accounts.find_token(connection, token)
        if owner is not None:
            self._note_use(owner, now)
            return Operator(f"token {owner.name}", "view", is_token=True)
        guess = _guess(None, token)
        if wait_s := self._throttle.take(keys, guess, now):
            return Refused(wait_s)
        return self._refuse(None, guess, client, now)

    def read_tokens(self) -> tuple[ReadToken, ...]:
        """Return the read tokens, by name."""
        with self._reading() as connection:
            return accounts.list_tokens(connection)

    def log_out(self, cookie: str | None, *, client: str = "") -> None:
        """End the session of a cookie."""
        verified = self._verified(cookie)
        if verified is None:
            return
        session, _ = verified

        def leave(connection: Connection) -> None:
            _end(connection, _sessions.id_hash == session.id_hash)
            self._note(connection, session.operator, "sign_out", client=client)

        self._write(leave)

    def end_session(self, by: Operator, key: str, *, client: str = "") -> bool:
        """End a session, with the role `view` only an own one. False if there is none."""
        own = () if by.may_operate else (_sessions.operator == by.name,)

        def end(connection: Connection) -> bool:
            ended = _end(connection, _sessions.id_hash == key, *own)
            for operator in ended:
                self._note(connection, by.name, "end_session", subject=operator, client=client)
            return bool(ended)

        return self._write(end)

    def end_sessions(self, by: Operator, *, client: str = "") -> None:
        """End all sessions of an operator."""

        def end(connection: Connection) -> None:
            _end(connection, _sessions.operator == by.name)
            self._note(connection, by.name, "sign_out", subject="everywhere", client=client)

        self._write(end)

    def record(
        self, operator: Operator, action: Action, *, subject: str | None = None, client: str = ""
    ) -> int:
        """Add an entry to the audit log and return its id."""
        return self._write(
            lambda connection: self._note(
                connection, operator.name, action, subject=subject, client=client
            )
        )

    def _note(
        self,
        connection: Connection,
        operator: str,
        action: Action,
        *,
        subject: str | None = None,
        client: str,
    ) -> int:
        now = self._now()
        return audit.record(connection, operator, action, now=now, subject=subject, client=client)

    def sessions(self, to: Operator) -> tuple[Session, ...]:
        """Return the sessions that `to` may see: all for the role `operate`, else its own."""
        with self._reading() as connection:
            return self._listed(connection, _own(to))

    def _listed(self, connection: Connection, operator: str | None) -> tuple[Session, ...]:
        """Return sessions that have not expired, of one operator or of all, the last used first."""
        rows = select(*_COLUMNS).where(_sessions.expires_at > self._now())
        if operator is not None:
            rows = rows.where(_sessions.operator == operator)
        newest = rows.order_by(_sessions.last_seen_at.desc()).limit(_MOST_LISTED)
        return tuple(Session(*row) for row in connection.execute(newest))

    def audit_log(
        self, to: Operator, *, before: int | None = None, size: int
    ) -> tuple[AuditEntry, ...]:
        """Return the newest entries that `to` may see: all for the role `operate`, else its own."""
        with self._reading() as connection:
            return audit.listed(connection, operator=_own(to), before=before, size=size)

    def accounts(self) -> tuple[Account, ...]:
        """Return the accounts that can sign in."""
        with self._reading() as connection:
            named = accounts.listed(connection)
            admin = self._listed(connection, OPERATOR)
        if self._admin is None:
            return named
        seen_at = admin[0].last_seen_at if admin else None
        return (Account(OPERATOR, "operate", seen_at=seen_at), *named)

    def _note_use(self, token: ReadToken, now: datetime) -> None:
        if token.last_used_at is None or now - token.last_used_at >= SEEN_EVERY:
            with suppress(StorageError):  # it reads also while nothing can be written
                self._write(partial(accounts.note_use, name=token.name, now=now))

    def _check(
        self, name: str | None, password: str, keys: Sequence[Key], client: str, now: datetime
    ) -> Refused | None:
        """Return the refusal, None if the password is right."""
        guess = _guess(name, password)
        if wait_s := self._throttle.take(keys, guess, now):
            return Refused(wait_s)
        try:
            credential = self._credential(name) if name else None
            with self._hashing:  # one at a time: each takes 19 MiB
                was_right = is_right(credential, password)
        except StorageError:
            self._throttle.give_back(keys, now)
            raise
        if was_right:
            self._throttle.give_back(keys, now)
            return None
        return self._refuse(name if credential else None, guess, client, now)

    def _refuse(self, operator: str | None, guess: str, client: str, now: datetime) -> Refused:
        self._throttle.note_wrong(guess)
        with suppress(StorageError):  # not shown to the client
            self._write(partial(audit.record_refusal, operator=operator, now=now, client=client))
        return Refused()

    def _keys(self, name: str | None, client: str, known_browser: str | None) -> list[Key]:
        """Return the keys that tries are counted by, the place first.

        Wrong passwords for a name do not slow down the networks from which its operator recently
        signed in: guessing from many addresses is slowed down, and the operator is not.
        """
        credential = self._credential(name) if name and known_browser else None
        browser = credential and browser_id(self._key(credential), name, known_browser)
        if browser:
            return [("browser", browser)]
        address: Key = ("address", network_of(client))
        by_name: Key = ("name", name or "")
        if self._throttle.is_slow(by_name, self._now()):
            with self._reading() as connection:
                if audit.has_signed_in_from(connection, name or "", client):
                    return [address]
        return [address, by_name]

    def _verified(self, cookie: str | None) -> tuple[Row[Any], Credential] | None:
        """Return the session of a cookie and its operator's credential.

        None if the session is over or the signature is wrong.
        """
        session_id = (cookie or "").rpartition(".")[0]
        if not session_id:
            return None
        current = select(operator_sessions).where(
            _sessions.id_hash == _key_of(session_id), _sessions.expires_at > self._now()
        )
        with self._reading() as connection:
            session = connection.execute(current).one_or_none()
        credential = None if session is None else self._credential(session.operator)
        if session is None or credential is None:
            return None
        is_signed = self._signer(credential).validate((cookie or "").encode("utf-8", "replace"))
        return (session, credential) if is_signed else None

    def _credential(self, name: str) -> Credential | None:
        if name == OPERATOR:
            return self._admin
        with self._reading() as connection:
            account = accounts.find(connection, name)
        return None if account is None else Credential(*account, key=account[1].encode())

    def _signer(self, credential: Credential) -> Signer:
        key = self._key(credential)
        return Signer(key, salt="millis_hooks.operator", digest_method=hashlib.sha256)

    def _key(self, credential: Credential) -> bytes:
        """Return the key that signs cookies: a new password makes them invalid."""
        return hmac.digest(self._signing_key, credential.key, "sha256")

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with reading_errors("operators"), self._engine.connect() as connection:
            yield connection


def _guess(name: str | None, password: str) -> str:
    return f"{name}\0{password}"


def _own(operator: Operator) -> str | None:
    return None if operator.may_operate else operator.name


def _end(connection: Connection, *of_which: ColumnElement[bool]) -> list[str]:
    """End sessions, and return the operators whose they were."""
    ended = delete(operator_sessions).where(*of_which).returning(_sessions.operator)
    return list(connection.scalars(ended))


def _change(connection: Connection, key: str, **columns: datetime) -> None:
    connection.execute(update(operator_sessions).where(_sessions.id_hash == key).values(columns))


def _key_of(session_id: str) -> str:
    return hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()

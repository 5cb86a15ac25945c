"""Accounts of operators: names, roles, and passwords as argon2id hashes; and read tokens.

All functions with a connection work in the caller's transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from pydantic import SecretStr
from sqlalchemy import Connection, delete, exists, func, insert, select, update

from ..call_log.tables import operator_sessions, operators, read_tokens

if TYPE_CHECKING:
    from argon2 import PasswordHasher

#: `view` sees pages; `operate` also replays, reveals, exports and deletes.
Role: TypeAlias = Literal["view", "operate"]

#: For so long after the password was given, secrets may be revealed.
RECENT = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator who is signed in; two are equal if name and role are."""

    name: str
    role: Role = "operate"
    #: The key of the session, which is not the value of the cookie.
    session: str = field(default="", compare=False)
    #: When the password was last given.
    confirmed_at: datetime | None = field(default=None, compare=False)
    #: Whether this is a program with a read token, which may only read.
    is_token: bool = False

    @property
    def may_operate(self) -> bool:
        return self.may("operate")

    def may(self, role: Role) -> bool:
        """Tell whether this operator has the rights of the role."""
        return role == "view" or self.role == role

    def has_confirmed(self, now: datetime) -> bool:
        """Tell whether the password was given recently enough to reveal a secret."""
        return self.confirmed_at is not None and now - self.confirmed_at < RECENT


def hash_password(password: str) -> str:
    """Return the hash to keep, in the PHC string format. Takes about 25 ms and 19 MiB."""
    return _hasher().hash(_bytes_of(password))


def is_password(password_hash: str | None, password: str) -> bool:
    """Tell whether this is the password; takes the same time if there is none."""
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        _hasher().verify(password_hash or _dummy_hash(), _bytes_of(password))
    except (VerificationError, InvalidHashError):
        return False
    return password_hash is not None


def digest_of(password: str) -> bytes:
    """Return the digest by which a password of the settings is compared."""
    return hashlib.sha256(_bytes_of(password)).digest()


@dataclass(frozen=True, slots=True)
class Credential:
    """The credential of an operator; `key` is part of the key that signs its cookies.

    Without a hash, `key` is the digest of a password from the settings.
    """

    role: Role
    password_hash: str | None
    key: bytes


def credential_of_setting(password: SecretStr | str | None) -> Credential | None:
    """Return the credential of the operator whose password is a setting."""
    plain = password.get_secret_value() if isinstance(password, SecretStr) else password
    return Credential("operate", None, digest_of(plain)) if plain else None


def is_right(credential: Credential | None, password: str) -> bool:
    """Tell whether this is the password; takes the same time for every name, known or not."""
    is_hashed = is_password(credential.password_hash if credential else None, password)
    is_set = hmac.compare_digest(digest_of(password), credential.key if credential else b"")
    return is_hashed or (credential is not None and credential.password_hash is None and is_set)


def make_password() -> str:
    """Return a new random password."""
    return secrets.token_urlsafe(16)


@cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    # The smallest memory that OWASP recommends:
    # https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@cache
def _dummy_hash() -> str:
    return hash_password(secrets.token_hex())


def _bytes_of(password: str) -> bytes:
    # Keyboards produce an accented letter as one character or as two.
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


#: The name of the operator whose password is a setting.
OPERATOR = "admin"

_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Account:
    """An account, without the hash of its password; `seen_at` is None before the first sign-in."""

    name: str
    role: Role
    created_at: datetime | None = None
    seen_at: datetime | None = None


def clean_name(text: str) -> str | None:
    """Return the name in lower case, or None if it is not a valid name."""
    name = text.strip().lower()
    return name if _NAME.fullmatch(name) else None


def add(
    connection: Connection, name: str, *, role: Role, password_hash: str, now: datetime
) -> bool:
    """Add an operator; False if there is one of this name."""
    if name == OPERATOR or find(connection, name) is not None:
        return False
    row = {"name": name, "role": role, "password_hash": password_hash, "created_at": now}
    connection.execute(insert(operators), row)
    return True


def remove(connection: Connection, name: str) -> bool:
    """Remove an operator and end their sessions; False if there is none of this name."""
    _end_sessions(connection, name)
    removed = delete(operators).where(operators.c.name == name)
    return connection.execute(removed).rowcount > 0


def set_password(connection: Connection, name: str, password_hash: str) -> bool:
    """Change a password and end the sessions; False if there is no such operator."""
    _end_sessions(connection, name)
    return _change(connection, name, password_hash=password_hash)


def set_role(connection: Connection, name: str, role: Role) -> bool:
    """Change the role of an operator; False if there is no such operator."""
    return _change(connection, name, role=role)


def find(connection: Connection, name: str) -> tuple[Role, str] | None:
    """Return the role and the password's hash."""
    columns = select(operators.c.role, operators.c.password_hash)
    row = connection.execute(columns.where(operators.c.name == name)).one_or_none()
    return None if row is None else (cast("Role", row.role), row.password_hash)


def are_any(connection: Connection) -> bool:
    """Tell whether there are named operators."""
    return bool(connection.scalar(select(exists(select(operators.c.name)))))


def listed(connection: Connection) -> tuple[Account, ...]:
    """Return all named operators, by name, with the time a session of theirs was last used."""
    seen_at = (
        select(func.max(operator_sessions.c.last_seen_at))
        .where(operator_sessions.c.operator == operators.c.name)
        .scalar_subquery()
    )
    columns = (operators.c.name, operators.c.role, operators.c.created_at, seen_at)
    rows = connection.execute(select(*columns).order_by(operators.c.name))
    return tuple(Account(*row) for row in rows)


def _change(connection: Connection, name: str, **columns: str) -> bool:
    changed = update(operators).where(operators.c.name == name).values(columns)
    return connection.execute(changed).rowcount > 0


def _end_sessions(connection: Connection, name: str) -> None:
    connection.execute(delete(operator_sessions).where(operator_sessions.c.operator == name))


#: Every token begins with it, so that it is recognized in files, and in requests.
TOKEN_PREFIX = "mht_"


@dataclass(frozen=True, slots=True)
class ReadToken:
    """What a program reads the pages' JSON with; the token itself is not stored.

    `last_used_at` is to the minute, None if never.
    """

    name: str
    created_at: datetime
    last_used_at: datetime | None


_TOKEN_COLUMNS = tuple(read_tokens.c[name] for name in ReadToken.__dataclass_fields__)


def add_token(connection: Connection, name: str, *, now: datetime) -> str | None:
    """Add a token and return it, to be shown this once; None if there is one of this name."""
    if connection.scalar(select(read_tokens.c.name).where(read_tokens.c.name == name)):
        return None
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = {"name": name, "token_hash": _token_hash(token), "created_at": now}
    connection.execute(insert(read_tokens), row)
    return token


def revoke_token(connection: Connection, name: str) -> bool:
    """Delete a token; False if there is none of this name."""
    return connection.execute(delete(read_tokens).where(read_tokens.c.name == name)).rowcount > 0


def find_token(connection: Connection, token: str) -> ReadToken | None:
    """Return the token if it is one."""
    row = connection.execute(
        select(*_TOKEN_COLUMNS).where(read_tokens.c.token_hash == _token_hash(token))
    ).one_or_none()
    return None if row is None else ReadToken(*row)


def note_use(connection: Connection, name: str, now: datetime) -> None:
    """Note that a token is in use."""
    connection.execute(
        update(read_tokens).where(read_tokens.c.name == name).values(last_used_at=now)
    )


def list_tokens(connection: Connection) -> tuple[ReadToken, ...]:
    """Return all tokens, by name."""
    rows = connection.execute(select(*_TOKEN_COLUMNS).order_by(read_tokens.c.name))
    return tuple(ReadToken(*row) for row in rows)


def _token_hash(token: str) -> str:
    # Of 256 random bits; a slow hash is for what people choose.
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()

"""The named operators of a call log. All functions work in the caller's transaction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from ..call_log.tables import operator_sessions, operators
from .roles import Role

#: The operator whose password is a setting.
OPERATOR = "admin"

_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who can sign in, without the password's hash; `seen_at` is None if never."""

    name: str
    role: Role
    created_at: datetime | None = None
    seen_at: datetime | None = None


def clean_name(text: str) -> str | None:
    """Return the name as it is kept, in small letters; None if it is nobody's and cannot be."""
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
    """Change what an operator may do, from now on; False if there is no such operator."""
    return _change(connection, name, role=role)


def find(connection: Connection, name: str) -> tuple[Role, str] | None:
    """Return the role and the password's hash."""
    wanted = select(operators.c.role, operators.c.password_hash).where(operators.c.name == name)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else (cast("Role", row.role), row.password_hash)


def are_any(connection: Connection) -> bool:
    """Tell whether there are named operators."""
    return bool(connection.scalar(select(exists(select(operators.c.name)))))


def listed(connection: Connection) -> tuple[Account, ...]:
    """Return all named operators, by name, with when a session of theirs was last seen."""
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

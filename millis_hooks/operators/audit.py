"""The audit log: actions of operators. All functions work in the caller's transaction.

Its readers need not know the callers, so it holds no phone number, no secret, and no unknown name
that was tried at sign-in.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import Connection, func, insert, select, update

from ..call_log.sanitize import clean_text
from ..call_log.tables import audit_log
from ..environment.addresses import network_of

Action: TypeAlias = Literal[
    "sign_in",
    "refused",
    "sign_out",
    "end_session",
    "reveal",
    "send_test",
    "replay",
    "export",
    "forget",
    "accept_drift",
    "renew_drift",
    "prune",
    "add_operator",
    "remove_operator",
    "change_password",
    "change_role",
    "add_token",
    "revoke_token",
]

#: The operator of actions by command.
COMMAND_LINE = "command line"

#: Refused sign-ins of so long are counted in one entry for each client; beyond so many clients,
#: in one for all.
_TOGETHER = timedelta(hours=1)
_CLIENTS = 50
_SUBJECT_CHARS = 200
_SIGN_INS_REMEMBERED = 50


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action of an operator; an entry of refused sign-ins counts `times` from `at` to `last_at`.

    `operator` is None for an unknown name, `client` None where there are too many.
    """

    id: int
    at: datetime
    operator: str | None
    action: str
    subject: str | None
    client: str | None
    times: int = 1
    last_at: datetime | None = None


_COLUMNS = tuple(audit_log.c[name] for name in AuditEntry.__dataclass_fields__)


def record(
    connection: Connection,
    operator: str,
    action: Action,
    *,
    now: datetime,
    subject: str | None = None,
    client: str | None = None,
) -> int:
    """Add an entry and return its id."""
    row = {
        "at": now,
        "operator": operator,
        "action": action,
        "subject": clean_text(subject[:_SUBJECT_CHARS]) if subject else None,
        "client": client or None,
        "times": 1,
    }
    added = insert(audit_log).values(row).returning(audit_log.c.id)
    entry: int = connection.execute(added).scalar_one()
    return entry


def record_refusal(
    connection: Connection, operator: str | None, *, now: datetime, client: str
) -> None:
    """Count a wrong password; `operator` is None if there is none of the name that was tried."""
    recent = (audit_log.c.at > now - _TOGETHER, audit_log.c.action == "refused")
    clients = select(func.count()).select_from(audit_log).where(*recent)
    for counted in (client or None, None):
        same_operator = audit_log.c.operator.is_not_distinct_from(operator)
        same_client = audit_log.c.client.is_not_distinct_from(counted)
        entry = update(audit_log).where(*recent, same_operator, same_client)
        repeated = entry.values(times=audit_log.c.times + 1, last_at=now)
        if connection.execute(repeated).rowcount:
            return
        if counted is None or (connection.scalar(clients) or 0) < _CLIENTS:
            row = {"at": now, "operator": operator, "action": "refused", "client": counted}
            connection.execute(insert(audit_log), row | {"times": 1})
            return


def listed(
    connection: Connection, *, operator: str | None = None, before: int | None = None, size: int
) -> tuple[AuditEntry, ...]:
    """Return the newest entries, of one operator or of all, with ids below `before`."""
    entries = select(*_COLUMNS).order_by(audit_log.c.id.desc()).limit(size)
    if operator is not None:
        entries = entries.where(audit_log.c.operator == operator)
    if before is not None:
        entries = entries.where(audit_log.c.id < before)
    return tuple(AuditEntry(*row) for row in connection.execute(entries))


def has_signed_in_from(connection: Connection, operator: str, client: str) -> bool:
    """Tell whether the operator recently signed in from the network of this client."""
    clients = (
        select(audit_log.c.client)
        .where(audit_log.c.operator == operator, audit_log.c.action == "sign_in")
        .order_by(audit_log.c.id.desc())
        .limit(_SIGN_INS_REMEMBERED)
    )
    networks = {network_of(address) for address in connection.scalars(clients) if address}
    return network_of(client) in networks

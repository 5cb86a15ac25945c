"""The record of what operators did. All functions work in the caller's transaction.

Whoever may read it need not know the callers: no telephone number and no secret stands in it, and
no name that somebody only tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import Connection, func, insert, select, update

from ..call_log.sanitize import clean_text
from ..call_log.tables import deeds
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
    "prune",
    "add_operator",
    "remove_operator",
    "change_password",
    "change_role",
]

#: Who does what is done by command.
COMMAND_LINE = "command line"

#: Refused sign-ins of this long are counted together, by client; of more clients, all in one.
_TOGETHER = timedelta(hours=1)
_CLIENTS = 50
_SUBJECT_CHARS = 200
_SIGN_INS_REMEMBERED = 50


@dataclass(frozen=True, slots=True)
class Deed:
    """Something done; refused sign-ins are `times` many, from `at` until `last_at`.

    `operator` is None for a name that is nobody's, `client` None where there are too many.
    """

    id: int
    at: datetime
    operator: str | None
    action: str
    subject: str | None
    client: str | None
    times: int = 1
    last_at: datetime | None = None


_COLUMNS = tuple(deeds.c[name] for name in Deed.__dataclass_fields__)


def record(
    connection: Connection,
    operator: str,
    action: Action,
    *,
    now: datetime,
    subject: str | None = None,
    client: str | None = None,
) -> None:
    """Write down what somebody did."""
    row = {
        "at": now,
        "operator": operator,
        "action": action,
        "subject": clean_text(subject[:_SUBJECT_CHARS]) if subject else None,
        "client": client or None,
        "times": 1,
    }
    connection.execute(insert(deeds), row)


def record_refusal(
    connection: Connection, operator: str | None, *, now: datetime, client: str
) -> None:
    """Count a wrong password; `operator` only where there is one of the name that was tried."""
    recent = (deeds.c.at > now - _TOGETHER, deeds.c.action == "refused")
    clients = select(func.count()).select_from(deeds).where(*recent)
    for counted in (client or None, None):
        same = deeds.c.operator.is_not_distinct_from(operator)
        whose = deeds.c.client.is_not_distinct_from(counted)
        again = update(deeds).where(*recent, same, whose)
        again = again.values(times=deeds.c.times + 1, last_at=now)
        if connection.execute(again).rowcount:
            return
        if counted is None or (connection.scalar(clients) or 0) < _CLIENTS:
            row = {"at": now, "operator": operator, "action": "refused", "client": counted}
            connection.execute(insert(deeds), row | {"times": 1})
            return


def listed(
    connection: Connection, *, operator: str | None = None, before: int | None = None, size: int
) -> tuple[Deed, ...]:
    """Return deeds, of one operator or of all, the newest first, from before an id on."""
    wanted = select(*_COLUMNS).order_by(deeds.c.id.desc()).limit(size)
    if operator is not None:
        wanted = wanted.where(deeds.c.operator == operator)
    if before is not None:
        wanted = wanted.where(deeds.c.id < before)
    return tuple(Deed(*row) for row in connection.execute(wanted))


def has_signed_in_from(connection: Connection, operator: str, client: str) -> bool:
    """Tell whether the operator lately signed in from the network this client belongs to."""
    wanted = (
        select(deeds.c.client)
        .where(deeds.c.operator == operator, deeds.c.action == "sign_in")
        .order_by(deeds.c.id.desc())
        .limit(_SIGN_INS_REMEMBERED)
    )
    known = {network_of(address) for address in connection.scalars(wanted) if address}
    return network_of(client) in known

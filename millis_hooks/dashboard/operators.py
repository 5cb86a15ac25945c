"""The page of operators: their sessions, their accounts and the audit log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..operators import COMMAND_LINE, Account, AuditEntry, Operator, Operators, ReadToken, Session
from .endpoints import Endpoints, OperatorRequest
from .formats import read_number
from .pages import PageRequest

_PAGE_SIZE = 50

#: The first that matches counts: many browsers name others too.
_BROWSERS = {
    "Edge": r"Edg(e|A|iOS)?/",
    "Opera": r"OPR/",
    "Firefox": r"(Firefox|FxiOS)/",
    "Chrome": r"(Chrome|CriOS|Chromium)/",
    "Safari": r"Safari/",
    "curl": r"curl/",
}
_SYSTEMS = {
    "iPhone": r"iPhone",
    "iPad": r"iPad",
    "Android": r"Android",
    "Windows": r"Windows",
    "macOS": r"Mac OS X",
    "ChromeOS": r"CrOS",
    "Linux": r"Linux",
}


def routes(endpoints: Endpoints, operators: Operators) -> Iterator[Route]:
    """Yield the routes of the page and its forms."""
    yield from endpoints.page("/operators", "operators", partial(show_operators, operators))
    for path, name, respond in (
        ("/operators/end-session", "end_session", _end_session),
        ("/operators/sign-out", "sign_out_everywhere", _sign_out_everywhere),
    ):
        yield endpoints.form(path, name, respond, page="operators", role="view")


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session, and whether the page was requested in it."""

    session: Session
    is_own: bool
    browser: str


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """An entry of the audit log in words; if `is_of_call`, its subject is a session id."""

    entry: AuditEntry
    words: str
    is_of_call: bool


@dataclass(frozen=True, slots=True)
class OperatorsView:
    """What the page shows; an operator of the role view sees only their own."""

    name: str
    sees_all: bool
    accounts: tuple[Account, ...]
    tokens: tuple[ReadToken, ...]
    sessions: tuple[ListedSession, ...]
    audit_log: tuple[ListedEntry, ...]
    before: int | None
    older: int | None


def show_operators(operators: Operators, request: PageRequest) -> OperatorsView | None:
    """Build the page; `before` in the query is the id from which the audit log continues."""
    operator = request.operator
    if operator is None:
        return None
    before = read_number(request.query.get("before", ""))
    entries = operators.audit_log(operator, before=before, size=_PAGE_SIZE + 1)
    return OperatorsView(
        operator.name,
        operator.may_operate,
        operators.accounts() if operator.may_operate else (),
        operators.read_tokens() if operator.may_operate else (),
        _listed(operators.sessions(operator), operator),
        tuple(ListedEntry(each, _words(each), _is_of_call(each)) for each in entries[:_PAGE_SIZE]),
        before,
        entries[_PAGE_SIZE - 1].id if len(entries) > _PAGE_SIZE else None,
    )


def _end_session(request: OperatorRequest) -> Response:
    key = request.fields.get("session", "")
    if not request.operators.end_session(request.operator, key, client=request.client):
        raise HTTPException(404)
    return request.redirect("operators")


def _sign_out_everywhere(request: OperatorRequest) -> Response:
    request.operators.end_sessions(request.operator, client=request.client)
    return request.redirect("login")


def _listed(sessions: Sequence[Session], operator: Operator) -> tuple[ListedSession, ...]:
    """Return the sessions, the one of the request first."""
    listed = (
        ListedSession(each, each.key == operator.session, _browser(each.browser or ""))
        for each in sessions
    )
    return tuple(sorted(listed, key=lambda each: not each.is_own))


def _browser(agent: str) -> str:
    """Return a browser and its system from a User-Agent header: Firefox on Linux."""
    browser, system = (
        next((name for name, pattern in names.items() if re.search(pattern, agent)), None)
        for names in (_BROWSERS, _SYSTEMS)
    )
    return f"{browser or 'Another program'}{f' on {system}' if system else ''}"


def _words(entry: AuditEntry) -> str:
    """Return what was done, without its subject."""
    if entry.action == "refused" and entry.times > 1:
        return f"{_WORDS['refused']}, {entry.times:,} times"
    return _WORDS.get(entry.action, entry.action.replace("_", " ").capitalize())


def _is_of_call(entry: AuditEntry) -> bool:
    # A replay by command may be of many calls; its subject then describes them.
    return entry.action == "replay" and entry.operator != COMMAND_LINE and bool(entry.subject)


_WORDS = {
    "sign_in": "Signed in",
    "refused": "Wrong password or token",
    "sign_out": "Signed out",
    "end_session": "Ended a session of",
    "reveal": "Revealed",
    "send_test": "Sent a test with a secret to",
    "replay": "Replayed handlers",
    "export": "Exported calls",
    "forget": "Deleted",
    "accept_drift": "Accepted as known",
    "renew_drift": "Made new again",
    "prune": "Deleted by age",
    "add_operator": "Added operator",
    "remove_operator": "Removed operator",
    "change_password": "Changed the password of",
    "change_role": "Changed the role of",
    "add_token": "Added read token",
    "revoke_token": "Revoked read token",
}

"""The page about operators: where they are signed in, who there is, and what was done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import COMMAND_LINE, Account, AuditEntry, Operator, Operators, Session
from .formats import read_number
from .pages import PageRequest, link
from .sign_in import client_of

_PAGE_SIZE = 50

#: Many call themselves others too: the first that is found counts.
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


@dataclass(frozen=True, slots=True)
class ListedSession:
    """A session, and whether it is the one the page was asked for in."""

    session: Session
    is_own: bool
    browser: str


@dataclass(frozen=True, slots=True)
class ListedEntry:
    """An entry of the audit log in words; the subject of one about a call is its session id."""

    entry: AuditEntry
    words: str
    is_of_call: bool


@dataclass(frozen=True, slots=True)
class OperatorsView:
    """What the page shows; somebody who may only view sees what is their own."""

    name: str
    sees_all: bool
    accounts: tuple[Account, ...]
    sessions: tuple[ListedSession, ...]
    audit_log: tuple[ListedEntry, ...]
    before: int | None
    older: int | None
    live_count: int


class OperatorsPage:
    """Shows the page and takes its forms."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators

    def show(self, asked: PageRequest) -> OperatorsView | None:
        """Build the page; entries of the audit log older than the id `before` of the query."""
        operator = asked.operator
        if operator is None:
            return None
        before = read_number(asked.query.get("before", ""))
        entries = self._operators.audit_log(operator, before=before, size=_PAGE_SIZE + 1)
        return OperatorsView(
            operator.name,
            operator.may_operate,
            self._operators.accounts() if operator.may_operate else (),
            tuple(_listed(session, operator) for session in self._operators.sessions(operator)),
            tuple(
                ListedEntry(each, _words(each), _is_of_call(each)) for each in entries[:_PAGE_SIZE]
            ),
            before,
            entries[_PAGE_SIZE - 1].id if len(entries) > _PAGE_SIZE else None,
            asked.log.live_count(now=asked.now),
        )

    def end_session(
        self, request: Request, operator: Operator, fields: Mapping[str, str]
    ) -> Response:
        """Answer `POST /operators/end-session`."""
        key = fields.get("session", "")
        if not self._operators.end_session(operator, key, client=client_of(request)):
            raise HTTPException(404)
        return RedirectResponse(link(request, "operators"), 303)

    def sign_out_everywhere(
        self, request: Request, operator: Operator, _: Mapping[str, str]
    ) -> Response:
        """Answer `POST /operators/sign-out`."""
        self._operators.end_sessions(operator, client=client_of(request))
        return RedirectResponse(link(request, "login"), 303)


def _listed(session: Session, operator: Operator) -> ListedSession:
    return ListedSession(session, session.key == operator.session, _browser(session.browser or ""))


def _browser(agent: str) -> str:
    """Name a browser by what it calls itself: Firefox on Linux."""
    browser, system = (
        next((name for name, pattern in known.items() if re.search(pattern, agent)), None)
        for known in (_BROWSERS, _SYSTEMS)
    )
    return f"{browser or 'A program'}{f' on {system}' if system else ''}"


def _words(entry: AuditEntry) -> str:
    """Return the action in words, without its subject."""
    if entry.action == "refused" and entry.times > 1:
        return f"Wrong password, {entry.times:,} times"
    return _WORDS.get(entry.action, entry.action.replace("_", " ").capitalize())


def _is_of_call(entry: AuditEntry) -> bool:
    # One replay by command may be of many calls: its subject says so in words.
    return entry.action == "replay" and entry.operator != COMMAND_LINE and bool(entry.subject)


_WORDS = {
    "sign_in": "Signed in",
    "refused": "Wrong password",
    "sign_out": "Signed out",
    "end_session": "Ended a session of",
    "reveal": "Had a secret shown",
    "send_test": "Sent a test with a secret to",
    "replay": "Replayed handlers",
    "export": "Exported calls",
    "forget": "Deleted",
    "prune": "Deleted what was old",
    "add_operator": "Added operator",
    "remove_operator": "Removed operator",
    "change_password": "Changed the password of",
    "change_role": "Changed the role of",
}

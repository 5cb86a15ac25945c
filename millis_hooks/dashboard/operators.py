"""The page about operators: where they are signed in, who there is, and what was done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import COMMAND_LINE, Account, Deed, Operator, Operators, Session
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
class ListedDeed:
    """A deed, in words; if it was done to a call, the call's session id is its subject."""

    deed: Deed
    words: str
    is_of_call: bool


@dataclass(frozen=True, slots=True)
class OperatorsView:
    """What the page shows; somebody who may only view sees what is their own."""

    name: str
    sees_all: bool
    accounts: tuple[Account, ...]
    sessions: tuple[ListedSession, ...]
    deeds: tuple[ListedDeed, ...]
    before: int | None
    older: int | None
    live_count: int


class OperatorsPage:
    """Shows the page and takes its forms."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators

    def show(self, asked: PageRequest) -> OperatorsView | None:
        """Build the page; `before` in the query is the id of the deed it goes on from."""
        operator = asked.operator
        if operator is None:
            return None
        before = read_number(asked.query.get("before", ""))
        deeds = self._operators.deeds(operator, before=before, size=_PAGE_SIZE + 1)
        return OperatorsView(
            operator.name,
            operator.may_operate,
            self._operators.accounts() if operator.may_operate else (),
            tuple(_listed(session, operator) for session in self._operators.sessions(operator)),
            tuple(ListedDeed(deed, _words(deed), _is_of_call(deed)) for deed in deeds[:_PAGE_SIZE]),
            before,
            deeds[_PAGE_SIZE - 1].id if len(deeds) > _PAGE_SIZE else None,
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


def _words(deed: Deed) -> str:
    """Say what was done, without what it was done to."""
    if deed.action == "refused" and deed.times > 1:
        return f"Wrong password, {deed.times:,} times"
    return _WORDS.get(deed.action, deed.action.replace("_", " ").capitalize())


def _is_of_call(deed: Deed) -> bool:
    # One replay by command may be of many calls: its subject says so in words.
    return deed.action == "replay" and deed.operator != COMMAND_LINE and bool(deed.subject)


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

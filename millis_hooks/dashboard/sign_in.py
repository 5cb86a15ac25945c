"""Signing in and out, and the rule that nobody else sees a page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..exceptions import StorageError
from ..operators import Action, Operator, Operators, Refused, Role, SignedIn, Turn
from ..operators.throttle import Key
from .formats import read_form
from .pages import Pages, as_json, link
from .security import Cookies, local_path

logger = logging.getLogger("millis_hooks.dashboard")

#: The same for an unknown operator and for a wrong password.
_WRONG = "That is not the password."
_WRONG_NAMED = "That is not the name and password of an operator."
_WAIT = "Too many tries. Try again in {} s."
_UNWRITTEN = (
    "You cannot be signed in now: {} Make room on the disk of the call log, or end what locks it, "
    "and sign in again. Whoever is signed in can go on reading; nothing has to be restarted."
)

#: So many sign in at once and so many strangers may wait for that: pages keep their threads, and
#: operators whose browser is known need none of the strangers' places.
_AT_ONCE = 4
_MAY_WAIT = 100
_RETRY_AFTER_S = 5

#: Names what something was done to, for the record: `fields` are those of a form.
Subject: TypeAlias = Callable[[Request, Mapping[str, str]], str | None]


def subject_of(request: Request, fields: Mapping[str, str]) -> str | None:
    """Name the session or, where there is none, which filters were chosen but not their values:
    a number that is searched for has no place in the record.
    """
    named = request.path_params.get("session_id") or fields.get("session_id")
    return str(named) if named else ", ".join(sorted(set(request.query_params))) or None


class SignIn:
    """The sign-in page and the guard in front of all others."""

    def __init__(self, operators: Operators, pages: Pages, cookies: Cookies) -> None:
        self._operators = operators
        self._pages = pages
        self._cookies = cookies
        self._queue = Queue()

    def operator(self, request: Request, *, is_use: bool = True) -> Operator | None:
        """Return who is signed in, and keep it as `request.state.operator`. Blocks."""
        operator = self._operators.resume(self._cookies.session(request), is_use=is_use)
        request.state.operator = operator
        return operator

    def required(
        self,
        page: Callable[[Request, Operator], Response],
        *,
        role: Role = "view",
        audit: Action | None = None,
        subject: Subject = subject_of,
        is_use: bool = True,
    ) -> Callable[[Request], Response]:
        """Return an endpoint that shows `page` to operators and the sign-in page to others.

        Operators of another role get 403. An `audit` action is recorded before the page goes
        out: if it cannot be recorded, no page does.
        """

        def endpoint(request: Request) -> Response:
            operator = self.operator(request, is_use=is_use)
            if operator is None:
                return self._ask_to_sign_in(request)
            require_role(operator, role)
            response = page(request, operator)
            if audit is not None:
                self.record(request, operator, audit, subject(request, {}))
            return response

        return endpoint

    def record(
        self, request: Request, operator: Operator, audit: Action, subject: str | None
    ) -> None:
        """Write down what an operator does with this request. Blocks; raises StorageError."""
        self._operators.record(operator, audit, subject=subject, client=client_of(request))

    def show(self, request: Request) -> Response:
        """Answer `GET /login`."""
        target = local_path(request.query_params.get("next"))
        if self.operator(request) is not None:
            return RedirectResponse(target or _home(request), 303)
        return self._form(request, request.query_params)

    async def submit(self, request: Request) -> Response:
        """Answer `POST /login`."""
        fields = await read_form(request)
        try:
            outcome = await self._outcome(request, fields)
        except StorageError as error:
            return await run_in_threadpool(self._say_unwritten, request, fields, error)
        return await run_in_threadpool(self._answer, request, fields, outcome)

    def leave(self, request: Request) -> Response:
        """Answer `POST /logout`."""
        self._operators.log_out(self._cookies.session(request), client=client_of(request))
        response = RedirectResponse(link(request, "login"), 303)
        self._cookies.delete_session(request, response)
        return response

    def _ask_to_sign_in(self, request: Request) -> Response:
        if request.url.path.endswith(".json"):
            return as_json({"error": "Sign in first."}, 401)
        return RedirectResponse(_login_path(request), 303)

    async def _outcome(self, request: Request, fields: Mapping[str, str]) -> SignedIn | Refused:
        # Whoever has to wait is sent away here, and keeps nobody from the queue.
        turn = await run_in_threadpool(self._turn, request, fields)
        if isinstance(turn, Refused):
            return turn
        async with self._queue.place(turn) as has_place:
            if not has_place:
                return Refused(1)
            return await run_in_threadpool(self._log_in, request, fields)

    def _turn(self, request: Request, fields: Mapping[str, str]) -> Turn | Refused:
        return self._operators.turn(
            fields.get("username", ""),
            fields.get("password", ""),
            client=client_of(request),
            known_browser=self._cookies.known_browser(request),
        )

    def _log_in(self, request: Request, fields: Mapping[str, str]) -> SignedIn | Refused:
        return self._operators.log_in(
            fields.get("username", ""),
            fields.get("password", ""),
            client=client_of(request),
            browser=request.headers.get("user-agent", ""),
            keep=bool(fields.get("keep")),
            instead_of=self._cookies.session(request),
            known_browser=self._cookies.known_browser(request),
        )

    def _answer(
        self, request: Request, fields: Mapping[str, str], outcome: SignedIn | Refused
    ) -> Response:
        if isinstance(outcome, Refused):
            return self._refuse(request, fields, outcome)
        response = RedirectResponse(local_path(fields.get("next")) or _home(request), 303)
        self._cookies.hand_out(request, response, outcome)
        return response

    def _refuse(self, request: Request, fields: Mapping[str, str], refused: Refused) -> Response:
        if not refused.retry_after_s:
            error = _WRONG_NAMED if self._operators.are_named else _WRONG
            return self._form(request, fields, error=error, status_code=401)
        response = self._form(request, fields, error=told(refused), status_code=429)
        response.headers["Retry-After"] = str(refused.retry_after_s)
        return response

    def _say_unwritten(
        self, request: Request, fields: Mapping[str, str], error: StorageError
    ) -> Response:
        logger.error("nobody can sign in: %s", error)
        response = self._form(request, fields, error=_UNWRITTEN.format(error), status_code=503)
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response

    def _form(
        self,
        request: Request,
        fields: Mapping[str, str],
        *,
        error: str | None = None,
        status_code: int = 200,
    ) -> Response:
        return self._pages.render(
            request,
            "login.html",
            status_code=status_code,
            error=error,
            target=local_path(fields.get("next")),
            username=fields.get("username", ""),
            has_password=self._operators.has_password,
            are_named=self._operators.are_named,
            longest_days=self._operators.lasts.longest.days,
        )


class Queue:
    """Who waits until their password is looked at: one for each place, served in order."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._places: set[Key] = set()
        self._strangers = 0

    @asynccontextmanager
    async def place(self, turn: Turn) -> AsyncIterator[bool]:
        """Wait for the turn, and yield True; yield False at once where there is no place."""
        is_stranger = not turn.is_known
        if turn.place in self._places or (is_stranger and self._strangers >= _MAY_WAIT):
            yield False
            return
        self._places.add(turn.place)
        self._strangers += is_stranger
        try:
            async with self._turn:
                yield True
        finally:
            self._places.discard(turn.place)
            self._strangers -= is_stranger


def require_role(operator: Operator, role: Role) -> None:
    """Raise HTTPException 403 unless the operator may do this."""
    if not operator.may(role):
        raise HTTPException(403)


def told(refused: Refused) -> str:
    """Say why a password was not taken."""
    return _WAIT.format(refused.retry_after_s) if refused.retry_after_s else _WRONG


def client_of(request: Request) -> str:
    """Return the address of the peer."""
    return request.client.host if request.client else ""


def _home(request: Request) -> str:
    return link(request, "home")


def _login_path(request: Request) -> str:
    target = quote(request.scope["path"], safe="/")
    if request.url.query:
        target += "?" + request.url.query
    # Who came for the list is led to it from home, or first to the setup page.
    is_home = target in (_home(request), link(request, "calls"))
    query = {"next": target} if local_path(target) and not is_home else None
    return link(request, "login", query)

"""Signing in and out, and the rule that nobody else sees a page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import Action, Operator, Operators, Refused, Role, SignedIn
from .cookies import delete_cookie, read_cookie, set_cookie
from .forms import read_form
from .guards import local_path
from .pages import Pages, as_json, link

#: The same for an unknown operator and for a wrong password.
_WRONG = "That is not the password."
_WRONG_NAMED = "That is not the name and password of an operator."
_WAIT = "Too many tries. Try again in {} s."

#: Passwords are hashed one at a time, and so many may wait for it: pages keep their threads.
_MAY_WAIT = 100

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

    def __init__(self, operators: Operators, pages: Pages) -> None:
        self._operators = operators
        self._pages = pages
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    def operator(self, request: Request, *, is_use: bool = True) -> Operator | None:
        """Return who is signed in, and keep it as `request.state.operator`. Blocks."""
        operator = self._operators.resume(read_cookie(request), is_use=is_use)
        request.state.operator = operator
        return operator

    def required(
        self,
        page: Callable[[Request, Operator], Response],
        *,
        role: Role = "view",
        deed: Action | None = None,
        subject: Subject = subject_of,
        is_use: bool = True,
    ) -> Callable[[Request], Response]:
        """Return an endpoint that shows `page` to operators and the sign-in page to others.

        Operators of another role get 403. A `deed` is recorded when the page is made and before
        it goes out: no page does if it cannot be recorded.
        """

        def endpoint(request: Request) -> Response:
            operator = self.operator(request, is_use=is_use)
            if operator is None:
                return self._ask_to_sign_in(request)
            require_role(operator, role)
            response = page(request, operator)
            if deed is not None:
                self.record(request, operator, deed, subject(request, {}))
            return response

        return endpoint

    def record(
        self, request: Request, operator: Operator, deed: Action, subject: str | None
    ) -> None:
        """Write down what an operator does with this request. Blocks; raises StorageError."""
        self._operators.record(operator, deed, subject=subject, client=client_of(request))

    def show(self, request: Request) -> Response:
        """Answer `GET /login`."""
        target = local_path(request.query_params.get("next"))
        if self.operator(request) is not None:
            return RedirectResponse(target or _home(request), 303)
        return self._form(request, request.query_params)

    async def submit(self, request: Request) -> Response:
        """Answer `POST /login`."""
        fields = await read_form(request)
        outcome = await self._in_turn(partial(self._log_in, request, fields))
        return await run_in_threadpool(self._answer, request, fields, outcome)

    def leave(self, request: Request) -> Response:
        """Answer `POST /logout`."""
        self._operators.log_out(read_cookie(request), client=client_of(request))
        response = RedirectResponse(link(request, "login"), 303)
        delete_cookie(request, response)
        return response

    def _ask_to_sign_in(self, request: Request) -> Response:
        if request.url.path.endswith(".json"):
            return as_json({"error": "Sign in first."}, 401)
        return RedirectResponse(_login_path(request), 303)

    async def _in_turn(self, log_in: Callable[[], SignedIn | Refused]) -> SignedIn | Refused:
        if self._waiting >= _MAY_WAIT:
            return Refused(1)
        self._waiting += 1
        try:
            async with self._turn:
                return await run_in_threadpool(log_in)
        finally:
            self._waiting -= 1

    def _log_in(self, request: Request, fields: Mapping[str, str]) -> SignedIn | Refused:
        return self._operators.log_in(
            fields.get("username", ""),
            fields.get("password", ""),
            client=client_of(request),
            browser=request.headers.get("user-agent", ""),
            keep=bool(fields.get("keep")),
            instead_of=read_cookie(request),
        )

    def _answer(
        self, request: Request, fields: Mapping[str, str], outcome: SignedIn | Refused
    ) -> Response:
        if isinstance(outcome, Refused):
            return self._refuse(request, fields, outcome)
        response = RedirectResponse(local_path(fields.get("next")) or _home(request), 303)
        set_cookie(request, response, outcome)
        return response

    def _refuse(self, request: Request, fields: Mapping[str, str], refused: Refused) -> Response:
        if not refused.retry_after_s:
            error = _WRONG_NAMED if self._operators.are_named else _WRONG
            return self._form(request, fields, error=error, status_code=401)
        response = self._form(request, fields, error=told(refused), status_code=429)
        response.headers["Retry-After"] = str(refused.retry_after_s)
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

"""Signing in and out, and the rule that nobody else sees a page."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import Operator, Operators, Refused, SignedIn
from .forms import read_form
from .guards import local_path
from .pages import Pages, as_json, link

SESSION_COOKIE = "mh_session"

#: The same for an unknown operator and for a wrong password.
_WRONG = "That is not the password."
_WAIT = "Too many tries. Try again in {} s."


class SignIn:
    """The sign-in page and the guard in front of all others."""

    def __init__(self, operators: Operators, pages: Pages) -> None:
        self._operators = operators
        self._pages = pages

    def operator(self, request: Request) -> Operator | None:
        """Return who is signed in. Blocks."""
        return self._operators.resume(request.cookies.get(SESSION_COOKIE))

    def required(
        self, page: Callable[[Request, Operator], Response]
    ) -> Callable[[Request], Response]:
        """Return an endpoint that shows `page` to operators and the sign-in page to others."""

        def endpoint(request: Request) -> Response:
            operator = self.operator(request)
            if operator is not None:
                return page(request, operator)
            if request.url.path.endswith(".json"):
                return as_json({"error": "Sign in first."}, 401)
            return RedirectResponse(_login_path(request), 303)

        return endpoint

    def show(self, request: Request) -> Response:
        """Answer `GET /login`."""
        target = local_path(request.query_params.get("next"))
        if self.operator(request) is not None:
            return RedirectResponse(target or _home(request), 303)
        return self._form(request, target)

    async def submit(self, request: Request) -> Response:
        """Answer `POST /login`."""
        return await run_in_threadpool(self._submit, request, await read_form(request))

    def leave(self, request: Request) -> Response:
        """Answer `POST /logout`."""
        self._operators.log_out(request.cookies.get(SESSION_COOKIE))
        response = RedirectResponse(link(request, "login"), 303)
        response.delete_cookie(SESSION_COOKIE, path=_cookie_path(request), httponly=True)
        return response

    def _submit(self, request: Request, fields: dict[str, str]) -> Response:
        target = local_path(fields.get("next"))
        outcome = self._operators.log_in(
            fields.get("username", ""),
            fields.get("password", ""),
            client=request.client.host if request.client else "",
            keep=bool(fields.get("keep")),
        )
        if isinstance(outcome, Refused):
            return self._refuse(request, target, outcome)
        response = RedirectResponse(target or _home(request), 303)
        _set_cookie(request, response, outcome)
        return response

    def _refuse(self, request: Request, target: str | None, refused: Refused) -> Response:
        if not refused.retry_after_s:
            return self._form(request, target, error=_WRONG, status_code=401)
        error = _WAIT.format(refused.retry_after_s)
        response = self._form(request, target, error=error, status_code=429)
        response.headers["Retry-After"] = str(refused.retry_after_s)
        return response

    def _form(
        self,
        request: Request,
        target: str | None,
        *,
        error: str | None = None,
        status_code: int = 200,
    ) -> Response:
        return self._pages.render(
            request,
            "login.html",
            status_code=status_code,
            error=error,
            target=target,
            has_password=self._operators.has_password,
        )


def _home(request: Request) -> str:
    return link(request, "calls")


def _login_path(request: Request) -> str:
    target = quote(request.scope["path"], safe="/")
    if request.url.query:
        target += "?" + request.url.query
    home = _home(request)
    query = {"next": target} if local_path(target) and target != home else None
    return link(request, "login", query)


def _set_cookie(request: Request, response: Response, signed_in: SignedIn) -> None:
    response.set_cookie(
        SESSION_COOKIE,
        signed_in.cookie,
        max_age=signed_in.max_age_s,
        path=_cookie_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def _cookie_path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"

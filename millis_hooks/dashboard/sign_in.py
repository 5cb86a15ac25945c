"""The sign-in page, and the operator of a session."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..exceptions import StorageError
from ..operators import TOKEN_PREFIX, Key, Operator, Operators, Refused
from .formats import MAX_FORM_BYTES, read_form
from .pages import Pages, as_json, link
from .security import Cookies, ProxySignIn, local_path, page_before

logger = logging.getLogger("millis_hooks.dashboard")

#: The same for an unknown operator and for a wrong password.
_WRONG = "That is not the password."
_WRONG_NAMED = "That is not the name and password of an operator."
_WAIT = Markup('<span data-due="{0}">Too many tries. Try again in {0} s.</span>')
_NO_STORAGE = (
    "You cannot be signed in now: {} Free space on the disk of the call log, or end the process "
    "that locks it, and sign in again. Operators who are signed in can still read the pages; no "
    "restart is needed."
)
_RETRY_AFTER_S = 5
_MOST_ADDRESS_CHARS = 16_000
_UNDONE = "You were signed out; nothing was {}."
_CHALLENGE = 'Bearer realm="millis_hooks"'
_TOO_MUCH = (
    "A read token opens the .json of pages, /openapi.json and exports. For anything else sign in."
)

#: Sign-ins at once, on threads that pages do not use, and sign-ins that wait. Known browsers of
#: operators have threads of their own, so a flood of others does not delay them.
_AT_ONCE = 4
_MOST_WAITING = 100


class SignIn:
    """Signs operators in and out."""

    def __init__(
        self,
        operators: Operators,
        pages: Pages,
        cookies: Cookies,
        proxy: ProxySignIn | None = None,
    ) -> None:
        self._operators = operators
        self._proxy = proxy
        self._pages = pages
        self._cookies = cookies
        self._known, self._unknown = CapacityLimiter(_AT_ONCE), CapacityLimiter(_AT_ONCE)

    def routes(self) -> Iterator[Route]:
        """Yield the routes that do not require sign-in."""
        yield Route("/login", self.show, name="login")
        yield Route("/login", self.submit, methods=["POST"], max_body_size=MAX_FORM_BYTES)
        yield Route("/logout", self.leave, methods=["POST"], name="logout")

    def operator(self, request: Request, *, is_use: bool = True) -> Operator | None:
        """Return the operator who is signed in, kept as `request.state.operator` too. Blocks."""
        request.state.operator = None  # until it is known: errors are shown with it
        operator = self._proxy.operator(request) if self._proxy else None
        if operator is None:
            operator = self._operators.resume(self._cookies.session(request), is_use=is_use)
        request.state.operator = operator
        return operator

    def who(
        self, request: Request, *, is_use: bool = True, opens_to_tokens: bool = False
    ) -> Operator | Response | None:
        """Return the operator, or who reads with a token, or why that is refused. Blocks.

        A token that is ours counts even in a session; another may be for a proxy in front.
        """
        token = _bearer(request)
        if token is None or not token.startswith(TOKEN_PREFIX):
            operator = self.operator(request, is_use=is_use)
            if operator is not None or token is None or not opens_to_tokens:
                return operator
        reader = self._operators.bearer(token, client=client_of(request))
        if isinstance(reader, Refused):
            return _refuse_token(reader)
        if not opens_to_tokens:
            return _token_error(403, _TOO_MUCH, "insufficient_scope")
        request.state.operator = reader
        return reader

    def require(self, request: Request, *, is_file: bool = False) -> Response:
        """Return the answer to a request without a session: the way to the sign-in page.

        A browser would keep that page as the file it asked for, so a file's answer is 401.
        """
        if request.url.path.endswith(".json"):
            return _token_error(401, "Sign in first, or send a read token.")
        if not is_file:
            return RedirectResponse(_login_path(request), 303)
        back = {"next": page_before(request, with_query=True) or _home(request)}
        response = self._form(request, back, notice=_UNDONE.format("exported"), status_code=401)
        response.headers["WWW-Authenticate"] = _CHALLENGE
        return response

    def ask(self, request: Request, page: str | None, undone: str) -> Response:
        """Lead to the sign-in page, which says what was not done, and from there to `page`."""
        if page and len(page) > _MOST_ADDRESS_CHARS:  # not every proxy takes it
            page = page.partition("?")[0]
        query = {"next": page} if page else None
        response = RedirectResponse(link(request, "login", query), 303)
        self._cookies.note_undone(request, response, undone)
        return response

    def show(self, request: Request) -> Response:
        """Answer `GET /login`."""
        target = local_path(request.query_params.get("next"))
        if self.operator(request) is not None:
            return RedirectResponse(target or _home(request), 303)
        undone = self._cookies.undone(request)
        notice = _UNDONE.format(undone) if undone else None
        response = self._form(request, request.query_params, notice=notice)
        if undone:
            self._cookies.note_undone(request, response, None)
        return response

    async def submit(self, request: Request) -> Response:
        """Answer `POST /login`."""
        fields = await read_form(request)
        # A throttled sign-in ends here, and takes no place in the queue.
        turn = await run_in_threadpool(self._turn, request, fields)
        if isinstance(turn, Response):
            return turn
        limiter = self._known if turn[0] == "browser" else self._unknown
        if limiter.statistics().tasks_waiting >= _MOST_WAITING:
            return await run_in_threadpool(self._refuse, request, fields, Refused(1))
        return await to_thread.run_sync(self._log_in, request, fields, limiter=limiter)

    def leave(self, request: Request) -> Response:
        """Answer `POST /logout`."""
        self._operators.log_out(self._cookies.session(request), client=client_of(request))
        response = RedirectResponse(link(request, "login"), 303)
        self._cookies.delete_session(request, response)
        return response

    def _turn(self, request: Request, fields: Mapping[str, str]) -> Key | Response:
        try:
            turn = self._operators.turn(**self._attempt(request, fields))
        except StorageError as error:
            return self._no_storage(request, fields, error)
        return self._refuse(request, fields, turn) if isinstance(turn, Refused) else turn

    def _log_in(self, request: Request, fields: Mapping[str, str]) -> Response:
        try:
            result = self._operators.log_in(
                **self._attempt(request, fields),
                browser=request.headers.get("user-agent", ""),
                keep=bool(fields.get("keep")),
                instead_of=self._cookies.session(request),
            )
        except StorageError as error:
            return self._no_storage(request, fields, error)
        if isinstance(result, Refused):
            return self._refuse(request, fields, result)
        response = RedirectResponse(local_path(fields.get("next")) or _home(request), 303)
        self._cookies.hand_out(request, response, result)
        return response

    def _attempt(self, request: Request, fields: Mapping[str, str]) -> dict[str, Any]:
        return {
            "username": fields.get("username", ""),
            "password": fields.get("password", ""),
            "client": client_of(request),
            "known_browser": self._cookies.known_browser(request),
        }

    def _refuse(self, request: Request, fields: Mapping[str, str], refused: Refused) -> Response:
        if not refused.retry_after_s:
            error = _WRONG_NAMED if self._operators.are_named else _WRONG
            return self._form(request, fields, error=error, status_code=401)
        response = self._form(request, fields, error=refusal_text(refused), status_code=429)
        response.headers["Retry-After"] = str(refused.retry_after_s)
        return response

    def _no_storage(
        self, request: Request, fields: Mapping[str, str], error: StorageError
    ) -> Response:
        logger.error("no operator can sign in: %s", error)
        response = self._form(request, fields, error=_NO_STORAGE.format(error), status_code=503)
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response

    def _form(
        self,
        request: Request,
        fields: Mapping[str, str],
        *,
        error: str | None = None,
        notice: str | None = None,
        status_code: int = 200,
    ) -> Response:
        return self._pages.render(
            request,
            "login.html",
            status_code=status_code,
            error=error,
            notice=notice,
            target=local_path(fields.get("next")),
            username=fields.get("username", ""),
            has_password=self._operators.has_password,
            are_named=self._operators.are_named,
            longest_days=self._operators.lasts.longest.days,
        )


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _refuse_token(refused: Refused) -> Response:
    if not refused.retry_after_s:
        return _token_error(401, "This is not a read token, or it was revoked.", "invalid_token")
    response = _token_error(429, _WAIT.format(refused.retry_after_s))
    response.headers["Retry-After"] = str(refused.retry_after_s)
    return response


def _token_error(status_code: int, text: str, error: str | None = None) -> Response:
    """Return a refusal as RFC 6750 has it."""
    response = as_json({"error": text}, status_code)
    if status_code != 429:
        challenge = f'{_CHALLENGE}, error="{error}"' if error else _CHALLENGE
        response.headers["WWW-Authenticate"] = challenge
    return response


def refusal_text(refused: Refused) -> str:
    """Return why a password was refused."""
    return _WAIT.format(refused.retry_after_s) if refused.retry_after_s else _WRONG


def client_of(request: Request) -> str:
    """Return the IP address of the client."""
    return request.client.host if request.client else ""


def _home(request: Request) -> str:
    return link(request, "home")


def _login_path(request: Request) -> str:
    target = quote(request.scope["path"], safe="/")
    if request.url.query:
        target += "?" + request.url.query
    # The home page leads to the list of calls, or to the setup page while there are none.
    is_home = target in (_home(request), link(request, "calls"))
    query = {"next": target} if local_path(target) and not is_home else None
    return link(request, "login", query)

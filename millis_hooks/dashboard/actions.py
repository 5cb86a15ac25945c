"""Forms that change or reveal something: who may send them, how they are read, what is recorded.

Asks who is signed in for the password once more, before a secret is shown.

The question is a form like the one that was sent, to the same address: it works without scripts,
and nothing has to be kept meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..operators import Action, Operator, Operators, Role
from .formats import MAX_FORM_BYTES, read_form
from .pages import Pages, link
from .security import local_path
from .sign_in import SignIn, Subject, client_of, require_role, subject_of, told

#: No form here has a field of this name but the question's.
PASSWORD_FIELD = "confirm_password"


class Confirmation:
    """The question, and what becomes of the answer."""

    def __init__(self, operators: Operators, pages: Pages, now: Callable[[], datetime]) -> None:
        self._operators = operators
        self._pages = pages
        self._now = now

    def ask(
        self, request: Request, operator: Operator, fields: Mapping[str, str]
    ) -> Response | None:
        """Return the page that asks; None if the password was given lately, or now. Blocks."""
        if operator.has_confirmed(self._now()):
            return None
        password = fields.get(PASSWORD_FIELD)
        if password is None:
            return self._form(request, operator, fields)
        refused = self._operators.confirm(operator, password, client=client_of(request))
        if refused is None:
            return None
        status_code = 429 if refused.retry_after_s else 401
        return self._form(request, operator, fields, error=told(refused), status_code=status_code)

    @staticmethod
    def without_password(fields: Mapping[str, str]) -> Mapping[str, str]:
        """Return the form as it was sent first."""
        return {name: value for name, value in fields.items() if name != PASSWORD_FIELD}

    def _form(
        self,
        request: Request,
        operator: Operator,
        fields: Mapping[str, str],
        *,
        error: str | None = None,
        status_code: int = 200,
    ) -> Response:
        back = local_path(urlsplit(request.headers.get("referer", "")).path)
        return self._pages.render(
            request,
            "confirm.html",
            status_code=status_code,
            operator=operator,
            fields=self.without_password(fields),
            password_field=PASSWORD_FIELD,
            back=back or link(request, "calls"),
            error=error,
        )


#: Does what an operator asked for with a form, on a thread, and says where to go from there.
Act: TypeAlias = Callable[[Request, Operator, Mapping[str, str]], Response]
#: Finds what is to be answered instead of acting, if anything.
_Answer: TypeAlias = Callable[[Request, Mapping[str, str]], Response]


class Actions:
    """Makes the endpoints of forms."""

    def __init__(self, sign_in: SignIn, confirmation: Confirmation) -> None:
        self._sign_in = sign_in
        self._confirmation = confirmation

    def route(
        self,
        path: str,
        name: str,
        act: Act,
        *,
        role: Role = "operate",
        audit: Action | None = None,
        subject: Subject = subject_of,
        recent: Callable[[Mapping[str, str]], bool] = lambda fields: False,
        max_fields: int = 10,
    ) -> Route:
        """Return the route of a form: POST alone, and not a large one.

        Operators of another role get 403. An `audit` action is recorded after `act` and before the
        answer goes out. For a form that needs a `recent` password it is asked for again where
        it was not given in the last minutes; what was in the form goes on with it.
        """

        def answer(request: Request, fields: Mapping[str, str]) -> Response:
            operator = self._sign_in.operator(request)
            if operator is None:
                return RedirectResponse(_sign_in_path(request), 303)
            require_role(operator, role)
            if recent(fields) and (asked := self._confirmation.ask(request, operator, fields)):
                return asked
            sent = self._confirmation.without_password(fields)
            response = act(request, operator, sent)
            if audit is not None:
                self._sign_in.record(request, operator, audit, subject(request, sent))
            return response

        endpoint = partial(_answer_form, answer, max_fields)
        return Route(path, endpoint, methods=["POST"], name=name, max_body_size=MAX_FORM_BYTES)


async def _answer_form(answer: _Answer, max_fields: int, request: Request) -> Response:
    fields = await read_form(request, max_fields=max_fields)
    return await run_in_threadpool(answer, request, fields)


def _sign_in_path(request: Request) -> str:
    """Lead back, after signing in, to the page the form was on."""
    page = local_path(urlsplit(request.headers.get("referer", "")).path)
    return link(request, "login", {"next": page} if page else None)

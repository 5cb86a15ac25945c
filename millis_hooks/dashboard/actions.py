"""Forms that change or reveal something: who may send them, how they are read, what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..operators import Action, Operator, Role
from .confirm import Confirmation
from .forms import MAX_FORM_BYTES, read_form
from .guards import local_path
from .pages import link
from .sign_in import SignIn, Subject, require_role, subject_of

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
        deed: Action | None = None,
        subject: Subject = subject_of,
        recent: Callable[[Mapping[str, str]], bool] = lambda fields: False,
        max_fields: int = 10,
    ) -> Route:
        """Return the route of a form: POST alone, and not a large one.

        Operators of another role get 403. A `deed` is recorded once `act` has returned and before
        the answer goes out. For a form that needs a `recent` password it is asked for again where
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
            if deed is not None:
                self._sign_in.record(request, operator, deed, subject(request, sent))
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

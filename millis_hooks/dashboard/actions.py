"""Forms that change something: who may send them, how they are read, and where the work is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..operators import Operator
from .forms import MAX_FORM_BYTES, read_form
from .guards import local_path
from .pages import link
from .sign_in import SignIn

#: Does what an operator asked for with a form, on a thread, and says where to go from there.
Act: TypeAlias = Callable[[Request, Operator, Mapping[str, str]], Response]


class Actions:
    """Makes the endpoints of forms."""

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in

    def route(self, path: str, name: str, act: Act) -> Route:
        """Return the route of a form: POST alone, and not a large one."""
        return Route(
            path, self._endpoint(act), methods=["POST"], name=name, max_body_size=MAX_FORM_BYTES
        )

    def _endpoint(self, act: Act) -> Callable[[Request], Awaitable[Response]]:
        def answer(request: Request, fields: Mapping[str, str]) -> Response:
            operator = self._sign_in.operator(request)
            if operator is None:
                return RedirectResponse(_sign_in_path(request), 303)
            return act(request, operator, fields)

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(answer, request, await read_form(request))

        return endpoint


def _sign_in_path(request: Request) -> str:
    """Lead back, after signing in, to the page the form was on."""
    page = local_path(urlsplit(request.headers.get("referer", "")).path)
    return link(request, "login", {"next": page} if page else None)

"""Endpoints of pages, fragments and forms: each requires sign-in and a role."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..operators import Action, Operator, Operators, Role
from .formats import MAX_FORM_BYTES, read_form
from .pages import PageRequest, Pages, View, as_json, forget_notice, link, set_notice
from .security import CONTENT_POLICY, page_before
from .sign_in import SignIn, client_of, refusal_text

#: The field of the confirmation form; no other form has one of this name.
_PASSWORD_FIELD = "confirm_password"


@dataclass(frozen=True, slots=True)
class OperatorRequest:
    """A request of an operator, with the fields of the form if it sends one."""

    http: Request
    operator: Operator
    pages: Pages
    operators: Operators
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def client(self) -> str:
        """The IP address of the client."""
        return client_of(self.http)

    def page_request(self, query: Mapping[str, str] | None = None) -> PageRequest:
        """Return the request as a view takes it; `query` replaces that of the address."""
        return self.pages.request(self.http, query)

    def record(self, action: Action, subject: str | None) -> int:
        """Write an action to the audit log and return the entry's id. Blocks; raises StorageError.

        Call it before the answer is sent: an action that cannot be recorded gets no answer.
        """
        return self.operators.record(self.operator, action, subject=subject, client=self.client)

    def redirect(
        self,
        name: str,
        query: Mapping[str, object] | None = None,
        *,
        notice: str | None = None,
        fragment: str = "",
        **params: object,
    ) -> Response:
        """Return a redirect to a page, or a place on it; the page is given the notice once."""
        address = link(self.http, name, query, **params)
        response = RedirectResponse(f"{address}#{fragment}" if fragment else address, 303)
        if notice is not None:
            set_notice(self.http, response, notice)
        return response


@dataclass(frozen=True, slots=True)
class Twin:
    """The `.json` of a page, with its path as the router has it."""

    path: str
    name: str
    view: View


#: Answers a request of an operator, on a thread.
Respond: TypeAlias = Callable[[OperatorRequest], Response]


class Endpoints:
    """Makes the routes of pages and forms."""

    def __init__(
        self, pages: Pages, sign_in: SignIn, operators: Operators, now: Callable[[], datetime]
    ) -> None:
        self._pages = pages
        self._sign_in = sign_in
        self._operators = operators
        self._now = now
        #: What opens to read tokens: the twins of pages, and files by path.
        self.twins: list[Twin] = []
        self.files: dict[str, str] = {}

    def page(
        self,
        path: str,
        name: str,
        view: View,
        policy: str = CONTENT_POLICY,
        *,
        role: Role = "view",
    ) -> Iterator[Route]:
        """Yield the routes of a page and its twin; the twin first, as any text may end in `.json`.

        The page is rendered by the template of its name.
        """

        def page(request: OperatorRequest) -> Response:
            data = _build(view, request)
            response = self._pages.show(request.http, f"{name}.html", data, has_twin=True)
            response.headers["Content-Security-Policy"] = policy
            forget_notice(request.http, response)
            return response

        def twin(request: OperatorRequest) -> Response:
            page_request = request.page_request()
            data = view(page_request)
            if data is not None:
                return as_json(data, agents=page_request.settings.agents)
            if request.operator.is_token:
                raise HTTPException(404)
            params = request.http.path_params
            for parameter in params:  # an id may itself end in ".json"
                params[parameter] += ".json"
            return page(request)

        if role == "view":
            self.twins.append(Twin(f"{path}.json", name, view))
        yield self.get(
            f"{path}.json", f"{name}_json", twin, role=role, opens_to_tokens=role == "view"
        )
        yield self.get(path, name, page, role=role)

    def moved(self, path: str, name: str) -> Iterator[Route]:
        """Yield the routes of the address that a page and its twin had before."""

        def redirect_to(to: str) -> Respond:
            def redirect(request: OperatorRequest) -> Response:
                query = request.http.query_params
                params = {each: query.getlist(each) for each in query}
                return request.redirect(to, params, **request.http.path_params)

            return redirect

        twin = redirect_to(f"{name}_json")
        yield self.get(f"{path}.json", f"moved_{name}.json", twin, opens_to_tokens=True)
        yield self.get(path, f"moved_{name}", redirect_to(name))

    def fragment(self, path: str, name: str, view: View, *, role: Role = "view") -> Route:
        """Return the route of what an open page asks for to replace parts of itself."""

        def fragment(request: OperatorRequest) -> Response:
            return self._pages.show(request.http, f"{name}.html", _build(view, request))

        return self.get(path, name, fragment, role=role, is_use=False)

    def get(
        self,
        path: str,
        name: str,
        respond: Respond,
        *,
        role: Role = "view",
        is_use: bool = True,
        opens_to_tokens: bool = False,
        is_file: bool = False,
    ) -> Route:
        """Return a route for operators; others are led to the sign-in page, or get 401 or 403.

        Unless a request `is_use`, it does not prolong the session: pages make it by themselves.
        What `opens_to_tokens` is read with a read token, too, whatever the role of operators. What
        `is_file` answers 401 itself, so that no browser keeps the sign-in page as the file.
        """

        def endpoint(request: Request) -> Response:
            operator = self._sign_in.who(request, is_use=is_use, opens_to_tokens=opens_to_tokens)
            if isinstance(operator, Response):
                return operator
            if operator is None:
                return self._sign_in.require(request, is_file=is_file)
            if not operator.is_token:
                _require_role(operator, role)
            return respond(OperatorRequest(request, operator, self._pages, self._operators))

        return Route(path, endpoint, name=name)

    def file(self, path: str, name: str, respond: Respond, *, role: Role = "view") -> Route:
        """Return the route of a file to download, which opens to read tokens."""
        self.files[path] = name
        return self.get(path, name, respond, role=role, opens_to_tokens=True, is_file=True)

    def form(
        self,
        path: str,
        name: str,
        respond: Respond,
        *,
        role: Role = "operate",
        page: str = "calls",
        needs_password: Callable[[Mapping[str, str]], bool] = lambda fields: False,
        max_fields: int = 10,
        undone: str = "changed",
        draft: Callable[[Mapping[str, str]], Mapping[str, object]] | None = None,
    ) -> Route:
        """Return the route of a form; only POST does what it asks for, GET leads to its `page`.

        Without a session the sign-in page says that nothing was `undone`, and leads back to the
        page the form was on, or to `page` filled in with what `draft` returns of the fields.
        Operators of another role get 403. If the form `needs_password` and it was not given in the
        last minutes, it is asked for first; the fields of the form are kept meanwhile.
        """

        def answer(request: Request, fields: Mapping[str, str]) -> Response:
            operator = self._sign_in.who(request)
            if isinstance(operator, Response):
                return operator
            if operator is None:
                back = link(request, page, draft(fields)) if draft else page_before(request)
                return self._sign_in.ask(request, back, undone)
            _require_role(operator, role)
            question = self._confirm(request, operator, fields) if needs_password(fields) else None
            sent = _without_password(fields)
            return question or respond(
                OperatorRequest(request, operator, self._pages, self._operators, sent)
            )

        async def endpoint(request: Request) -> Response:
            if request.method != "POST":
                return RedirectResponse(link(request, page), 303)
            fields = await read_form(request, max_fields=max_fields)
            return await run_in_threadpool(answer, request, fields)

        methods = ["GET", "POST"]
        return Route(path, endpoint, methods=methods, name=name, max_body_size=MAX_FORM_BYTES)

    def _confirm(
        self, request: Request, operator: Operator, fields: Mapping[str, str]
    ) -> Response | None:
        """Return a form that asks for the password, None if it was given lately. Blocks.

        It has the fields of the form that was sent, and the same address: so it works without
        scripts, and nothing has to be stored.
        """
        if operator.has_confirmed(self._now()):
            return None
        password = fields.get(_PASSWORD_FIELD)
        if password is None:
            return self._ask_password(request, operator, fields)
        refused = self._operators.confirm(operator, password, client=client_of(request))
        if refused is None:
            return None
        status_code = 429 if refused.retry_after_s else 401
        return self._ask_password(request, operator, fields, status_code, refusal_text(refused))

    def _ask_password(
        self,
        request: Request,
        operator: Operator,
        fields: Mapping[str, str],
        status_code: int = 200,
        error: str | None = None,
    ) -> Response:
        return self._pages.render(
            request,
            "confirm.html",
            status_code=status_code,
            operator=operator,
            fields=_without_password(fields),
            password_field=_PASSWORD_FIELD,
            back=page_before(request) or link(request, "calls"),
            error=error,
        )


def only(fields: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return the fields of these names that are filled in: what a page is asked for."""
    return {name: fields[name] for name in names if fields.get(name)}


def _build(view: View, request: OperatorRequest) -> Any:
    """Build what a page shows, or raise HTTPException 404."""
    data = view(request.page_request())
    if data is None:
        raise HTTPException(404)
    return data


def _require_role(operator: Operator, role: Role) -> None:
    if not operator.may(role):
        raise HTTPException(403)


def _without_password(fields: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in fields.items() if name != _PASSWORD_FIELD}

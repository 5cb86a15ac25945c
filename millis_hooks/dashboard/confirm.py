"""Asks who is signed in for the password once more, before a secret is shown.

The question is a form like the one that was sent, to the same address: it works without scripts,
and nothing has to be kept meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from ..operators import Operator, Operators
from .guards import local_path
from .pages import Pages, link
from .sign_in import client_of, told

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

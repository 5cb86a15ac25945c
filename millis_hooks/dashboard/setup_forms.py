"""The forms of the setup page: have the secrets shown, have a test sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import Action, Operator
from ..settings import Hook
from .pages import Asked, Pages, link
from .public_address import PublicAddress, public_address
from .setup import Setup

_HOOKS: Mapping[str, Hook] = {"prefetch": "prefetch", "end_of_call": "end_of_call"}

#: Writes down what an operator does with a request, and to what.
Record: TypeAlias = Callable[[Request, Operator, Action, str | None], None]


class SetupForms:
    """Takes the forms. Which address and which agent they are about, their fields say."""

    def __init__(self, setup: Setup, pages: Pages, record: Record) -> None:
        self._setup = setup
        self._pages = pages
        self._record = record

    def leads_elsewhere(self, fields: Mapping[str, str]) -> bool:
        """Tell whether a test would take a secret to another address than that of the settings.

        Which host a request names does not make it ours.
        """
        typed, configured = (
            (url or "").strip().rstrip("/")
            for url in (fields.get("url"), self._setup.settings.public_url)
        )
        return not configured or typed not in ("", configured)

    def reveal(self, request: Request, operator: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /setup/reveal` with the page, secrets and all."""
        view = self._ask(request, fields, lambda asked: self._setup.show(asked, reveals=True))
        return self._pages.render(
            request, "setup.html", view=view, operator=operator, live_count=view.live_count
        )

    def send(self, request: Request, operator: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /setup/test`: send a test, and show the page with what became of it.

        It is recorded first: the secret goes nowhere where that cannot be written.
        Raises HTTPException for what is no test, and for an address that somebody may have put
        into a link: it gets the secret only if the operator vouches for it.
        """
        hook = _HOOKS.get(fields.get("hook", ""))
        if hook is None:
            raise HTTPException(400)
        address = self._ask(request, fields, self._address)
        self._record(request, operator, "send_test", address.url)
        told = self._ask(request, fields, lambda asked: self._send(asked, hook, address.url))
        return RedirectResponse(link(request, "setup", told) + "#test", 303)

    def _address(self, asked: Asked) -> PublicAddress:
        address = public_address(self._setup.settings, asked)
        if address.refused is not None or not (address.is_ours or asked.query.get("vouched")):
            raise HTTPException(400)
        return address

    def _send(self, asked: Asked, hook: Hook, url: str) -> dict[str, object]:
        agent_id = self._setup.agent(asked)
        became = self._setup.trials.send(asked.log, hook, url, agent_id, asked.now)
        return {**self._setup.params(asked), **became}

    def _ask(
        self, request: Request, fields: Mapping[str, str], view: Callable[[Asked], Any]
    ) -> Any:
        return self._pages.ask(lambda asked: view(replace(asked, query=fields)), request)


def revealed(_: Request, fields: Mapping[str, str]) -> str:
    """Name what was shown, for the record."""
    agent_id = fields.get("agent")
    return f"webhook secrets of agent {agent_id[:100]}" if agent_id else "webhook secrets"

"""The forms of the setup page: have the secrets shown, have a test sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import Operator
from ..settings import Hook
from .pages import Asked, Pages, link
from .public_address import public_address
from .setup import Setup

_HOOKS: Mapping[str, Hook] = {"prefetch": "prefetch", "end_of_call": "end_of_call"}


class SetupForms:
    """Takes the forms. Which address and which agent they are about, their fields say."""

    def __init__(self, setup: Setup, pages: Pages) -> None:
        self._setup = setup
        self._pages = pages

    def reveal(self, request: Request, operator: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /setup/reveal` with the page, secrets and all."""
        view = self._ask(request, fields, lambda asked: self._setup.show(asked, reveals=True))
        return self._pages.render(
            request, "setup.html", view=view, operator=operator, live_count=view.live_count
        )

    def send(self, request: Request, _: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /setup/test`: send a test, and show the page with what became of it.

        Raises HTTPException for what is no test, and for an address that somebody may have put
        into a link: it gets the secret only if the operator vouches for it.
        """
        hook = _HOOKS.get(fields.get("hook", ""))
        if hook is None:
            raise HTTPException(400)
        told = self._ask(request, fields, lambda asked: self._send(asked, hook))
        return RedirectResponse(link(request, "setup", told) + "#test", 303)

    def _send(self, asked: Asked, hook: Hook) -> dict[str, object]:
        address = public_address(self._setup.settings, asked)
        if address.refused is not None or not (address.is_ours or asked.query.get("vouched")):
            raise HTTPException(400)
        agent_id = self._setup.agent(asked)
        became = self._setup.trials.send(asked.log, hook, address.url, agent_id, asked.now)
        return {**self._setup.params(asked), **became}

    def _ask(
        self, request: Request, fields: Mapping[str, str], view: Callable[[Asked], Any]
    ) -> Any:
        return self._pages.ask(lambda asked: view(replace(asked, query=fields)), request)


def revealed(_: Request, fields: Mapping[str, str]) -> str:
    """Name what was shown, for the record."""
    agent_id = fields.get("agent")
    return f"webhook secrets of agent {agent_id[:100]}" if agent_id else "webhook secrets"

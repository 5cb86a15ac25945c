"""Requests that bring an accepted secret to an address where no webhook is.

They are written down among the rejected ones: somebody has a wrong address, and their calls are
lost. Pages that are there are none of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import Gate
from .call_log.rejections import Rejection
from .exceptions import AuthenticationError, WrongAddressError
from .password_rules import MIN_CHARS
from .replies import Refusals
from .settings import Settings
from .webhooks import webhook_url

if TYPE_CHECKING:
    from .settings import Hook

_METHODS: dict[Hook, str] = {"prefetch": "GET", "end_of_call": "POST"}
_NO_LETTERS = re.compile(r"[^a-z]+")
#: A part of a path that may be repeated: what is longer may be a secret, and digits a number.
_HARMLESS = re.compile(rf"(?!.*\d{{5}})[\w.~-]{{0,{MIN_CHARS - 1}}}", re.ASCII)
_MOST_SEGMENTS = 8


class NearMisses:
    """Watches what is not for a webhook."""

    def __init__(self, settings: Settings, note: Callable[[Rejection], None]) -> None:
        """Hand what is refused to `note`, which must not wait."""
        self._settings = settings
        self._gates = {hook: Gate(settings, hook) for hook in _METHODS}
        self._refusals = {hook: Refusals(hook, _METHODS[hook], note) for hook in _METHODS}

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have `app` answer, and write it down if the request was meant for a webhook."""
        if scope["type"] != "http" or not self._brings_secret(scope):
            await app(scope, receive, send)
            return
        status = 200

        async def observed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await app(scope, receive, observed)
        if status >= 300:
            self._note(scope, status)

    def _brings_secret(self, scope: Scope) -> bool:
        return any(
            gate.find(scope["headers"]) or gate.accepts_one_of(_segments(scope))
            for gate in self._gates.values()
        )

    def _note(self, scope: Scope, status: int) -> None:
        hook = _meant(scope)
        error = WrongAddressError(self._reason(scope, hook))
        error.status_code = status
        self._refusals[hook].note(scope, error, query=scope["query_string"])

    def _reason(self, scope: Scope, hook: Hook) -> str:
        right = webhook_url(self._settings, hook, scope.get("root_path", ""))
        shown = "/".join(map(_shown, scope["path"].split("/")[:_MOST_SEGMENTS]))
        reason = (
            f"No webhook is at {scope['method'][:10]} {shown}. The address is "
            f"{_METHODS[hook]} {right}."
        )
        try:
            self._gates[hook].admit(scope["headers"])
        except AuthenticationError as error:
            reason += f" {error}"
        if self._gates[hook].accepts_one_of(_segments(scope)) and not self._settings.secret_in_path:
            reason += " A secret in the path is accepted with MILLIS_HOOKS_SECRET_IN_PATH=1 alone."
        return reason


def _segments(scope: Scope) -> list[bytes]:
    segments: list[str] = scope["path"].split("/")
    return [segment.encode("utf-8", "replace") for segment in segments[:_MOST_SEGMENTS]]


def _meant(scope: Scope) -> Hook:
    """Guess which webhook a request was for."""
    letters = _NO_LETTERS.sub("", scope["path"].lower())
    if "prefetch" in letters or "endofcall" in letters:
        return "prefetch" if "prefetch" in letters else "end_of_call"
    return "prefetch" if scope["method"] == "GET" else "end_of_call"


def _shown(segment: str) -> str:
    return segment if _HARMLESS.fullmatch(segment) else "…"

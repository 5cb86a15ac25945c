"""Requests that bring an accepted secret to an address where no webhook is, or with more in the
query and the headers than is read.

They are written down among the rejected ones: somebody has a wrong address, and their calls are
lost. Requests for pages that exist are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .auth import Gate
from .call_log.rejections import Rejection
from .exceptions import AuthenticationError, HeadTooLargeError, WrongAddressError
from .known_secrets import safe_path
from .password_rules import MIN_CHARS
from .replies import Refusals, take_query
from .settings import Settings
from .webhooks import webhook_url

if TYPE_CHECKING:
    from .settings import Hook

_METHODS: dict[Hook, str] = {"prefetch": "GET", "end_of_call": "POST"}
_NO_LETTERS = re.compile(r"[^a-z]+")
#: A part of a path that may be repeated: what is longer may be a secret, and digits a number.
_HARMLESS = re.compile(rf"(?!.*\d{{5}})[\w.~-]{{0,{MIN_CHARS - 1}}}", re.ASCII)
_MOST_SEGMENTS = 8
#: The most bytes of path, query and headers together; servers have limits of their own as well.
MOST_HEAD_BYTES = 32 * 1024


def head_bytes(scope: Scope) -> int:
    """Return how many bytes the path, the query and the headers of a request have."""
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return len(scope["path"]) + len(scope["query_string"]) + headers


class NearMisses:
    """Watches what is not for a webhook."""

    def __init__(self, settings: Settings, note: Callable[[Rejection], None]) -> None:
        """Hand what is refused to `note`, which must not wait."""
        self._settings = settings
        self._gates = {hook: Gate(settings, hook) for hook in _METHODS}
        self._refusals = {
            hook: Refusals(hook, _METHODS[hook], gate, note) for hook, gate in self._gates.items()
        }

    async def serve(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, asked: Scope
    ) -> None:
        """Have `app` answer, and write it down if the request was meant for a webhook.

        `asked` is the scope as it came: servers write access lines from `scope`, where no secret
        may stand.
        """
        if scope["type"] != "http" or not self._brings_secret(asked):
            await app(scope, receive, send)
            return
        status = 200

        async def observed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        if any(gate.is_in_query(asked["query_string"]) for gate in self._gates.values()):
            take_query(scope)
        await app({**scope, "query_string": asked["query_string"]}, receive, observed)
        if status >= 300:
            self._note(asked, status)

    async def refuse_head(self, scope: Scope, send: Send) -> None:
        """Refuse a request with more than `MOST_HEAD_BYTES`; write it down if it has a secret."""
        refusals = self._refusals[_meant(scope)]
        is_known = self._brings_secret(scope)
        error = HeadTooLargeError(
            f"The query and the headers have {_kb(head_bytes(scope))} kB, at most "
            f"{_kb(MOST_HEAD_BYTES)} kB are read; {_kb(len(scope['query_string']))} kB are the "
            "query. Send less metadata."
        )
        scope["path"], query = safe_path(scope["path"]), take_query(scope)
        await refusals.answer(send, error)
        if is_known:
            refusals.note(scope, error, query=query, brought_secret=True)

    def _brings_secret(self, scope: Scope) -> bool:
        segments = _segments(scope)
        return any(
            gate.find(scope["headers"], scope["query_string"]) or gate.accepts_one_of(segments)
            for gate in self._gates.values()
        )

    def _note(self, scope: Scope, status: int) -> None:
        hook = _meant(scope)
        error = WrongAddressError(self._reason(scope, hook))
        error.status_code = status
        self._refusals[hook].note(scope, error, query=scope["query_string"], brought_secret=True)

    def _reason(self, scope: Scope, hook: Hook) -> str:
        right = webhook_url(self._settings, hook, scope.get("root_path", ""))
        shown = "/".join(map(_shown, scope["path"].split("/")[:_MOST_SEGMENTS]))
        reason = (
            f"No webhook is at {scope['method'][:10]} {shown}. The address is "
            f"{_METHODS[hook]} {right}."
        )
        try:
            self._gates[hook].admit(scope["headers"], query=scope["query_string"])
        except AuthenticationError as error:
            reason += f" {error}"
        if self._gates[hook].accepts_one_of(_segments(scope)) and not self._settings.secret_in_path:
            reason += " A secret in the path is accepted with MILLIS_HOOKS_SECRET_IN_PATH=1 alone."
        return reason


def _kb(number: int) -> int:
    return ceil(number / 1024)


def _segments(scope: Scope) -> list[bytes]:
    """Return the parts of a path, also as they are where it was escaped twice."""
    path: str = scope["path"]
    segments = [*path.split("/")[:_MOST_SEGMENTS], *unquote(path).split("/")[:_MOST_SEGMENTS]]
    return [segment.encode("utf-8", "replace") for segment in segments]


def _meant(scope: Scope) -> Hook:
    """Guess which webhook a request was for."""
    letters = _NO_LETTERS.sub("", scope["path"].lower())
    if "prefetch" in letters or "endofcall" in letters:
        return "prefetch" if "prefetch" in letters else "end_of_call"
    return "prefetch" if scope["method"] == "GET" else "end_of_call"


def _shown(segment: str) -> str:
    return segment if _HARMLESS.fullmatch(segment) else "…"

"""Rejected requests: what may be kept of one, and requests with an accepted secret that miss the
address of a webhook.

Enough is kept to see who misconfigured what, and no secret: values of headers are hidden, except a
few that are known to hold none, and what was hidden is taken out of everything else as well.
Numbers are always shortened, because no later request to forget them could find them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import get_args
from urllib.parse import unquote, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..call_log.rejections import Described, Rejection
from ..call_log.sanitize import clean_text
from ..environment.secret_rules import MIN_CHARS
from ..exceptions import AuthenticationError, HeadTooLargeError, WrongAddressError
from ..masking.error_report import safe_path
from ..masking.places import PREFETCH_QUERY
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from ..masking.secret_patterns import MASK
from ..protocol.reading import read_query
from ..settings import Hook, Settings
from . import webhook_url
from .auth import Gate
from .responses import MOST_HEAD_BYTES, Webhook, head_bytes, take_query

_SHOWN_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-length",
     "content-type", "forwarded", "host", "transfer-encoding", "user-agent", "via",
     "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
)  # fmt: skip
_SCHEMES = frozenset({"basic", "bearer", "digest"})

_MOST_HEADERS = 50
_HEADER_CHARS = 300
_CLIENT_CHARS = 100
_QUERY_CHARS = 2_000
_QUERY_BYTES = 8_000
#: A shorter text also occurs in ordinary words.
_LEAST_HIDDEN_CHARS = 4


@dataclass(frozen=True, slots=True)
class Describer:
    """Describes refused requests without what `mask` hides, and without `secrets`."""

    mask: MaskPolicy
    secrets: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> Describer:
        """Return the describer for these settings."""
        policy = MaskPolicy.of(settings)
        numbers, words = policy.numbers, policy.words
        if settings.redact_before_store and numbers == words == "none":
            numbers = words = "full"
        mask = replace(
            policy,
            numbers="partial" if numbers == "none" else numbers,
            words="partial" if words == "none" else words,
        )
        accepted = (settings.accepted_secrets(hook) for hook in get_args(Hook))
        return cls(mask, frozenset(secret for secrets in accepted for secret in secrets))

    def __call__(self, request: Rejection) -> Described:
        first = request.headers[:_MOST_HEADERS]
        headers = [(_text(name).lower(), _text(value)) for name, value in first]
        hidden = [*self.secrets, *_hidden_in(headers)]
        if request.path_secret is not None:
            hidden.append(_text(request.path_secret))
        needles = sorted(filter(_is_long_enough, set(hidden)), key=len, reverse=True)
        return Described(
            method=_line(request.method, needles, 20),
            # It may come from X-Forwarded-For, and so be any text.
            client=_without(request.client or "", needles)[:_CLIENT_CHARS] or None,
            query=self._query(request.query, needles),
            headers=tuple(
                (_line(name, needles, 100), _value(name, value, needles)) for name, value in headers
            ),
            body_bytes=_declared_bytes(dict(request.headers)),
        )

    def _query(self, query: bytes, needles: Collection[str]) -> str:
        fields = []
        for name, value in read_query(query[:_QUERY_BYTES], []):
            field = {_without(name, needles): _without(value, needles)}
            masked = self.mask.payload({**field}, PREFETCH_QUERY)
            fields += list(masked.items()) if isinstance(masked, dict) else []
        return (clean_text(urlencode(fields)) or "")[:_QUERY_CHARS]


def _value(name: str, value: str, needles: Collection[str]) -> str:
    if name in _SHOWN_HEADERS:
        return _line(value, needles, _HEADER_CHARS)
    scheme, _, rest = value.partition(" ")
    is_scheme = name == "authorization" and rest and scheme.lower() in _SCHEMES
    return f"{scheme} {MASK}" if is_scheme else MASK


def _line(text: str, needles: Collection[str], max_chars: int) -> str:
    """Return a text without secrets, cut before its rest is searched for what looks like one."""
    line = SECRETS_ALONE.line(_without(text, needles)[:max_chars])
    return (clean_text(line) or "")[:max_chars]


def _hidden_in(headers: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, value in headers:
        if name not in _SHOWN_HEADERS:
            yield value
            yield value.partition(" ")[2].strip()


def _without(text: str, needles: Collection[str]) -> str:
    for needle in needles:
        text = text.replace(needle, MASK)
    return text


def _is_long_enough(text: str) -> bool:
    return len(text) >= _LEAST_HIDDEN_CHARS


def _declared_bytes(headers: dict[bytes, bytes]) -> int | None:
    declared = headers.get(b"content-length", b"")
    is_number = declared.isdigit() and len(declared) < len(str(2**63))
    return int(declared) if is_number else None


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


_METHODS: dict[Hook, str] = {"prefetch": "GET", "end_of_call": "POST", "function": "POST"}
_NO_LETTERS = re.compile(r"[^a-z]+")
#: A part of a path that may be repeated: what is longer may be a secret, and digits a number.
_HARMLESS = re.compile(rf"(?!.*\d{{5}})[\w.~-]{{0,{MIN_CHARS - 1}}}", re.ASCII)
_MOST_SEGMENTS = 8


class NearMisses:
    """Records requests with an accepted secret that are answered with an error: their sender has
    a wrong address, and its calls are lost."""

    def __init__(self, settings: Settings, webhooks: Iterable[Webhook]) -> None:
        self._settings = settings
        self._webhooks = {webhook.hook: webhook for webhook in webhooks}

    async def serve(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, original: Scope
    ) -> None:
        """Have `app` answer, and record the request if it was meant for a webhook.

        `original` is the scope as it arrived: servers write access lines from `scope`, which may
        hold no secret.
        """
        if scope["type"] != "http" or not self._brings_secret(original):
            await app(scope, receive, send)
            return
        status = 200

        async def observed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        if any(gate.is_in_query(original["query_string"]) for gate in self._gates):
            take_query(scope)
        await app({**scope, "query_string": original["query_string"]}, receive, observed)
        if status >= 300:
            self._note(original, status)

    async def refuse_head(self, scope: Scope, send: Send) -> None:
        """Refuse a request with more than `MOST_HEAD_BYTES`; record it if it has a secret."""
        webhook = self._webhooks[_meant(scope)]
        has_secret = self._brings_secret(scope)
        error = HeadTooLargeError(
            f"The query and the headers have {_kb(head_bytes(scope))} kB, at most "
            f"{_kb(MOST_HEAD_BYTES)} kB are read; {_kb(len(scope['query_string']))} kB are the "
            "query. Send less metadata."
        )
        scope["path"], query = safe_path(scope["path"]), take_query(scope)
        await webhook.refuse(send, error)
        if has_secret:
            webhook.note(scope, error, query=query, brought_secret=True)

    @property
    def _gates(self) -> list[Gate]:
        return [webhook.gate for webhook in self._webhooks.values()]

    def _brings_secret(self, scope: Scope) -> bool:
        segments = _segments(scope)
        return any(
            gate.find(scope["headers"], scope["query_string"]) or gate.accepts_one_of(segments)
            for gate in self._gates
        )

    def _note(self, scope: Scope, status: int) -> None:
        hook = _meant(scope)
        error = WrongAddressError(self._reason(scope, hook))
        error.status_code = status
        self._webhooks[hook].note(scope, error, query=scope["query_string"], brought_secret=True)

    def _reason(self, scope: Scope, hook: Hook) -> str:
        right = webhook_url(self._settings, hook, scope.get("root_path", ""))
        path = "/".join(map(_shortened, scope["path"].split("/")[:_MOST_SEGMENTS]))
        name = "/{name}" if hook == "function" else ""
        gate = self._webhooks[hook].gate
        reason = (
            f"No webhook is at {scope['method'][:10]} {path}. The address is "
            f"{_METHODS[hook]} {right}{name}."
        )
        try:
            gate.admit(scope["headers"], query=scope["query_string"])
        except AuthenticationError as error:
            reason += f" {error}"
        if gate.accepts_one_of(_segments(scope)) and not self._settings.secret_in_path:
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
    """Guess which webhook a request was meant for."""
    letters = _NO_LETTERS.sub("", scope["path"].lower())
    if "function" in letters:
        return "function"
    if "prefetch" in letters or "endofcall" in letters:
        return "prefetch" if "prefetch" in letters else "end_of_call"
    return "prefetch" if scope["method"] == "GET" else "end_of_call"


def _shortened(segment: str) -> str:
    return segment if _HARMLESS.fullmatch(segment) else "…"

"""What may be kept of a request that was refused: enough to see who misconfigured what, no secret.

Values of headers are hidden, but for a few that are known to hold none; what was hidden is taken
out of everything else as well. Numbers are shortened in any case: nobody could ask later that
they be forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from .call_log.rejections import Described, Rejection
from .call_log.values import clean_text
from .masking import MASK, SECRETS_ALONE, MaskPolicy
from .payload_places import PREFETCH_QUERY
from .query_string import read_query
from .settings import Settings

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
#: What is shorter is found in ordinary words.
_LEAST_HIDDEN_CHARS = 4


@dataclass(frozen=True, slots=True)
class Describer:
    """Describes refused requests without what `mask` hides, and without `secrets`."""

    mask: MaskPolicy
    secrets: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> Describer:
        """Return the one for these settings."""
        shown = MaskPolicy.of(settings)
        numbers, words = shown.numbers, shown.words
        if settings.redact_before_store and numbers == words == "none":
            numbers = words = "full"
        mask = replace(
            shown,
            numbers="partial" if numbers == "none" else numbers,
            words="partial" if words == "none" else words,
        )
        hooks = (settings.accepted_secrets("prefetch"), settings.accepted_secrets("end_of_call"))
        return cls(mask, frozenset(secret for accepted in hooks for secret in accepted))

    def __call__(self, request: Rejection) -> Described:
        headers = [
            (_text(name).lower(), _text(value)) for name, value in request.headers[:_MOST_HEADERS]
        ]
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
            found = {_without(name, needles): _without(value, needles)}
            masked = self.mask.payload({**found}, PREFETCH_QUERY)
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
    shown = SECRETS_ALONE.line(_without(text, needles)[:max_chars])
    return (clean_text(shown) or "")[:max_chars]


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

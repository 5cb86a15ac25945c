"""Authentication of deliveries: a secret in a header, or in the path where Millis takes only a URL.

Millis signs nothing; the static headers of its webhook configuration are all there is to check
(https://docs.millis.ai/core-concepts/webhooks). Everything is compared as bytes, and always
against every accepted secret, so that timing tells nothing about which one came close.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from itertools import chain, islice
from typing import TypeAlias

from ..exceptions import AuthenticationError
from ..protocol.reading import read_query
from ..settings import Hook, Settings

Header: TypeAlias = tuple[bytes, bytes]

#: So much of a refused request is searched for a secret that is not where it should be.
_MOST_HEADERS = 50
_MOST_BYTES = 1_000
_MOST_QUERY_BYTES = 4_000
_MOST_PARTS = 20
_SEPARATORS = re.compile(rb"^|[\s:=,;]+")
_WORDS = re.compile(rb"[^\s:=,;\"'`<>]+")
_AROUND = b" \t\"'`<>,;"
#: Headers that may be named in a reason: others may hold anything.
_KNOWN = frozenset(
    {b"authorization", b"proxy-authorization", b"cookie", b"x-api-key", b"api-key", b"apikey",
     b"x-auth-token", b"x-access-token", b"x-secret", b"x-webhook-secret"}
)  # fmt: skip

ANOTHER_AGENT = "The secret belongs to another agent."
ANOTHER_AGENT_BEGAN = "The secret belongs to another agent than the one that began the session."


@dataclass(frozen=True, slots=True)
class Grant:
    """What a secret allows: deliveries of one agent, or of any when `agent_id` is None.

    `secret` is the one that was brought, which also signs the mark of a test.
    """

    agent_id: str | None = None
    secret: bytes = b""

    def require_agent(self, agent_id: str | None) -> None:
        """Raise `AuthenticationError` if the delivery is another agent's."""
        if self.agent_id is not None and agent_id != self.agent_id:
            raise AuthenticationError(ANOTHER_AGENT)

    def require_session(self, agent_id: str | None) -> None:
        """Raise `AuthenticationError` if the session is known to be another agent's."""
        if self.agent_id is not None and agent_id not in (None, self.agent_id):
            raise AuthenticationError(ANOTHER_AGENT_BEGAN)


class Gate:
    """Checks the deliveries of one webhook."""

    def __init__(self, settings: Settings, hook: Hook) -> None:
        self._header = settings.secret_header.lower().encode()
        self._is_bearer = self._header == b"authorization"
        self._open = settings.insecure
        self._accepted = [
            Grant(agent_id, secret.encode())
            for secret, agent_id in settings.accepted_secrets(hook).items()
        ]

    def admit(
        self,
        headers: Sequence[Header],
        *,
        path_secret: bytes | None = None,
        query: bytes = b"",
    ) -> Grant:
        """Return what the delivery may do, or raise `AuthenticationError` with the reason.

        A secret in the query is not accepted; the reason says that it is there.
        """
        offered = [path_secret] if path_secret is not None else self._offered(headers)
        for candidate in offered:
            grants = [grant for grant in self._accepted if compare_digest(candidate, grant.secret)]
            if grants:
                return grants[0]
        if self._open:
            return Grant(secret=offered[0] if offered else b"")
        raise AuthenticationError(self._reason(headers, offered, query))

    def find(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> str | None:
        """Return where an accepted secret is, in whatever form; None if nowhere.

        In words, for the reason of a refusal.
        """
        likely_first = sorted(headers, key=lambda header: header[0] != self._header)
        for name, value in likely_first[:_MOST_HEADERS]:
            if any(map(self._is_accepted, _parts(value))):
                is_known = name in _KNOWN or name == self._header
                return f"the {name.decode('latin-1')} header" if is_known else "another header"
        return "the query" if self.is_in_query(query) else None

    def is_in_query(self, query: bytes) -> bool:
        """Tell whether an accepted secret is in a query string."""
        texts = chain.from_iterable(read_query(query[:_MOST_QUERY_BYTES], []))
        return any(self.accepts_one_of(_parts(text.encode())) for text in texts)

    def is_secret_in(
        self, headers: Iterable[Header], query: bytes, path_secret: bytes | None
    ) -> bool:
        """Tell whether a request that is refused brought an accepted secret, in whatever form."""
        in_path = path_secret is not None and self._is_accepted(path_secret)
        return in_path or self.find(headers, query) is not None

    def accepts_one_of(self, parts: Iterable[bytes]) -> bool:
        """Tell whether one of these is an accepted secret."""
        return any(map(self._is_accepted, parts))

    def _is_accepted(self, candidate: bytes) -> bool:
        return any(compare_digest(candidate, grant.secret) for grant in self._accepted)

    def _reason(self, headers: Sequence[Header], offered: list[bytes], query: bytes) -> str:
        found = self.find(headers, query)
        if found is not None:
            return f"An accepted secret is in {found}, in another form. Send {self._form}."
        if offered:
            return "The secret is not one of those accepted."
        return f"No secret in the {self._header.decode()} header."

    @property
    def _form(self) -> str:
        # Not as it would be written: what stands behind the word is hidden wherever it is shown.
        form = "`Bearer`, a space and the secret" if self._is_bearer else "the secret alone"
        return f"{form} in the {self._header.decode()} header"

    def _offered(self, headers: Sequence[Header]) -> list[bytes]:
        values = [value for name, value in headers if name == self._header]
        if len(values) > 1 and self._accepted:
            # What stands in front may have looked at another one than we would.
            raise AuthenticationError(f"Several {self._header.decode()} headers; one is due.")
        if not self._is_bearer:
            return values
        return [value[7:].strip() for value in values if value[:7].lower() == b"bearer "]


def _parts(value: bytes) -> Iterator[bytes]:
    """Yield what of a value may be a secret that is not where it should be."""
    value = value[:_MOST_BYTES]
    yield from _tails(value)
    scheme, _, encoded = value.strip().partition(b" ")
    if scheme.lower() == b"basic":
        with suppress(ValueError):
            yield from _tails(b64decode(encoded))


def _tails(text: bytes) -> Iterator[bytes]:
    """Yield the text from its start and from behind each separator, without quotes around it, and
    the words of it."""
    for place in islice(_SEPARATORS.finditer(text), _MOST_PARTS):
        yield text[place.end() :].strip(_AROUND)
    for word in islice(_WORDS.finditer(text), _MOST_PARTS):
        yield word[0]

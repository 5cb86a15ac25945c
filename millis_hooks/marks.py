"""The mark on calls that we make up, so that nobody takes them for Millis'.

Setup marks what it sends to try the way, and the sandbox the calls that are rehearsed there. It is
a header with what the call is for and a signature of that and of the session's id, by a key of the
call log: every process on that log knows it again, nobody else can make it, and it is good for no
other session. A marked delivery still needs the secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable
from typing import Literal, NamedTuple, TypeAlias, get_args

from .exceptions import SandboxOffError

#: What a call is for; in a `dry-run` handlers are asked to do nothing in earnest.
Purpose: TypeAlias = Literal["test", "sandbox", "dry-run"]

HEADER = "X-Millis-Hooks-Test"
#: The name of the key in the call log.
KEY_NAME = "test_calls"
#: Stays out of totals and analytics, like every call that Millis did not make.
TEST_SOURCE = "sandbox"
#: What a service accepts that has no sandbox.
TESTS_ONLY: frozenset[Purpose] = frozenset({"test"})
#: What one with a sandbox accepts.
REHEARSALS: frozenset[Purpose] = frozenset(get_args(Purpose))

_HEADER = HEADER.lower().encode()


class Mark(NamedTuple):
    """Who sent a delivery, unless Millis did, and whether it is to have no effect."""

    source: str | None = None
    dry_run: bool = False


Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
#: Reads the mark of a delivery of a session.
MarkOf: TypeAlias = Callable[[Headers, str | None], Mark]

_OF_MILLIS = Mark()


class Marks:
    """Makes marks and knows them again."""

    def __init__(self, key: bytes, *, accepts: Collection[Purpose] = TESTS_ONLY) -> None:
        self._key = key
        self._accepts = accepts

    def header(self, session_id: str, purpose: Purpose = "test") -> dict[str, str]:
        """Return the header that marks a delivery of this session."""
        return {HEADER: f"{purpose} {self._signature(session_id, purpose)}"}

    def mark_of(self, headers: Headers, session_id: str | None) -> Mark:
        """Return the mark of a delivery; an empty one if it has none, or none of ours.

        Raises `SandboxOffError` for one of ours that is not accepted here: what is rehearsed must
        not be taken for a call of Millis'.
        """
        for name, value in headers:
            if name == _HEADER and session_id is not None:
                return self._read(value, session_id)
        return _OF_MILLIS

    def _read(self, value: bytes, session_id: str) -> Mark:
        for purpose in sorted(REHEARSALS):
            expected = f"{purpose} {self._signature(session_id, purpose)}".encode()
            if hmac.compare_digest(value, expected):
                if purpose not in self._accepts:
                    raise SandboxOffError
                return Mark(TEST_SOURCE, purpose == "dry-run")
        return _OF_MILLIS

    def _signature(self, session_id: str, purpose: Purpose) -> str:
        message = f"{purpose} {session_id}".encode("utf-8", "replace")
        return hmac.digest(self._key, message, "sha256").hex()


def of_millis(_headers: Headers, _session_id: str | None) -> Mark:
    """Take every delivery for one of Millis'."""
    return _OF_MILLIS

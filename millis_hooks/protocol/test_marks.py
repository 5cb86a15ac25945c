"""Marks on deliveries that Millis did not make: samples, rehearsals and tests.

`send`, Setup, the sandbox and tests add the mark. It is a header with the purpose of the delivery
and a signature of purpose and session id, by the secret of the delivery. It protects nothing, as
the secret allows to send anything; it is valid for one session only, so that a mark that was copied
into the configuration of an agent hides no real call.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Iterable
from typing import Any, Generic, Literal, NamedTuple, TypeAlias

from typing_extensions import TypeVar

from ..exceptions import SandboxOffError

#: What `state` is: what the application's `lifespan` yields.
State = TypeVar("State", default=Any)

#: What a delivery is for. A `test` is a sample, `sandbox` a rehearsal; in a `dry-run` handlers are
#: asked to skip side effects; `as-real` is a test whose handlers see a call of Millis'.
Purpose: TypeAlias = Literal["test", "sandbox", "dry-run", "as-real"]

HEADER = "X-Millis-Hooks-Test"
#: `source` of what is stored of each. Calls of these sources stay out of all figures.
SANDBOX_SOURCE, TEST_SOURCE, AS_REAL_SOURCE = "sandbox", "test", "as_real"
MADE_UP_SOURCES = frozenset({SANDBOX_SOURCE, TEST_SOURCE, AS_REAL_SOURCE})
_SOURCES: dict[Purpose, str] = {
    "test": TEST_SOURCE,
    "sandbox": SANDBOX_SOURCE,
    "dry-run": SANDBOX_SOURCE,
    "as-real": AS_REAL_SOURCE,
}
#: What a service accepts that has no sandbox.
TESTS_ONLY: frozenset[Purpose] = frozenset({"test"})
#: What one with a sandbox accepts.
REHEARSALS: frozenset[Purpose] = frozenset(_SOURCES)

_HEADER = HEADER.lower().encode()


class Mark(NamedTuple):
    """Who made a delivery up, unless Millis sent it, and whether it is to have no effect."""

    source: str | None = None
    dry_run: bool = False


class Received(Generic[State]):
    """An event, and what the application knows of it beside what it says."""

    __slots__ = ()

    session_id: Any  # text; None where a function is called outside of a session
    _state: State
    _source: str | None
    _dry_run: bool

    @property
    def state(self) -> State:
        """What the application's `lifespan` yielded."""
        return self._state

    @property
    def sandbox(self) -> bool:
        """Whether the call is simulated or a test request; False for every call from Millis, and in
        your tests unless they ask for `sandbox=True`."""
        return self._source in MADE_UP_SOURCES - {AS_REAL_SOURCE}

    @property
    def dry_run(self) -> bool:
        """Whether handlers should skip side effects; False for every call from Millis."""
        return self._dry_run

    @property
    def is_made_up(self) -> bool:
        """Whether Millis did not make the call: then `hooks.millis` does not reach it either."""
        return self._source in MADE_UP_SOURCES

    def mark(self, *, source: str | None, dry_run: bool) -> None:
        """Say who made the call up, if Millis did not make it; see `Marks`."""
        self._source = source  # type: ignore[misc]  # the events have the slots
        self._dry_run = dry_run  # type: ignore[misc]


Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
#: Reads the mark of a delivery: from its headers, its session and the secret it brought.
MarkOf: TypeAlias = Callable[[Headers, str | None, bytes], Mark]

_OF_MILLIS = Mark()


def purpose_of(*, sandbox: bool, dry_run: bool) -> Purpose:
    """Return what a delivery in a test is for, by what its handlers are to see."""
    if dry_run:
        return "dry-run"
    return "sandbox" if sandbox else "as-real"


def mark_header(secret: str | None, session_id: str | None, purpose: Purpose) -> dict[str, str]:
    """Return the header that marks a delivery of this session which brings this secret."""
    return {HEADER: f"{purpose} {_signature((secret or '').encode(), session_id, purpose)}"}


class Marks:
    """Reads the marks of deliveries, and accepts those of some purposes."""

    def __init__(self, *, accepts: Collection[Purpose] = TESTS_ONLY) -> None:
        self._accepts = accepts

    def mark_of(self, headers: Headers, session_id: str | None, secret: bytes) -> Mark:
        """Return the mark of a delivery; an empty one if it has none that fits.

        Raises `SandboxOffError` for one that is not accepted here: what is rehearsed must not be
        taken for a call of Millis'.
        """
        for name, value in headers:
            if name == _HEADER:
                return self._read(value, session_id, secret)
        return _OF_MILLIS

    def _read(self, value: bytes, session_id: str | None, secret: bytes) -> Mark:
        for purpose, source in _SOURCES.items():
            expected = f"{purpose} {_signature(secret, session_id, purpose)}".encode()
            if hmac.compare_digest(value, expected):
                if purpose not in self._accepts:
                    raise SandboxOffError
                return Mark(source, purpose == "dry-run")
        return _OF_MILLIS


def _signature(secret: bytes, session_id: str | None, purpose: Purpose) -> str:
    # As the session is stored: without spaces around it, and what no database takes replaced.
    session = (session_id or "").strip().replace("\0", "�")
    message = f"millis-hooks {purpose} {session}".encode("utf-8", "replace")
    return hmac.digest(secret, message, "sha256").hex()

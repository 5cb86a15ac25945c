"""What is known from before: the prefetch of a call, and its caller's earlier calls, which handlers
ask for and the call log answers. And `untrusted`, which fences text of others for a prompt.
"""

from __future__ import annotations

import asyncio
import unicodedata
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, Self

from .phones import digits_of
from .reading import Json, object_in
from .results import Plain

#: Earlier calls that a handler gets at most.
MOST_EARLIER = 20
#: Numbers with fewer digits are short codes, which do not belong to one person.
_LEAST_DIGITS = 7
#: Words on the keys of a telephone, as carriers send them in place of a withheld number:
#: anonymous, restricted, blocked, unknown, unavailable.
_WITHHELD = frozenset({"266696687", "7378742833", "2562533", "8656696", "86282452253"})

_OPEN, _CLOSE = "<<<", ">>>"
#: Characters of the fence, those that look like them, and those of variables in a prompt.
_LOOKALIKES = str.maketrans(
    dict.fromkeys(
        "<{\u2039\u00ab\u2329\u276e\u27e8\u27ea\u3008\u300a\u226a\u22d8\ufe64\uff1c\uff5b"
        "\u02c2\u226e\u276c\u2770\u2774\u2983\u2991\u29fc\u2aa1\ufe37\ufe3d\ufe3f\ufe5b",
        "(",
    )
    | dict.fromkeys(
        ">}\u203a\u00bb\u232a\u276f\u27e9\u27eb\u3009\u300b\u226b\u22d9\ufe65\uff1e\uff5d"
        "\u02c3\u226f\u276d\u2771\u2775\u2984\u2992\u29fd\u2aa2\ufe38\ufe3e\ufe40\ufe5c",
        ")",
    )
)
#: Letters, marks and variants that are not seen, and that Unicode does not call control characters.
_SHAPELESS = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
#: Characters that are read for each one that may stay: dropped ones must not cost time without end.
_READ_FOR_ONE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierCall:
    """An earlier call of the same caller, as it is stored: masked if it was masked before that.

    `started_at` is aware and in UTC, by Millis' clock, or else when the call was first heard of.
    The last words are None where nothing was said. What others said or sent is not yours: see
    `untrusted` before it goes into a prompt.
    """

    session_id: str
    started_at: datetime
    agent_id: str | None = None
    outcome: str | None = None
    call_status: str | None = None
    duration_s: float | None = None
    metadata: dict[str, Json] = field(default_factory=dict)
    #: What end-of-call handlers returned for the call.
    results: dict[str, Plain] = field(default_factory=dict)
    caller_last_words: str | None = None
    agent_last_words: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredPrefetch:
    """A prefetch, as it was answered."""

    #: fresh, cached, last_good, default, late or failed.
    outcome: str
    received_at: datetime
    latency_ms: float | None
    #: What Millis was sent.
    metadata: dict[str, Json]
    extra_prompt: str | None
    #: What handlers kept: `PrefetchResponse(keep=...)`, and the choices of `variant`.
    keep: dict[str, Json]

    @classmethod
    def read(
        cls,
        answer: bytes | None,
        kept: str | None,
        *,
        outcome: str,
        received_at: datetime,
        latency_ms: float | None,
    ) -> Self:
        """Read what is stored of a prefetch; what cannot be read is left out."""
        sent = object_in(answer)
        prompt = sent.get("extra_prompt")
        return cls(
            outcome=outcome,
            received_at=received_at,
            latency_ms=latency_ms,
            metadata=object_in(sent.get("metadata")),
            extra_prompt=prompt if isinstance(prompt, str) else None,
            keep=object_in(kept),
        )


class Recall(Protocol):
    """Looks up earlier calls for one event, in a thread, and within the time its handler has."""

    def ask(self, limit: int, agent: str | None) -> Future[list[EarlierCall]]:
        """Begin to look them up."""

    def wait_s(self) -> float:
        """Return how long to wait for them, in seconds."""

    def give_up(self, asked: Future[list[EarlierCall]]) -> list[EarlierCall]:
        """Warn that they took too long, and return none."""


class Remembers:
    """An event whose handler may ask for the caller's earlier calls."""

    __slots__ = ()

    _recall: Recall | None

    async def earlier(self, limit: int = 3, agent: str | None = None) -> list[EarlierCall]:
        """Return the caller's earlier calls, newest first: at most `limit`, 20 at the most.

        They are found by the customer's number; `agent` leaves those of one agent's id. A caller
        without a number of their own has none: on the web, withheld, anonymous, a short code. A
        simulated call finds simulated and real calls, a real call only real ones.

        It waits at most half of the time that the handler has left. A call log that is slower, or
        away, gives an empty list and a warning in the log. Raises `ValueError` for a `limit`
        below 1.
        """
        _check(limit)
        if self._recall is None:  # made by hand
            return []
        asked = self._recall.ask(min(limit, MOST_EARLIER), agent)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(asked), self._recall.wait_s())
        except TimeoutError:
            return self._recall.give_up(asked)

    def earlier_blocking(self, limit: int = 3, agent: str | None = None) -> list[EarlierCall]:
        """Return what `earlier` does, for a handler that is not `async`.

        Raises `RuntimeError` in an `async` one, where it would hold up the others.
        """
        _check(limit)
        if _is_on_a_loop():
            raise RuntimeError("An async handler awaits call.earlier(); this would block others.")
        if self._recall is None:
            return []
        asked = self._recall.ask(min(limit, MOST_EARLIER), agent)
        try:
            return asked.result(self._recall.wait_s())
        except TimeoutError:
            return self._recall.give_up(asked)


def _check(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"limit should be 1 to {MOST_EARLIER}, not {limit}")


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def is_of_one_caller(phone: str | None) -> bool:
    """Tell whether a number stands for one caller: not withheld, masked, or a short code."""
    digits = digits_of(phone)
    return (
        phone is not None
        and len(digits) >= _LEAST_DIGITS
        and all(each.isdigit() or each in "+ ().-/" for each in phone)
        and digits not in _WITHHELD
        and len(set(digits)) > 1
    )


def untrusted(text: object, *, limit: int = 500) -> str:
    """Return text that others wrote or said, fenced for a prompt: `<<<words of the caller>>>`.

    It becomes one line of at most `limit` characters without control, invisible or bidirectional
    characters. It cannot contain the fence, nor a `{variable}`: angle brackets and braces become
    parentheses. None is an empty text. Raises `ValueError` for a `limit` below 1.

    It is no guarantee against prompt injection: tell the model what the fence means, and let
    nothing depend on what is inside.
    """
    if limit < 1:
        raise ValueError(f"limit should be at least 1, not {limit}")
    written = "" if text is None else str(text)
    read = written[: limit * _READ_FOR_ONE]
    line = " ".join("".join(map(_shown, unicodedata.normalize("NFC", read))).split())
    line = line.translate(_LOOKALIKES)
    if len(line) > limit or len(read) < len(written):
        line = line[: limit - 1].rstrip() + "\u2026"
    return f"{_OPEN}{line}{_CLOSE}"


def _shown(character: str) -> str:
    """Return a character as it stays: white space as a space, and nothing for what is not seen."""
    if character.isspace():
        return " "
    if character in _SHAPELESS or "\ufe00" <= character <= "\ufe0f":
        return ""
    is_hidden = (
        unicodedata.category(character)[0] == "C" or "\U000e0100" <= character <= "\U000e01ef"
    )
    return "" if is_hidden else character

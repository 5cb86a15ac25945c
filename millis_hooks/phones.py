"""Phone numbers as they come, and whose they are. Numbers compare by their digits alone."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["inbound", "outbound"]

_NOT_DIGIT = re.compile(r"\D")


def repair_phone(phone: str) -> str | None:
    """Return the number; a `+` that was sent without escaping has arrived as a space."""
    stripped = phone.strip()
    lost_plus = phone[:1] == " " and stripped[:1].isdigit()
    return f"+{stripped}" if lost_plus else stripped or None


def digits_of(phone: str | None) -> str:
    """Return a number's digits: what is left when two spellings of it are compared."""
    return _NOT_DIGIT.sub("", phone or "")


def direction_of(
    from_phone: str | None, to_phone: str | None, own_numbers: frozenset[str]
) -> Direction | None:
    """Tell who calls whom by which of the two numbers is ours; None if neither is known to be."""
    own = _own_digits(own_numbers)
    if digits_of(from_phone) in own:
        return "outbound"
    return "inbound" if digits_of(to_phone) in own else None


def customer_of(
    from_phone: str | None, to_phone: str | None, own_numbers: frozenset[str]
) -> str | None:
    """Return the number that is not ours, and `from_phone` where neither is known to be.

    Millis' documentation calls `from` the caller, which on outbound calls is our own number: only
    `own_numbers` can tell. Source: docs.millis.ai, core-concepts/webhooks.
    """
    outbound = direction_of(from_phone, to_phone, own_numbers) == "outbound"
    return to_phone if outbound else from_phone


@lru_cache(maxsize=64)
def _own_digits(own_numbers: frozenset[str]) -> frozenset[str]:
    return frozenset(filter(None, map(digits_of, own_numbers)))

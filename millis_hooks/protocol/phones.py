"""Phone numbers: repair, international form, direction and customer.

Numbers are compared by their digits.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["inbound", "outbound"]
Channel: TypeAlias = Literal["phone", "web", "chat"]

_NOT_DIGIT = re.compile(r"\D")
_LETTER = re.compile(r"[^\W\d_]")
#: Digits and the separators between them.
_INTERNATIONAL = re.compile(r"\+[\d\s().\-/\u2010-\u2015\u2212]+")
#: How most countries dial a `+`. No number in the national form of the others begins so.
_DIALLED = re.compile(r"^(tel:\+|(tel:)?00(?=[\s\d]))", re.IGNORECASE)
_NOT_INTERNATIONAL = (
    "{number!r} is not a telephone number in international form; write it with + and the country "
    "code, such as +14155550199"
)


def repair_phone(phone: str) -> str | None:
    """Return the number; a `+` that was sent without escaping has arrived as a space."""
    stripped = phone.strip()
    lost_plus = phone[:1] == " " and stripped[:1].isdigit()
    return f"+{stripped}" if lost_plus else stripped or None


def international(number: str) -> str:
    """Return a configured number as Millis sends it: `+`, country code, digits (E.164).

    Raises `ValueError` for one that can never be the number of a call: a national form, a SIP
    address, too few digits, no such country.
    """
    text = _DIALLED.sub("+", unicodedata.normalize("NFKC", number).strip())
    if not _INTERNATIONAL.fullmatch(text):
        raise ValueError(_NOT_INTERNATIONAL.format(number=number))
    import phonenumbers  # takes its time, and many configure no number

    try:
        parsed = phonenumbers.parse(text.replace("(0)", ""))
    except phonenumbers.NumberParseException:
        raise ValueError(_NOT_INTERNATIONAL.format(number=number)) from None
    if not phonenumbers.is_possible_number(parsed):
        raise ValueError(_NOT_INTERNATIONAL.format(number=number))
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def as_sent(caller: str) -> str:
    """Return a caller as Millis sends it: a number in international form, or text that is not a
    number, such as `anonymous`.

    Raises `ValueError` for a number that is not in international form.
    """
    return caller if _LETTER.search(caller.removeprefix("tel:")) else international(caller)


def looked_for(number: str) -> str:
    """Return a number in international form, or unchanged if it has none."""
    try:
        return international(number)
    except ValueError:
        return number


def is_international(number: str) -> bool:
    """Tell whether it is a whole number in international form."""
    try:
        return bool(international(number))
    except ValueError:
        return False


def digits_of(phone: str | None) -> str:
    """Return the digits of a number, by which spellings are compared."""
    if phone and phone.isascii() and phone[1:].isdigit() and phone[0] == "+":
        return phone[1:]  # as Millis sends it: no pattern is needed
    return _NOT_DIGIT.sub("", phone or "")


def direction_of(
    from_phone: str | None, to_phone: str | None, own_numbers: frozenset[str]
) -> Direction | None:
    """Return the direction, by which number is one of `own_numbers`; None if neither is."""
    own = _own_digits(own_numbers)
    if digits_of(from_phone) in own:
        return "outbound"
    return "inbound" if digits_of(to_phone) in own else None


def customer_of(
    from_phone: str | None, to_phone: str | None, own_numbers: frozenset[str]
) -> str | None:
    """Return the number that is not one of `own_numbers`; `from_phone` if neither is.

    Millis' documentation calls `from` the caller, which on outbound calls is our own number: only
    `own_numbers` can tell. Source: docs.millis.ai, core-concepts/webhooks.
    """
    outbound = direction_of(from_phone, to_phone, own_numbers) == "outbound"
    return to_phone if outbound else from_phone


@lru_cache(maxsize=64)
def _own_digits(own_numbers: frozenset[str]) -> frozenset[str]:
    return frozenset(filter(None, map(digits_of, own_numbers)))

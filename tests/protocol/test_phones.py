from __future__ import annotations

import pytest

from millis_hooks.protocol.phones import (
    as_sent,
    customer_of,
    digits_of,
    direction_of,
    looked_for,
    repair_phone,
)

OWN = frozenset({"+1 (555) 010-0199", "", "agent"})


@pytest.mark.parametrize(
    ("sent", "phone"),
    [(" 15550100", "+15550100"), ("+15550100 ", "+15550100"), ("15550100", "15550100"),
     (" sip:ann@host", "sip:ann@host"), ("", None), ("  ", None)],
)  # fmt: skip
def test_a_number_is_repaired_only_where_a_plus_was_lost(sent: str, phone: str | None) -> None:
    assert repair_phone(sent) == phone


def test_numbers_compare_by_their_digits() -> None:
    assert digits_of("+1 (555) 010-0199") == digits_of("15550100199")
    assert direction_of("+49301234567", "15550100199", OWN) == "inbound"


@pytest.mark.parametrize("phone", [None, "", "anonymous"])
def test_a_side_without_digits_has_no_number(phone: str | None) -> None:
    assert direction_of(phone, phone, OWN) is None


def test_the_customer_of_a_call_we_made_is_whom_we_called() -> None:
    assert customer_of("+15550100199", "+49301234567", OWN) == "+49301234567"
    assert customer_of("+15550100199", "+49301234567", frozenset()) == "+15550100199"


@pytest.mark.parametrize(
    ("given", "sent"),
    [("0044 (0)20 7946 0000", "+442079460000"), ("tel:+1 415 555 0199", "+14155550199"),
     ("anonymous", "anonymous"), ("sip:ann@host", "sip:ann@host")],
)  # fmt: skip
def test_a_caller_is_what_millis_sends(given: str, sent: str) -> None:
    assert as_sent(given) == sent


@pytest.mark.parametrize("given", ["(415) 555-0199", "020 7946 0000", "+999 123456", "14155550199"])
def test_a_caller_with_a_number_of_no_country_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"write it with [+] and the country code"):
        as_sent(given)
    assert looked_for(given) == given

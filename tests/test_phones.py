from __future__ import annotations

import pytest

from millis_hooks.phones import customer_of, digits_of, direction_of, repair_phone

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
def test_a_side_without_digits_is_nobody(phone: str | None) -> None:
    assert direction_of(phone, phone, OWN) is None


def test_the_customer_of_a_call_we_made_is_whom_we_called() -> None:
    assert customer_of("+15550100199", "+49301234567", OWN) == "+49301234567"
    assert customer_of("+15550100199", "+49301234567", frozenset()) == "+15550100199"

"""A page shows the beginning of what is too large for it, and says how much more there is."""

from __future__ import annotations

from typing import Any

import pytest

from millis_hooks.dashboard.payloads import Room


@pytest.mark.parametrize("value", [None, 1.5, True, "text", ["a", {"b": []}], {"a": {"b": [1]}}])
def test_what_fits_is_shown_as_it_is(value: Any) -> None:
    assert Room().beginning(value) == value


def test_a_long_text_ends_after_a_word() -> None:
    shown = Room().beginning("token_0123456789 " * 10_000)
    assert isinstance(shown, str)
    assert len(shown) < 101_000
    words, _, left_out = shown.partition(" … ")
    assert set(words.split()) == {"token_0123456789"}
    assert left_out == f"{170_000 - len(words):,} more characters"


def test_of_one_endless_word_nothing_is_shown() -> None:
    assert Room().beginning("x" * 200_000) == " … 200,000 more characters"


def test_all_texts_share_the_room() -> None:
    shown = Room().beginning(["word " * 10_000] * 30)
    assert isinstance(shown, list)
    assert sum(len(str(text)) for text in shown) < 510_000


def test_parts_that_are_too_many_are_counted() -> None:
    room = Room()
    shown = room.beginning([{"a": [1]}] * 20_000)
    assert isinstance(shown, list)
    assert len(shown) < 5_000
    assert shown[-1] == f"… {20_000 - len(shown) + 1:,} more"
    assert room.beginning({"a": 1, "b": 2}) == {"…": "2 more"}

"""Payloads on a page, and metadata compared to the prefetch."""

from __future__ import annotations

from typing import Any

import pytest

from millis_hooks.dashboard.payloads import Room
from support.dashboard_site import Site


@pytest.mark.parametrize("value", [None, 1.5, True, "text", ["a", {"b": []}], {"a": {"b": [1]}}])
def test_short_values_are_shown_whole(value: Any) -> None:
    assert Room().beginning(value) == value


def test_a_long_text_ends_after_a_word() -> None:
    cut = Room().beginning("token_0123456789 " * 10_000)
    assert isinstance(cut, str)
    assert len(cut) < 101_000
    words, _, left_out = cut.partition(" … ")
    assert set(words.split()) == {"token_0123456789"}
    assert left_out == f"{170_000 - len(words):,} more characters"


def test_a_single_endless_word_is_left_out() -> None:
    assert Room().beginning("x" * 200_000) == " … 200,000 more characters"


def test_all_texts_share_the_room() -> None:
    cut = Room().beginning(["word " * 10_000] * 30)
    assert isinstance(cut, list)
    assert sum(len(str(text)) for text in cut) < 510_000


def test_left_out_parts_are_counted() -> None:
    room = Room()
    cut = room.beginning([{"a": [1]}] * 20_000)
    assert isinstance(cut, list)
    assert len(cut) < 5_000
    assert cut[-1] == f"… {20_000 - len(cut) + 1:,} more"
    assert room.beginning({"a": 1, "b": 2}) == {"…": "2 more"}


def entries(site: Site) -> dict[str, tuple[object, object, object, object]]:
    """What became of each key: its value, the one before, the change, and who made it."""
    metadata = site.get("/calls/-call.json").json()["metadata"]
    return {
        each["key"]: (each["value"], each["before"], each["change"], each["by"])
        for each in metadata
    }


def test_metadata_shows_its_source(site: Site) -> None:
    site.add_prefetch(
        "session_id=-call&tier=silver&id=7&campaign=autumn&mood=calm",
        metadata={"tier": "gold", "name": "Ada"},
    )
    site.add_ended_call(
        metadata={"tier": "gold", "name": "Ada", "id": "7", "booked": True, "mood": "angry"}
    )
    assert entries(site) == {
        "tier": ("gold", "silver", "changed", "prefetch"),
        "name": ("Ada", None, "added", "prefetch"),
        "id": ("7", None, None, None),
        "booked": (True, None, "added", "call"),
        "mood": ("angry", "calm", "changed", "call"),
        "campaign": (None, "autumn", "gone", "call"),
    }
    text = site.page("/calls/-call").text
    for words in ("silver gold Changed", "Ada Added", "true Added in the call", "autumn Gone"):
        assert words in text


def test_only_the_first_of_many_metadata_keys_are_shown(site: Site) -> None:
    site.add_ended_call(metadata={f"field{number}": number for number in range(1_700)})
    assert len(entries(site)) == 500
    text = site.page("/calls/-call").text
    assert "field499 499" in text
    assert "1,200 more in the JSON" in text
    assert "field500 500" not in text


def test_before_the_end_metadata_is_that_of_the_answer(site: Site) -> None:
    site.stored.add_unended_call("-call", minutes_ago=1)
    site.add_prefetch("tier=silver&id=7", metadata={"tier": "gold"})
    assert entries(site)["tier"] == ("gold", "silver", "changed", "prefetch")
    assert entries(site)["id"] == ("7", None, None, None)


def test_metadata_shows_additions_and_changes_by_the_prefetch(site: Site) -> None:
    site.stored.add_delivery(
        "prefetch",
        session_id="-call",
        query="session_id=-call&tier=silver&id=7&vip=true",
        answer=b'{"metadata": {"tier": "gold", "name": "Maria"}}',
        outcome="fresh",
    )
    site.add_ended_call(metadata={"tier": "gold", "name": "Maria", "id": "7", "vip": True})
    entries = site.get("/calls/-call.json").json()["metadata"]
    assert {entry["key"]: entry["change"] for entry in entries} == {
        "tier": "changed",
        "name": "added",
        "id": None,
        "vip": None,
    }


def test_without_a_prefetch_the_origin_of_metadata_is_unknown(site: Site) -> None:
    site.add_ended_call(metadata={"tier": "gold"})
    page = site.page("/calls/-call")
    assert "no prefetch on record: origin unknown" in page.text
    assert "Added" not in page.text

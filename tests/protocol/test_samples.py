from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.prefetch import PrefetchRequest
from millis_hooks.protocol.samples import (
    VINTAGES,
    Vintage,
    end_of_call_body,
    prefetch_query,
    push_id,
)

STARTED = datetime(2026, 1, 2, 3, 4, 5, 250000, UTC)
HONEST: tuple[Vintage, ...] = ("v1a", "v1b", "v2", "v2-extras")


def test_an_id_is_twenty_characters_and_begins_with_a_dash() -> None:
    made = push_id(STARTED)
    assert len(made) == 20
    assert made[0] == "-"


def test_ids_sort_by_time_and_differ_within_it() -> None:
    later = push_id(datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC))
    assert push_id(STARTED) < later
    assert push_id(STARTED) != push_id(STARTED)


@pytest.mark.parametrize("vintage", HONEST)
def test_an_honest_call_reads_without_a_problem(vintage: Vintage) -> None:
    call = EndOfCall.parse(end_of_call_body(vintage, started_at=STARTED, duration_s=12))
    assert call.problems == []
    assert (call.started_at, call.duration_s, len(call.chat) >= 4) == (STARTED, 12, True)


@pytest.mark.parametrize("vintage", VINTAGES)
def test_every_vintage_keeps_the_ids_it_was_given(vintage: Vintage) -> None:
    call = EndOfCall.parse(end_of_call_body(vintage, session_id="-S", agent_id="-A"))
    assert (call.session_id, call.agent_id) == ("-S", "-A")


def test_the_vintages_differ_as_the_documentation_says() -> None:
    first = json.loads(end_of_call_body("v1a"))
    second = json.loads(end_of_call_body("v2"))
    assert isinstance(first["chat"], list)
    assert isinstance(second["chat"], str)
    assert second.keys() - first.keys() == {
        "call_id", "call_status", "error_message", "function_calls", "metadata", "recording",
    }  # fmt: skip


def test_a_hostile_call_has_problems_and_is_still_a_call() -> None:
    call = EndOfCall.parse(end_of_call_body("hostile"))
    assert len(call.problems) > 5
    assert (call.outcome, call.recording_url, call.metadata) == ("unknown", None, {})


@pytest.mark.parametrize("vintage", HONEST)
def test_without_numbers_it_is_a_web_session(vintage: Vintage) -> None:
    body = end_of_call_body(vintage, from_phone=None, to_phone=None)
    query = prefetch_query(vintage, from_phone=None, to_phone=None)
    assert EndOfCall.parse(body).channel == "web"
    assert PrefetchRequest.parse(query.encode()).channel == "web"


def test_metadata_came_with_the_second_vintage() -> None:
    sent = {"plan": "gold & silver"}
    assert PrefetchRequest.parse(prefetch_query("v1a", metadata=sent).encode()).metadata == {}
    assert PrefetchRequest.parse(prefetch_query("v1b", metadata=sent).encode()).metadata == sent


def test_a_hostile_prefetch_still_tells_who_calls() -> None:
    call = PrefetchRequest.parse(prefetch_query("hostile", session_id="-S").encode())
    assert (call.session_id, call.from_phone) == ("-S", "+14155550134")
    assert call.problems

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, select

from millis_hooks.call_log.call_rows import write
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.projection import Digest, Projection, project, transcript_of
from millis_hooks.call_log.sanitize import clean_id
from millis_hooks.call_log.search import Field, fold
from millis_hooks.call_log.sessions import Batch, Session
from millis_hooks.call_log.tables import calls, deliveries, inbox
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.prefetch import PrefetchRequest
from support.paths import SAMPLES
from support.storage import NOW, opened

OWN = frozenset({"+15550199"})

#: Fields of an end-of-call that become columns.
FIELDS = (
    "agent_id", "call_id", "chat", "chars_used", "cost_breakdown", "duration", "ts", "voip",
    "call_status", "error_message", "recording", "metadata", "function_calls",
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**400, -(2**63), 1e308, "\0", "\ud83d", "1e999", "NaN", "+1 555"])
)  # fmt: skip
KEYS = st.text(max_size=5) | st.sampled_from(
    ["role", "content", "credit", "prompt_tokens", "from", "to", "provider", "recording_url"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def projected(name: str = "v2.json", **changes: Any) -> Projection:
    payload = json.loads((SAMPLES / name).read_bytes()) | changes
    call = EndOfCall.parse(json.dumps(payload).encode(), own_numbers=OWN)
    digest = Digest(1, NOW, call, clean_id(call.session_id))
    return project(str(digest.session_id), [digest], runs_for=lambda call: ["notify", "archive"])


def told(projection: Projection) -> dict[str, Any]:
    """The columns that have a value."""
    return {name: value for name, value in projection.call.items() if value is not None}


def test_an_end_of_call_fills_the_columns_of_its_call() -> None:
    assert told(projected()) == {
        "session_id": "-Ox3sampleSession003",
        "received_at": NOW,
        "delivery_id": 1,
        "ended_at": NOW,
        "call_id": "c-77",
        "agent_id": "-Ox3sampleAgent00003",
        "channel": "phone",
        "direction": "inbound",
        "from_phone": "+15550100",
        "to_phone": "+15550199",
        "customer_phone": "+15550100",
        "provider": "twilio",
        "call_status": "user-ended",
        "outcome": "completed",
        "started_at": datetime(2025, 10, 9, 8, 53, 20, 250000, UTC),
        "duration_s": 41,
        "cost_total": pytest.approx(0.0168),
        "chars_used": 188,
        "turns": 2,
        "snippet": "Tuesday please",
        "recording_url": "https://files.example/r.wav",
        "opted_out": False,
        "unhandled": False,
        "repeated": False,
    }


def test_each_cost_is_a_row_in_the_order_it_came() -> None:
    tokens = {"prompt_tokens": None, "completion_tokens": None}
    assert projected().cost_items == [
        {"position": 0, "type": "stt", "provider": "deepgram", "credit": 0.0043, **tokens},
        {"position": 1, "type": "tts", "provider": "elevenlabs", "credit": 0.0125, **tokens},
    ]


def test_all_that_names_a_call_can_be_searched() -> None:
    found = projected(error_message="STT stream closed")
    assert found.search_text.split("\n")[1:-1] == [
        *("N", "+15550100", "N", "+15550199", "I", "-ox3samplesession003", "I", "c-77"),
        *("A", "-ox3sampleagent00003", "E", fold("STT stream closed"), "P", "twilio"),
        *("P", "deepgram", "P", "elevenlabs", "F", "find_slot", "M", "gold"),
        *("T", fold("Good morning Tuesday please")),
    ]


def test_what_is_masked_cannot_be_searched() -> None:
    secrets: dict[str, Any] = {
        "metadata": {"api_key": "k-1234567", "note": "sk-abcdefgh12345678", "pin": 4711,
                     "crm": {"password": "hunter2", "tier": "gold"}},
        "error_message": "401 for token=abc12345678",
        "chat": [{"role": "user", "content": "my key is sk-zyxwvuts98765432, mail a@b.example"}],
    }  # fmt: skip
    text = projected(**secrets).search_text
    hidden = ("1234567", "abcdefgh", "4711", "hunter2", "abc12345", "zyxwvuts")
    assert [secret for secret in hidden if secret in text] == []
    assert "a@b.example" in text
    assert "gold" in text
    digest = Digest(1, NOW, EndOfCall.from_raw({"session_id": "-s", **secrets}), "-s")
    full = project("-s", [digest], runs_for=lambda _: [], mask=MaskPolicy("full", "full"))
    assert [word for word in ("gold", "example", "mail") if word in full.search_text] == []


def test_the_handlers_that_want_the_call_are_noted_in_order() -> None:
    assert projected().wanted_by == ["notify", "archive"]


def test_a_call_without_a_telephone_has_no_numbers() -> None:
    call = projected(voip=None).call
    assert (call["from_phone"], call["to_phone"], call["provider"]) == (None, None, None)
    assert call["channel"] == "web"


def test_the_snippet_is_the_first_thing_the_caller_said_and_short() -> None:
    chat = [{"role": "user", "content": ""}, {"role": "user", "content": "x" * 1000}]
    assert projected(chat=chat).call["snippet"] == "x" * 300
    assert projected(chat=[]).call["snippet"] is None


def test_the_text_to_search_is_bounded() -> None:
    chat = [{"role": "user", "content": "x" * 150_000}] * 3
    assert len(projected(chat=chat).search_text) == 200_000


def test_only_people_and_agents_take_turns() -> None:
    roles = ["system", "assistant", "user", "tool", "user"]
    assert projected(chat=[{"role": role, "content": "-"} for role in roles]).call["turns"] == 3


def test_a_prefetch_has_the_caller_and_the_answer() -> None:
    query = b"session_id=-s1&agent_id=-a1&from=%2B15550100&to=%2B15550199&plan=gold"
    call = PrefetchRequest.parse(query, own_numbers=OWN)
    digest = Digest(4, NOW, call, "-s1", outcome="late", latency_ms=2000.5)
    found = project("-s1", [digest], runs_for=lambda call: ["notify"])
    assert told(found) == {
        "session_id": "-s1",
        "received_at": NOW,
        "agent_id": "-a1",
        "channel": "phone",
        "direction": "inbound",
        "from_phone": "+15550100",
        "to_phone": "+15550199",
        "customer_phone": "+15550100",
        "prefetch_ms": 2000.5,
        "prefetch_outcome": "late",
        "repeated": False,
        "unhandled": False,
    }
    lines = found.search_text.split()
    assert lines == ["N", "+15550100", "N", "+15550199", "I", "-s1", "A", "-a1"]
    assert not found.wanted_by


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with opened(tmp_path_factory.mktemp("log")) as database:
        delivery = {"id": 1, "kind": "end_of_call", "outcome": "stored", "status_code": 200}
        with database.writer.begin() as connection:
            connection.execute(insert(deliveries), delivery | {"received_at": NOW, "body": b""})
            connection.execute(insert(inbox), {"delivery_id": 1})
        yield database


@given(
    session_id=st.text(min_size=1).map("-{}".format) | st.just("-half \ud83d of a pair"),
    changes=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=6),
)
def test_whatever_is_said_of_a_call_can_be_stored(
    database: Database, session_id: str, changes: dict[str, Any]
) -> None:
    found = projected(**changes, session_id=session_id)
    with database.writer.connect() as connection, connection.begin() as transaction:
        batch = Batch(False, {found.session_id: Session([1], [], [], found)})
        write(connection, batch, hears_of_changes=lambda name: False)
        assert connection.scalar(select(calls.c.delivery_id)) == 1
        transaction.rollback()


@given(chat=ANYTHING | st.lists(st.dictionaries(KEYS, SCALARS)), is_text=st.booleans())
def test_a_transcript_read_alone_is_the_one_that_is_searched(chat: Any, *, is_text: bool) -> None:
    chat = json.dumps(chat) if is_text else chat
    body = json.dumps({"session_id": "-s", "chat": chat}).encode()
    digest = Digest(1, NOW, EndOfCall.parse(body), "-s")
    items = project("-s", [digest], runs_for=lambda _: []).items
    alone = transcript_of(body)
    assert alone in (None, "".join(each.text for each in items if each.field is Field.TRANSCRIPT))

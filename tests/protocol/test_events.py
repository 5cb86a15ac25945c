from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from millis_hooks.protocol.call_status import CallStatus, Outcome
from millis_hooks.protocol.events import EndOfCall
from support.paths import SAMPLES

OWN = frozenset({"+1 555-0199"})


def call(name: str = "v2.json", **changes: Any) -> EndOfCall:
    payload = json.loads((SAMPLES / name).read_bytes()) | changes
    return EndOfCall.parse(json.dumps(payload).encode(), own_numbers=OWN)


@pytest.mark.parametrize("name", ["v1a.json", "v1b.json", "v2.json", "v2_extras.json"])
def test_every_documented_payload_is_read_without_a_problem(name: str) -> None:
    assert call(name).problems == []
    assert call(name).raw == json.loads((SAMPLES / name).read_bytes())


def test_chat_is_messages_whether_it_came_as_a_list_or_as_text() -> None:
    assert [m.role for m in call("v1a.json").chat] == ["assistant", "user", "tool", "assistant"]
    assert [m.content for m in call("v2.json").chat] == ["Good morning", "Tuesday please"]


def test_a_tool_call_knows_its_name_and_its_arguments() -> None:
    (tool_call,) = call("v1b.json").chat[1].tool_calls
    assert (tool_call.name, tool_call.arguments) == ("cancel_booking", {"booking": 17})


@pytest.mark.parametrize(
    ("sent", "text", "parsed"),
    [("day=tue", "day=tue", "day=tue"), ({"day": 1}, '{"day": 1}', {"day": 1}), (None, "", "")],
)
def test_arguments_of_a_tool_call_are_read_as_far_as_they_can_be(
    sent: Any, text: str, parsed: Any
) -> None:
    message = {"tool_calls": [{"function": {"name": "f", "arguments": sent}}]}
    (tool_call,) = call(chat=[message]).chat[0].tool_calls
    assert (tool_call.function.arguments, tool_call.arguments) == (text, parsed)


@pytest.mark.parametrize(
    ("name", "started_at", "duration_s", "cost_total"),
    [
        ("v1a.json", datetime(2024, 8, 6, 9, 15, 30, 250000, UTC), 63, 9),
        ("v1b.json", datetime(2024, 9, 6, 14, 0, tzinfo=UTC), 12, 1),
        ("v2.json", datetime(2025, 10, 9, 8, 53, 20, 250000, UTC), 41, 0.0168),
        ("v2_extras.json", datetime(2026, 1, 1, 0, 0, 0, 500000, UTC), 18.4, 0.0157),
    ],
)
def test_time_duration_and_cost_read_alike_in_every_vintage(
    name: str, started_at: datetime, duration_s: float, cost_total: float
) -> None:
    event = call(name)
    assert (event.started_at, event.duration_s) == (started_at, duration_s)
    assert event.cost_total == pytest.approx(cost_total)


def test_the_extras_of_newer_calls_are_read() -> None:
    event = call("v2_extras.json")
    assert (event.opted_out, event.average_latency_ms) == (True, 812.5)
    assert event.function_result("book_slot") == "Booked 10:30"
    assert event.model_extra == {"sentiment": "neutral"}


def test_a_function_that_was_not_called_has_no_result() -> None:
    assert call().function_result("book_slot") is None


@pytest.mark.parametrize(
    ("sent", "status"),
    [("NO_ANSWER", CallStatus.NO_ANSWER), ("chat-completion", CallStatus.CHAT_COMPLETION),
     ("Provider-Queued", CallStatus.PROVIDER_QUEUED), (" busy ", CallStatus.BUSY)],
)  # fmt: skip
def test_a_status_is_spelled_as_millis_documents_it(sent: str, status: CallStatus) -> None:
    assert call(call_status=sent).call_status == status


def test_an_unknown_status_stays_as_it_came() -> None:
    event = call(call_status="Put_On-Hold")
    assert (event.call_status, event.outcome) == ("Put_On-Hold", Outcome.UNKNOWN)


def test_every_status_has_its_outcome() -> None:
    outcomes = {status: call(call_status=status.value).outcome for status in CallStatus}
    assert {status for status, outcome in outcomes.items() if outcome == Outcome.UNKNOWN} == {
        "registered", "queued", "dispatching", "provider_queued", "initiated", "ringing",
        "in-progress", "unknown",
    }  # fmt: skip
    assert set(outcomes.values()) == set(Outcome)


@pytest.mark.parametrize(
    ("name", "channel", "direction", "customer_phone"),
    [
        ("v2.json", "phone", "inbound", "+15550100"),
        ("v2_extras.json", "phone", "outbound", "+15550100"),
        ("v1b.json", "web", None, None),
    ],
)
def test_own_numbers_tell_who_called_whom(
    name: str, channel: str, direction: str | None, customer_phone: str | None
) -> None:
    event = call(name)
    assert (event.channel, event.direction) == (channel, direction)
    assert event.customer_phone == customer_phone


def test_without_own_numbers_the_customer_is_whom_millis_calls_the_caller() -> None:
    event = EndOfCall.parse((SAMPLES / "v2.json").read_bytes())
    assert (event.direction, event.customer_phone) == (None, "+15550100")


def test_a_text_session_is_a_chat() -> None:
    event = call("v1b.json", call_status="chat_completion")
    assert (event.channel, event.outcome) == ("chat", Outcome.CHAT)


@pytest.mark.parametrize(
    ("ts", "started_at"),
    [
        (1760000000, datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)),
        (1760000000000, datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)),
        ("1760000000", datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)),
        ("2025-10-09T10:53:20+02:00", datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)),
        ("2025-10-09T08:53:20", datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC)),
    ],
)
def test_a_start_in_any_known_spelling_is_utc(ts: Any, started_at: datetime) -> None:
    event = call(ts=ts)
    assert event.started_at == started_at
    assert event.started_at.tzinfo is UTC


@pytest.mark.parametrize("ts", [0, -1, 1e18, "soon", "", "nan", "0001-01-01T00:00:00+14:00", True])
def test_an_absurd_start_is_none_and_a_problem(ts: Any) -> None:
    event = call(ts=ts)
    assert event.started_at is None
    assert [problem.field for problem in event.problems] == ["ts"]


def test_no_credit_is_not_a_credit_of_nothing() -> None:
    assert call(cost_breakdown=[{"type": "tts"}]).cost_total is None
    assert call(cost_breakdown=[{"credit": 0}]).cost_total == 0
    assert call(cost_breakdown=[{"credit": 1e308}, {"credit": 1e308}]).cost_total is None


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "data:text/html,x", "//host/x", "https://", "https://[", "https://a b/",
     "https://a/\u202ex", "file:///etc/passwd"],
)  # fmt: skip
def test_only_web_addresses_of_recordings_are_linked(url: str) -> None:
    event = call(recording={"recording_url": url})
    assert event.recording_url is None
    assert [problem.field for problem in event.problems] == ["recording.recording_url"]


@pytest.mark.parametrize("detected", [False, None, "false", "No", "", {}])
def test_an_absent_opt_out_is_none(detected: Any) -> None:
    assert not call(call_analysis={"opt_out_detection": detected}).opted_out


def test_variables_are_the_final_metadata_and_the_two_numbers() -> None:
    expected = {"plan": "gold", "FromPhone": "+15550100", "ToPhone": "+15550199"}
    assert call().variables == expected


def test_a_call_made_by_hand_needs_only_what_the_test_is_about() -> None:
    event = EndOfCall(session_id="-Ox1", call_status="BUSY")
    assert (event.outcome, event.problems, event.chat) == (Outcome.UNREACHED, [], [])


def test_a_call_outside_of_a_run_has_its_session_for_a_key() -> None:
    assert EndOfCall(session_id="-Ox1").idempotency_key == "-Ox1"


def test_no_payload_can_set_the_key() -> None:
    event = call(idempotency_key="x", _handler="y")
    assert event.idempotency_key == event.session_id

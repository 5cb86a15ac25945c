from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from millis_hooks.exceptions import PayloadError
from millis_hooks.protocol.call_status import Outcome
from millis_hooks.protocol.events import EndOfCall, identify
from millis_hooks.protocol.reading import Problem
from support.paths import SAMPLES


def call(**changes: Any) -> EndOfCall:
    payload = json.loads((SAMPLES / "v2_extras.json").read_bytes()) | changes
    return EndOfCall.parse(json.dumps(payload).encode())


def hostile() -> EndOfCall:
    return EndOfCall.parse((SAMPLES / "hostile.json").read_bytes())


def problem_fields(event: EndOfCall) -> set[str]:
    return {problem.field for problem in event.problems}


def test_a_hostile_payload_keeps_all_that_can_be_read() -> None:
    event = hostile()
    assert event.session_id == "-12345678901"
    assert event.agent_id == "17"
    assert [m.content for m in event.chat] == [None, "An unknown role", "42"]
    assert [item.credit for item in event.cost_breakdown] == [0.5, None, None]
    assert event.function_calls[0].params == {"day": "tue"}
    assert (event.outcome, event.recording_url) == (Outcome.UNREACHED, None)


def test_a_hostile_payload_has_its_problems_named() -> None:
    event = hostile()
    assert problem_fields(event) == {
        "chat[]", "chat[].content", "function_calls[]", "ts", "duration", "chars_used",
        "cost_breakdown[]", "cost_breakdown[].credit", "recording.recording_url",
        "call_metrics.utterance_latency.avg",
    }  # fmt: skip
    assert Problem("duration", "a string of 5 characters", event.problems[4].why) in event.problems


def test_a_payload_cannot_pose_as_what_we_derive() -> None:
    event = hostile()
    assert event.state is None
    assert isinstance(event.raw, dict)


FIELDS = sorted(set(EndOfCall.model_fields) - {"session_id"})
VALUES: list[Any] = [
    None,
    True,
    -1,
    2.5,
    10**40,
    "",
    "text",
    "[",
    [],
    [None, [], 1],
    {},
    {"a": {"b": None}},
]


@pytest.mark.parametrize("field", FIELDS)
def test_any_field_may_be_missing(field: str) -> None:
    payload = json.loads((SAMPLES / "v2_extras.json").read_bytes())
    payload.pop(field)
    assert EndOfCall.parse(json.dumps(payload).encode()).problems == []


@pytest.mark.parametrize("field", FIELDS)
def test_any_field_may_be_null(field: str) -> None:
    assert call(**{field: None}).problems == []


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_any_type_costs_nothing_but_itself(field: str) -> None:
    others = set(FIELDS) - {field}
    untouched = call()
    for value in VALUES:
        event = call(**{field: value})
        derive_everything(event)
        changed = {n for n in others if getattr(event, n) != getattr(untouched, n)}
        assert not changed, value


@pytest.mark.parametrize(
    ("holder", "field"),
    [("voip", "from"), ("recording", "recording_url"), ("chat", "tool_calls"), ("chat", "role"),
     ("function_calls", "params"), ("function_calls", "name"), ("cost_breakdown", "credit"),
     ("cost_breakdown", "prompt_tokens")],
)  # fmt: skip
def test_a_field_of_a_part_costs_nothing_but_itself(holder: str, field: str) -> None:
    for value in VALUES:
        part: Any = {field: value, "kept": 1}
        event = call(**{holder: part if holder in {"voip", "recording"} else [part]})
        derive_everything(event)
        found = getattr(event, holder)
        extra = (found[0] if isinstance(found, list) else found).model_extra
        assert extra == {"kept": 1}, value


def derive_everything(event: EndOfCall) -> None:
    """Read every property there is: none may raise."""
    for name, member in vars(EndOfCall).items():
        if isinstance(member, property):
            getattr(event, name)
    event.function_result("any")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), JSON))
def test_any_object_with_an_id_is_a_call(payload: dict[str, Any]) -> None:
    event = EndOfCall.parse(json.dumps(payload | {"session_id": "-Ox1"}).encode())
    derive_everything(event)
    assert event.session_id == "-Ox1"


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_call_or_a_payload_error(body: bytes) -> None:
    try:
        event = EndOfCall.parse(body)
    except PayloadError:
        return
    derive_everything(event)


def test_a_call_id_stands_in_for_a_missing_session_id() -> None:
    event = call(session_id="  ")
    assert event.session_id == "c-78"
    assert problem_fields(event) == {"session_id"}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b'"text"', b"{}", b'{"session_id": null, "call_id": ""}',
     b'{"session_id": {"a": 1}}', b'{"session_id": true}',
     b'{"session_id": "' + b"x" * 256 + b'"}'],
)  # fmt: skip
def test_what_names_no_call_is_refused(body: bytes) -> None:
    with pytest.raises(PayloadError):
        EndOfCall.parse(body)


def test_a_payload_wrapped_in_a_json_string_is_unwrapped() -> None:
    wrapped = json.dumps((SAMPLES / "v2.json").read_text()).encode()
    assert EndOfCall.parse(wrapped).call_id == "c-77"


def test_a_call_is_identified_as_it_is_parsed() -> None:
    body = (SAMPLES / "v2.json").read_bytes()
    assert identify(body) == ("-Ox3sampleSession003", "-Ox3sampleAgent00003")
    with pytest.raises(PayloadError):
        identify(b"{}")


AGENTS = [
    b'"A", "agent_id": "B"',
    b'"B ", "agent\\u005fid": " A\\n"',
    b'"A\xff"',
    b'"\\ud800A"',
    b"17",
    b"1.5",
    b"true",
    b"[]",
    b"NaN",
    b"1e999",
    b'""',
    b'" "',
    b'"%b"' % (b"A" * 256),
    b"null",
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in a string"])
def test_the_agent_reads_the_same_before_and_after_parsing(encoding: str, wrapped: bool) -> None:
    for agent in AGENTS:
        body = b'{"session_id": "-s", "agent_id": %b}' % agent
        with suppress(UnicodeDecodeError):
            body = body.decode().encode(encoding)
        if wrapped:
            body = json.dumps(body.decode("utf-8", "surrogateescape")).encode()
        assert identity_of(body, identify) == identity_of(body, EndOfCall.parse), agent


def identity_of(body: bytes, read: Callable[[bytes], Any]) -> object:
    """Return whose call it is, by either reader; None where it refuses the body."""
    try:
        call = read(body)
    except PayloadError:
        return None
    return (call.session_id, call.agent_id) if isinstance(call, EndOfCall) else call


def test_a_call_made_by_hand_is_as_tolerant_but_for_its_id() -> None:
    assert EndOfCall(session_id="-Ox1", duration="forty").duration is None
    with pytest.raises(ValidationError):
        EndOfCall(session_id=[])


def test_an_impossible_latency_is_none() -> None:
    event = call(call_metrics={"utterance_latency": {"avg": 10**400}})
    assert event.average_latency_ms is None

"""Of payloads with absurdly many parts a bounded part is read, and what is left out is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from millis_hooks.exceptions import PayloadError
from millis_hooks.protocol.events import EndOfCall, identify
from millis_hooks.protocol.fields import MOST_PROBLEMS
from millis_hooks.protocol.prefetch import PrefetchRequest
from millis_hooks.protocol.reading import FEW_PARTS, KNOWN, MAX_DEPTH, read_json

MANY = FEW_PARTS + 1_000


def read(body: str | bytes) -> EndOfCall:
    return EndOfCall.parse(body.encode() if isinstance(body, str) else body)


def told(call: EndOfCall) -> list[str]:
    return [str(problem) for problem in call.problems]


def test_the_fields_that_are_read_wherever_they_stand_are_those_of_an_end_of_call() -> None:
    assert set(EndOfCall.model_fields) == KNOWN


@pytest.mark.parametrize("copies", [2, MANY], ids=["a few too many", "very many"])
@pytest.mark.parametrize(
    ("field", "item", "most"),
    [
        ("chat", '{"role":"user","content":"[,{"}', 5_000),
        ("function_calls", '{"name":"a","params":{"b":[[1]]}}', 1_000),
        ("cost_breakdown", '{"type":"llm","credit":0.5}', 200),
    ],
)
def test_a_list_keeps_its_first_items_and_tells_of_the_others(
    field: str, item: str, most: int, copies: int
) -> None:
    last = '{"later":"last"}'
    items = ", ".join([item] * (most + copies))
    call = read(f'{{"{field}": [{items}, {last}], "session_id": "s"}}')
    read_items = getattr(call, field)
    assert len(read_items) == most
    assert read_items[-1] == read_items[0]
    found = f"{field}: a list of {most + copies + 1:,} items; the first {most:,} are read"
    assert told(call) == [found]


@pytest.mark.parametrize("keys", [2_001, MANY])
@pytest.mark.parametrize("as_text", [False, True])
def test_metadata_keeps_its_first_keys(keys: int, as_text: bool) -> None:
    metadata: Any = {f"key {number}": {"n": number} for number in range(keys)}
    metadata = json.dumps(metadata) if as_text and keys < FEW_PARTS else metadata
    call = read(json.dumps({"session_id": "s", "metadata": metadata, "duration": 5}))
    assert list(call.metadata) == [f"key {number}" for number in range(2_000)]
    assert call.duration_s == 5
    assert told(call) == [f"metadata: an object with {keys:,} keys; the first 2,000 are read"]


def test_the_tool_calls_of_all_messages_share_a_limit() -> None:
    message = {"role": "assistant", "tool_calls": [{"id": "a"}] * 30}
    call = read(json.dumps({"session_id": "s", "chat": [message] * 100}))
    assert sum(len(each.tool_calls) for each in call.chat) == 2_000
    [problem] = told(call)
    assert problem.endswith("the first 2,000 of all are read")


@pytest.mark.parametrize(
    "junk",
    [
        '"x": [' + "{}," * MANY + "{}]",
        '"x": {"y": {"z": [' + "[[]], " * MANY + "1]}}",
        '"agent_config": {"tools": [' + '{"a": [1, 2]},' * MANY + "{}]}",
        ", ".join(f'"k{number}": "],{{"' for number in range(MANY)),
        '"call_metrics": ' + ("[" + "{}," * 900) * 150 + "1" + "]" * 150,
        '"voip": "' + '{\\"a\\": [],' * MANY + '"',
    ],
    ids=["list", "deep list", "objects", "fields", "lists in lists", "in a text"],
)
def test_other_fields_are_cut_and_take_no_others_with_them(junk: str) -> None:
    call = read(
        f'{{"chat": [{{"role": "user", "content": "hello"}}], {junk}, "session_id": "last"}}'
    )
    assert call.session_id == identify(json.dumps({"session_id": "last"}).encode()).session_id
    assert [message.content for message in call.chat] == ["hello"]
    assert call.problems


def test_whose_call_it_is_reads_the_same_in_a_body_of_too_many_parts() -> None:
    fields = ",".join(f'"k{number}":1' for number in range(MANY))
    body = f'{{"session_id":"first",{fields},"agent_id":"a","session_id":"last"}}'.encode()
    assert identify(body) == ("last", "a")
    assert read(body).session_id == "last"


def test_what_came_as_text_within_a_payload_shares_a_limit() -> None:
    params = json.dumps({str(number): number for number in range(20_000)})
    call = read(json.dumps({"session_id": "s", "function_calls": [{"params": params}] * 9}))
    assert [bool(function.params) for function in call.function_calls] == [True] * 5 + [False] * 4
    assert set(told(call)) == {
        f"function_calls[].params: a string of {len(params):,} characters; "
        "Too much JSON came as text"
    }


def test_a_long_conversation_is_read_whole() -> None:
    said = {"role": "user", "content": 'well, I said, "so, [that]", and, ' * 50}
    sent = {"session_id": "s", "chat": [said] * 1_000, "duration": 3}
    call = read(json.dumps(sent))
    assert call.raw == sent
    assert not call.problems


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le", "latin-1"])
def test_what_is_left_out_is_left_out_in_any_coding(coding: str) -> None:
    body = '{"session_id": "é", "cost_breakdown": [' + '{"type": "é"},' * MANY + "{}]}"
    call = read(body.encode(coding))
    assert len(call.cost_breakdown) == 200
    assert call.session_id == ("\ufffd" if coding == "latin-1" else "é")


@pytest.mark.parametrize(
    "body",
    [
        '{"session_id": "s", "x": [' + "1," * MANY,
        '{"session_id": "s", "x": [' + "1," * MANY + "1]",
        '{"session_id": "s", "x": [' + "1," * MANY + "1]} {",
        '{"session_id": "s", "x": [' + "1," * MANY + '"1]}',
        '{"session_id": "s" ' + "[[[1,,," * MANY,
        '{"x": ' + "[1," * MANY + "]" * MANY + "}",
        '{"session_id": "s", "x": [' + ("[" * 90 + "]" * 90 + ",") * MANY + "1]}",
        "[" * MANY,
        "," * MANY,
        "{" * MANY,
    ],
)
def test_many_parts_of_invalid_json_are_refused(body: str) -> None:
    with pytest.raises(PayloadError):
        read(body)


def test_names_of_fields_that_repeat_thousands_of_times_are_not_gone_through() -> None:
    repeated = '"chat": [{}],' * MANY
    with pytest.raises(PayloadError, match="names of fields repeat"):
        read("{" + repeated + '"session_id": "s"}')


def test_of_a_list_that_is_the_whole_the_first_items_are_read() -> None:
    value = read_json("[" + "[]," * MANY + "1]")
    assert isinstance(value, list)
    assert 0 < len(value) < FEW_PARTS


def test_a_payload_is_read_as_deep_as_any_other() -> None:
    deep = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    call = read(f'{{"session_id": "s", "x": {deep}, "y": [' + "1," * MANY + "1]}")
    assert call.raw["x"] == json.loads(deep)


def test_problems_are_bounded_in_number_and_length() -> None:
    turns = [{"role": {"a": 1}, "content": 5.5}] * 400 + ["x"] * 100
    call = read(json.dumps({"session_id": "s", "chat": turns}))
    assert len(call.problems) == MOST_PROBLEMS + 1
    assert told(call)[-1] == "the whole: 450 more problems; the first 50 are listed"


def test_the_problems_of_a_prefetch_are_bounded() -> None:
    call = PrefetchRequest.parse(b"session_id=s" + b"&from=1" * 900)
    assert len(call.problems) == MOST_PROBLEMS + 1


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"duration": 1.5e12}, "duration"),
        ({"duration": -3}, "duration"),
        ({"chars_used": 10**13}, "chars_used"),
        ({"chars_used": 10**500}, "chars_used"),
        ({"cost_breakdown": [{"credit": -(10**13)}]}, "cost_breakdown[].credit"),
        ({"cost_breakdown": [{"prompt_tokens": 2**62}]}, "cost_breakdown[].prompt_tokens"),
        ({"cost_breakdown": [{"completion_tokens": -1}]}, "cost_breakdown[].completion_tokens"),
        ({"call_metrics": {"utterance_latency": {"avg": 1e300}}},
         "call_metrics.utterance_latency.avg"),
        ({"call_metrics": {"utterance_latency": {"avg": -1}}},
         "call_metrics.utterance_latency.avg"),
        ({"ts": 10**400}, "ts"),
    ],
)  # fmt: skip
def test_a_figure_that_no_call_has_is_a_problem(sent: dict[str, Any], field: str) -> None:
    call = read(json.dumps({"session_id": "s", **sent}))
    assert [problem.field for problem in call.problems] == [field]
    assert (call.duration_s, call.chars_used, call.cost_total) == (None, None, None)
    assert (call.started_at, call.average_latency_ms) == (None, None)


def test_a_number_of_too_many_digits_costs_that_number() -> None:
    call = read(b'{"session_id": "s", "duration": 12, "chars_used": ' + b"9" * 5_000 + b"}")
    assert (call.duration_s, call.chars_used) == (12, None)


def test_lone_surrogates_cost_a_character_each() -> None:
    chat = '[{"role": "user", "content": "' + r"\ud800" * 100_000 + r'\ud83d\ude00"}]'
    [message] = read(f'{{"session_id": "s", "chat": {chat}}}').chat
    assert message.content == "\ufffd" * 100_000 + "😀"


@pytest.mark.parametrize("parts", [20_000, 60_000, 300_000])
def test_a_body_is_admitted_for_the_session_that_processing_reads(parts: int) -> None:
    body = ('{"chat": [' + "{}," * parts + '1], "call_id": 7, "agent_id": " a "}').encode()
    assert identify(body) == ("7", "a")
    assert read(body).session_id == "7"

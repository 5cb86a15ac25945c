from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks import PrefetchRequest, PrefetchResponse
from millis_hooks.exceptions import HandlerError
from millis_hooks.webhooks.prefetch_answer import Answer, merge, read_answer


def read(value: object, *, max_chars: int = 100, **metadata: str) -> Answer:
    call = PrefetchRequest(session_id="-Ox1", metadata=metadata)
    return read_answer(value, call, max_chars=max_chars)


def sent(*answers: Answer) -> Any:
    return json.loads(merge(answers).encode())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, {}),
        ("", {}),
        ("A premium customer.", {"extra_prompt": "A premium customer."}),
        (PrefetchResponse(), {}),
        (PrefetchResponse(metadata={"tier": 1}), {"metadata": {"tier": 1}}),
        (PrefetchResponse(extra_prompt="Hi", fill_variables=True), {"extra_prompt": "Hi"}),
        ({}, {}),
        ({"metadata": {"tier": [None]}, "extra_prompt": None}, {"metadata": {"tier": [None]}}),
        ({"metadata": None, "extra_prompt": "Hi"}, {"extra_prompt": "Hi"}),
    ],
)
def test_a_handler_may_answer_in_several_ways(value: object, expected: object) -> None:
    answer = read(value)
    assert sent(answer) == expected
    assert answer.notes == []


@pytest.mark.parametrize("value", [3, True, b"text", ["metadata"], object(), PrefetchResponse])
def test_anything_else_is_refused_by_its_type(value: object) -> None:
    with pytest.raises(HandlerError, match=f"not {type(value).__name__}"):
        read(value)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"metadata": ["a"]}, "metadata: a value of the type list"),
        ({"metadata": {"since": object()}}, "metadata.since"),
        ({"extra_prompt": ["Hi"]}, "extra_prompt: a value of the type list is not a text"),
        ({"metadata": {"a": {"b": [1, object()]}}, "extra_prompt": {}}, None),
    ],
)
def test_an_answer_of_which_nothing_can_be_sent_is_refused(
    value: object, where: str | None
) -> None:
    if where is None:
        assert sent(read(value)) == {"metadata": {"a": {"b": [1]}}}
        return
    with pytest.raises(HandlerError, match=f"cannot be sent as JSON: {where}"):
        read(value)


def test_a_value_that_cannot_be_sent_costs_nothing_else() -> None:
    answer = read({"metadata": {"name": "Ada", "row": {"id": 1, "lock": object()}}, "plan": len})
    assert sent(answer) == {"metadata": {"name": "Ada", "row": {"id": 1}}}
    assert answer.notes[1:] == [
        "metadata.row.lock: a value of the type object cannot be sent as JSON; it was left out",
        "plan: a value of the type builtin_function_or_method cannot be sent as JSON; it was left "
        "out",
    ]
    other = read({"metadata": ["a"], "extra_prompt": "Hi"})
    assert sent(other) == {"extra_prompt": "Hi"}
    assert other.notes == [
        "metadata: a value of the type list is not an object of names and values; it was left out"
    ]


def test_the_format_of_2024_is_passed_through_and_flagged() -> None:
    answer = read({"tier": "gold", "first_message": "Hi", "extra_prompt": "Hello"})
    assert sent(answer) == {"tier": "gold", "first_message": "Hi", "extra_prompt": "Hello"}
    [note] = answer.notes
    assert note.startswith("Millis ignores first_message, tier at the top level of an answer")


def unfinished() -> Any:
    yield 1
    raise KeyError("late")


@pytest.mark.parametrize(
    "item", [object(), b"\xff", pytest.param(unfinished, id="raises while read")]
)
def test_an_answer_that_is_not_json_is_refused(item: Any) -> None:
    with pytest.raises(HandlerError, match="cannot be sent as JSON"):
        read({"tier": item() if callable(item) else item})


def test_numbers_that_are_none_are_sent_as_null() -> None:
    assert sent(read({"score": float("nan")})) == {"score": None}


def test_nesting_without_end_is_left_out() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    answer = read({"metadata": {"a": 1}, "flat": endless})
    assert [note for note in answer.notes if "nested too deeply, or in itself" in note]
    with pytest.raises(HandlerError, match="nested too deeply, or in itself"):
        read({"metadata": endless})
    wide: list[Any] = []
    wide += [wide, wide, 1]
    assert sent(read({"metadata": {"wide": wide}})) == {"metadata": {"wide": [1]}}


def test_answers_are_merged_in_order() -> None:
    first = {"metadata": {"a": 1, "b": 1}, "extra_prompt": "One.", "flat": 1}
    second = {"metadata": {"b": 2}, "extra_prompt": "Two.", "flat": 2}
    assert sent(read(first), read(None), read(second)) == {
        "metadata": {"a": 1, "b": 2},
        "extra_prompt": "One.\n\nTwo.",
        "flat": 2,
    }


def test_nothing_merged_is_nothing() -> None:
    assert merge([]).encode() == b"{}"


def test_an_answer_keeps_nothing_of_what_the_handler_returned() -> None:
    response = PrefetchResponse(metadata={"a": {"b": 1}})
    answer = read(response)
    response.metadata["a"] = object()
    assert sent(answer) == {"metadata": {"a": {"b": 1}}}


def test_merging_leaves_the_handler_s_own_dict_alone() -> None:
    metadata: dict[str, Any] = {"a": 1}
    merge([read(PrefetchResponse(metadata=metadata)), read({"metadata": {"a": 2}})])
    assert metadata == {"a": 1}


def test_variables_are_filled_where_that_is_wanted() -> None:
    prompt = "Greet {name}, a {tier} customer of {shop}."
    response = PrefetchResponse(extra_prompt=prompt, metadata={"tier": "gold"}, fill_variables=True)
    answer = read(response, name="Ann")
    assert answer.extra_prompts == ["Greet Ann, a gold customer of {shop}."]
    assert answer.notes == ["{shop} is not a known variable and was left"]
    assert read(prompt, name="Ann").extra_prompts == [prompt]


def test_a_prompt_over_the_limit_is_cut_and_says_so() -> None:
    answer = read("a" * 101)
    assert answer.extra_prompts == ["a" * 100]
    assert answer.notes == ["extra_prompt was cut from 101 to 100 characters"]
    assert read("a" * 100).notes == []


@pytest.mark.parametrize(
    ("prompt", "spoken"),
    [
        ("one\r\ntwo\n\tthree", "one\ntwo\n\tthree"),
        ("a\x00b\x1bc\x7fd\x85e\u2028f", "abcdef"),
        ("Zoë \U0001f600 你好", "Zoë \U0001f600 你好"),
    ],
)
def test_a_prompt_is_cleaned_of_what_cannot_be_spoken(prompt: str, spoken: str) -> None:
    assert read(prompt).extra_prompts == [spoken]


@given(st.dictionaries(st.text(), st.from_type(object) | st.text(), max_size=3) | st.text())
def test_any_text_or_dict_is_sent_as_json_or_refused(value: object) -> None:
    try:
        body = merge([read(value)]).encode()
    except HandlerError:
        return
    assert isinstance(json.loads(body), dict)

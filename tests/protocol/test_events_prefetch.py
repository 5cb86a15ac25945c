from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from millis_hooks.protocol.prefetch import PrefetchRequest, PrefetchResponse
from millis_hooks.protocol.reading import Problem
from support.paths import SAMPLES

OWN = frozenset({"+1 555-0199"})


def prefetch(name: str) -> PrefetchRequest:
    return PrefetchRequest.parse((SAMPLES / name).read_bytes(), own_numbers=OWN)


def problem_fields(event: PrefetchRequest[Any]) -> list[str]:
    return [problem.field for problem in event.problems]


def test_a_prefetch_on_the_phone_is_read() -> None:
    event = prefetch("prefetch_phone.txt")
    assert (event.session_id, event.agent_id) == ("-Ox1demoSess", "-Ox1demoAgent")
    assert (event.direction, event.customer_phone) == ("inbound", "+15550100")
    assert event.metadata == {"plan": "gold", "visits": "3"}
    assert event.problems == []


def test_a_prefetch_on_the_web_has_no_numbers() -> None:
    event = prefetch("prefetch_web.txt")
    assert (event.channel, event.direction, event.customer_phone) == ("web", None, None)
    assert event.variables == {"plan": "gold"}


def test_a_plus_that_was_not_escaped_is_put_back() -> None:
    event = prefetch("prefetch_lost_plus.txt")
    assert (event.from_phone, event.to_phone) == ("+15550100", "+15550199")


def test_metadata_under_a_name_of_millis_own_is_reported_and_kept_in_raw() -> None:
    event = prefetch("prefetch_collision.txt")
    assert (event.from_phone, event.to_phone) == ("+15550100", None)
    assert event.problems == [
        Problem("from", "a string of 11 characters", "the name is Millis' own")
    ]
    assert ("from", "Springfield") in event.raw


def test_of_a_repeated_key_the_first_value_counts() -> None:
    event = prefetch("prefetch_collision.txt")
    assert event.metadata == {"tag": "a", "note": ""}
    assert event.raw[-3:] == [("tag", "a"), ("tag", "b"), ("note", "")]


def test_the_spaces_around_a_session_are_not_part_of_it() -> None:
    # As in the end-of-call: the two have to meet.
    assert PrefetchRequest.parse(b"session_id=%20-Ox1%20").session_id == "-Ox1"
    assert problem_fields(PrefetchRequest.parse(b"session_id=%20")) == ["session_id"]


def test_a_query_without_a_session_is_read_and_reported() -> None:
    event = PrefetchRequest.parse(b"")
    assert (event.session_id, event.raw) == ("", [])
    assert problem_fields(event) == ["session_id"]


def test_a_query_of_endless_fields_is_cut_and_reported() -> None:
    event = PrefetchRequest.parse(b"session_id=-Ox1&" + b"a=1&" * 5000)
    assert problem_fields(event) == ["query"]
    assert len(event.raw) == 1000


@given(st.binary(max_size=200))
def test_any_query_is_a_prefetch(query: bytes) -> None:
    event = PrefetchRequest.parse(query, own_numbers=OWN)
    assert isinstance(event.variables, dict)
    assert event.channel in {"phone", "web"}


class Customer(BaseModel):
    plan: str
    visits: int = 0
    tags: list[str] | None = Field(default=None, alias="tag")


def test_typed_metadata_is_coerced_from_text() -> None:
    event = prefetch("prefetch_phone.txt").typed(Customer)
    assert event.metadata == Customer(plan="gold", visits=3)
    assert (event.problems, event.customer_phone) == ([], "+15550100")


def test_a_repeated_key_fills_a_list_of_typed_metadata() -> None:
    query = b"session_id=-Ox1&plan=gold&tag=a&tag=b"
    assert PrefetchRequest.parse(query).typed(Customer).metadata.tags == ["a", "b"]


def test_typed_metadata_that_does_not_fit_is_reported_and_left_out() -> None:
    event = PrefetchRequest.parse(b"session_id=-Ox1&visits=many&tag=a").typed(Customer)
    assert isinstance(event.metadata, Customer)
    assert event.metadata.model_dump() == {"plan": None, "visits": 0, "tags": ["a"]}
    assert sorted(problem_fields(event)) == ["plan", "visits"]
    assert "many" not in repr(event.problems)


def test_typed_metadata_its_own_model_refuses_is_all_defaults() -> None:
    class Picky(BaseModel):
        model_config = ConfigDict(frozen=True)

        plan: str
        visits: int = 1

        @model_validator(mode="after")
        def refuse(self) -> Picky:
            raise ValueError("never good enough")

    event = prefetch("prefetch_phone.txt").typed(Picky)
    assert event.metadata.model_dump() == {"plan": None, "visits": 1}
    assert problem_fields(event) == ["metadata"]


def test_variables_of_typed_metadata_are_still_all_that_was_sent() -> None:
    event = PrefetchRequest.parse(b"session_id=-Ox1&plan=gold&other=1").typed(Customer)
    assert event.variables == {"plan": "gold", "other": "1"}


def test_a_request_made_by_hand_can_be_typed_too() -> None:
    event = PrefetchRequest(session_id="-Ox1", metadata={"plan": "gold", "visits": "2"})
    assert event.typed(Customer).metadata.visits == 2
    assert event.typed(Customer).variables["plan"] == "gold"


def test_the_original_request_keeps_its_text() -> None:
    event = prefetch("prefetch_phone.txt")
    event.typed(Customer)
    assert event.metadata == {"plan": "gold", "visits": "3"}


def test_an_answer_goes_out_without_what_is_only_for_us() -> None:
    answer = PrefetchResponse(metadata={"tier": 1}, extra_prompt="Hi", fill_variables=True)
    assert answer.model_dump() == {"metadata": {"tier": 1}, "extra_prompt": "Hi"}


@pytest.mark.parametrize(
    "wrong",
    [{"prompt": "Hi"}, {"extra_prompt": ["Hi"]}, {"extra_prompt": object()}, {"metadata": None},
     {"metadata": ["a"]}, {"fill_variables": "yes"}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_an_answer_millis_could_not_read_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PrefetchResponse.model_validate(wrong)

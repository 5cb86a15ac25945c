"""What the sandbox writes into a query is what a typed handler reads, whatever its type."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any, Literal, Optional, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model, field_validator

from millis_hooks.protocol.prefetch import PrefetchRequest
from millis_hooks.protocol.reading import Json
from millis_hooks.sandbox.scenario import SessionSpec
from millis_hooks.sandbox.transport import Webhook
from millis_hooks.sandbox.webhook_client import prefetch_request

WEBHOOK = Webhook("http://test/millis/prefetch", ())


class Address(BaseModel):
    city: str
    lines: list[str] = []
    zip: int | None = None


class Tier(Enum):
    GOLD = "gold"
    THIRD = 3


def read(annotation: Any, value: Json) -> tuple[Any, list[str]]:
    """Send a value as the sandbox does, and read it as a handler with a model does."""
    spec = SessionSpec(metadata={"value": value})
    query = prefetch_request(spec, WEBHOOK, "-s1").query
    model = create_model("Customer", value=(annotation, Field(default=...)))
    request = PrefetchRequest.parse(query).typed(model)
    return request.metadata.value, [str(problem) for problem in request.problems]  # type: ignore[attr-defined]


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["[1]", '{"a": 1}', "null", "true", "5", "1e3", '"quoted"', "[", " [1] ", "NaN"]
)
INTEGERS = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ADDRESSES = st.fixed_dictionaries(
    {"city": TEXTS, "lines": st.lists(TEXTS), "zip": st.none() | INTEGERS}
)
OBJECTS = st.dictionaries(TEXTS, st.none() | st.booleans() | INTEGERS | TEXTS, max_size=3)
TYPES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, TEXTS),
    (int, INTEGERS),
    (float, FLOATS),
    (bool, st.booleans()),
    (Optional[int], st.none() | INTEGERS),  # noqa: UP045 - as teams write it
    (bool | None, st.none() | st.booleans()),
    (str | None, st.none() | TEXTS.filter(lambda text: text.strip() != "null")),
    (list[str], st.lists(TEXTS)),
    (list[int], st.lists(INTEGERS)),
    (list[str] | None, st.none() | st.lists(TEXTS)),
    (set[int], st.sets(INTEGERS).map(list)),
    (list[list[int | None]], st.lists(st.lists(st.none() | INTEGERS))),
    (dict[str, Any], OBJECTS),
    (dict[str, int] | None, st.none() | st.dictionaries(TEXTS, INTEGERS)),
    (list[dict[str, Any]], st.lists(OBJECTS, max_size=3)),
    (Address, ADDRESSES),
    (Optional[Address], st.none() | ADDRESSES),  # noqa: UP045
    (list[Address], st.lists(ADDRESSES, max_size=3)),
    (Union[int, list[int]], INTEGERS | st.lists(INTEGERS)),  # noqa: UP007
    (Address | list[Address], ADDRESSES | st.lists(ADDRESSES, min_size=1, max_size=2)),
]


@given(st.data())
def test_what_the_sandbox_writes_is_what_a_typed_handler_reads(data: st.DataObject) -> None:
    annotation, values = data.draw(st.sampled_from(TYPES))
    value = data.draw(values)
    found, problems = read(annotation, value)
    assert problems == []
    assert found == create_model("Customer", value=(annotation, ...))(value=value).value  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("annotation", "sent", "found"),
    [
        (str | list[str], ["a"], ["a"]),
        (str | list[str], "a", "a"),
        (str | None, "NaN", "NaN"),
        (str | None, "-Infinity", "-Infinity"),
        (str | Address, '{"town": "Oslo"}', '{"town": "Oslo"}'),
        (Any, ["a"], ["a"]),
        (Any, "5", "5"),
        (int | str, "5", "5"),
        (list[str], "alone", ["alone"]),
        (list[dict[str, int]], {"a": 1}, [{"a": 1}]),
        (Literal[1, 2], 2, 2),
        (Literal["null", "none"], "null", "null"),
        (Tier, 3, Tier.THIRD),
        (Tier, "gold", Tier.GOLD),
        (tuple[int, str], [1, "[2]"], (1, "[2]")),
        (datetime, "2026-11-21T14:20:00Z", datetime.fromisoformat("2026-11-21T14:20:00Z")),
    ],
)
def test_the_type_of_the_field_decides(annotation: Any, sent: Json, found: Any) -> None:
    assert read(annotation, sent) == (found, [])


@pytest.mark.parametrize(
    ("annotation", "sent"), [(list[int], ["a"]), (int, [1]), (Address, {}), (dict[str, int], "x")]
)
def test_what_fits_in_no_way_is_a_problem(annotation: Any, sent: Json) -> None:
    found, problems = read(annotation, sent)
    assert found is None
    assert len(problems) == 1


class Split(BaseModel):
    tags: list[str] = []
    other: list[str] = []

    @field_validator("tags", mode="before")
    @classmethod
    def _split(cls, value: str) -> list[str]:
        return value.strip("[]").split(",")


def test_a_validator_that_takes_text_gets_text() -> None:
    request = PrefetchRequest.parse(b"session_id=-s1&tags=[a,b]&other=x").typed(Split)
    assert request.metadata.tags == ["a", "b"]
    request = PrefetchRequest.parse(b"session_id=-s1&tags=[1,2]").typed(Split)
    assert (request.metadata.tags, request.problems) == (["1", "2"], [])


@pytest.mark.parametrize("query", [b"v=1&v=2", b"v=[1,2]", b"v=%5B1%2C%202%5D"])
def test_a_list_may_be_a_name_that_repeats_or_json(query: bytes) -> None:
    model = create_model("Customer", v=(list[int], ...))
    request = PrefetchRequest.parse(b"session_id=-s1&" + query).typed(model)
    assert request.metadata.v == [1, 2]  # type: ignore[attr-defined]

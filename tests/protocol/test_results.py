"""What counts as a result of an end-of-call handler."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum

import pytest
from pydantic import BaseModel

from millis_hooks.protocol.results import MOST_RESULTS, read_results


class Mood(Enum):
    CALM = "calm"


class Booking(BaseModel):
    booked: bool
    day: date


@dataclass
class Score:
    value: float
    by: str | None = None


@pytest.mark.parametrize(
    ("returned", "values"),
    [
        (None, {}),
        ({}, {}),
        (
            {"booked": True, "people": 4, "score": 4.5, "note": "window", "table": None},
            {"booked": True, "people": 4, "score": 4.5, "note": "window", "table": None},
        ),
        ({"day": date(2026, 11, 21), "mood": Mood.CALM}, {"day": "2026-11-21", "mood": "calm"}),
        ({"amount": Decimal("12.50")}, {"amount": 12.5}),
        (Booking(booked=True, day=date(2026, 1, 2)), {"booked": True, "day": "2026-01-02"}),
        (Score(4.5), {"value": 4.5, "by": None}),
    ],
)
def test_results_are_the_plain_values_of_what_a_handler_returns(
    returned: object, values: dict[str, object]
) -> None:
    assert read_results(returned) == (values, (), True)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("tags", ["a"], "collection"),
        ("more", {"a": 1}, "collection"),
        ("note", "x" * 501, "501 characters"),
        ("score", float("nan"), "finite"),
        ("score", Decimal("NaN"), "finite"),
        ("score", 10**16, "number beyond"),
        ("score", -(10**400), "number beyond"),
        (1, 1, "not a text"),
        (None, 1, "not a text"),
        (("a", "b"), 1, "not a text"),
        ("object", object(), "no plain form"),
        ("n" * 65, 1, "65 characters"),
        ("a\nb", 1, "printed"),
        (" ", 1, "printed"),
    ],
)
def test_what_cannot_be_kept_is_left_out_alone(name: object, value: object, why: str) -> None:
    values, problems, _ = read_results({name: value, "booked": True})
    assert values == {"booked": True}
    (problem,) = problems
    assert why in problem


def test_more_than_fifty_results_are_left_out() -> None:
    values, problems, _ = read_results({f"n{number}": number for number in range(53)})
    assert len(values) == MOST_RESULTS
    assert problems == ("3 results were left out: a handler has up to 50",)


@pytest.mark.parametrize("returned", ["booked", 4, [("a", 1)], True])
def test_what_is_no_mapping_has_no_results(returned: object) -> None:
    values, problems, is_mapping = read_results(returned)
    assert (values, is_mapping) == ({}, False)
    assert "not a mapping" in problems[0]

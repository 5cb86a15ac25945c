from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from millis_hooks.call_log.sanitize import clean_float, clean_int, clean_text, clean_time


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (None, None),
        ("", ""),
        ("plain", "plain"),
        ("Grüße 👋", "Grüße 👋"),
        ("a\0b", "a�b"),
        ("ü\0", "ü�"),
        ("half \ud83d of a pair", "half ? of a pair"),
    ],
)
def test_text_loses_only_what_no_column_takes(text: str | None, clean: str | None) -> None:
    assert clean_text(text) == clean


def test_text_is_cut_before_it_is_too_long() -> None:
    assert clean_text("abcdef", max_chars=3) == "abc"


@pytest.mark.parametrize("number", [None, 0, -7, 10**12, -(10**12)])
def test_a_figure_of_a_call_is_kept(number: int | None) -> None:
    assert clean_int(number) == number


@pytest.mark.parametrize("number", [10**12 + 1, -(2**63), 10**400])
def test_a_larger_integer_is_dropped(number: int) -> None:
    assert clean_int(number) is None


@pytest.mark.parametrize("number", [None, 0.0, -1.5, 1e12])
def test_a_finite_float_is_kept(number: float | None) -> None:
    assert clean_float(number) == number


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1.1e12, -1e300])
def test_a_value_that_is_not_a_number_is_dropped(number: float) -> None:
    assert clean_float(number) is None


@pytest.mark.parametrize("year", [2000, 2026, 2199])
def test_a_time_in_which_there_are_calls_is_kept(year: int) -> None:
    moment = datetime(year, 1, 1, tzinfo=UTC)
    assert clean_time(moment) == moment


@pytest.mark.parametrize("year", [1970, 1999, 2200, 9999])
def test_an_absurd_time_is_dropped(year: int) -> None:
    assert clean_time(datetime(year, 12, 31, tzinfo=UTC)) is None


def test_a_time_is_judged_in_utc() -> None:
    east = timezone(timedelta(hours=9))
    assert clean_time(datetime(2000, 1, 1, 5, tzinfo=east)) is None
    assert clean_time(None) is None

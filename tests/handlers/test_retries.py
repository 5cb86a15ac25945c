"""How long a run waits for its next attempt, and what a handler may ask for."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks import Backoff, GiveUp, MillisHooksError, RegistrationError, Retry


def delays_s(backoff: Backoff, attempts: int, *, random: float = 0.5) -> list[float]:
    return [backoff.delay_s(attempt, lambda: random) for attempt in range(1, attempts + 1)]


def test_each_delay_is_longer_up_to_the_longest() -> None:
    assert delays_s(Backoff(jitter=0), 6) == [10, 50, 250, 1250, 3600, 3600]


def test_a_factor_of_one_keeps_the_delay() -> None:
    assert delays_s(Backoff(first_s=60, factor=1, jitter=0), 3) == [60, 60, 60]


def test_a_delay_varies_by_its_share() -> None:
    assert delays_s(Backoff(), 1, random=0) == [8]
    assert delays_s(Backoff(), 1, random=1) == [12]


def test_the_longest_delays_vary_too_and_are_not_over_it() -> None:
    shortest, middle, longest = (delays_s(Backoff(), 9, random=r)[-1] for r in (0, 0.5, 1))
    assert (shortest, middle, longest) == (2880, 3240, 3600)


@given(
    first_s=st.floats(0, 3600),
    factor=st.floats(1, 1000),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**9),
    random=st.floats(0, 1),
)
def test_no_delay_is_negative_or_over_the_longest(
    first_s: float, factor: float, jitter: float, attempt: int, random: float
) -> None:
    backoff = Backoff(first_s=first_s, factor=factor, jitter=jitter)
    assert 0 <= backoff.delay_s(attempt, lambda: random) <= 3600


def test_retries_without_a_delay_are_never_delayed() -> None:
    assert Backoff(first_s=0).delay_s(10**9, lambda: 1) == 0


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"first_s": -1}, "Backoff(first_s=-1): it must be a number from 0"),
        ({"first_s": float("nan")}, "first_s=nan"),
        ({"first_s": True}, "first_s=True"),
        ({"factor": 0.5}, "factor=0.5): it must be a number from 1"),
        ({"factor": "5"}, "factor='5'"),
        ({"longest_s": float("inf")}, "longest_s=inf): it must be a number from 0 to 2592000"),
        ({"jitter": 1.1}, "jitter=1.1): it must be a number from 0 to 1"),
        ({"jitter": None}, "jitter=None"),
        ({"longest_s": 5}, "the first delay is over the longest. Raise longest_s, or lower"),
    ],
)
def test_a_backoff_that_cannot_be_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(RegistrationError) as error:
        Backoff(**values)
    assert why in str(error.value)


def test_a_wish_reads_well_in_a_log() -> None:
    assert str(Retry(60)) == "again in 60 s"
    assert str(Retry(2_592_000, "CRM is down")) == "again in 2592000 s: CRM is down"
    assert str(GiveUp("no such customer")) == "no such customer"
    assert str(GiveUp("")) == "given up"


def test_what_was_asked_for_can_be_read() -> None:
    retry = Retry(after_s=0.5, reason="CRM is down")
    assert (retry.after_s, retry.reason) == (0.5, "CRM is down")
    assert GiveUp("no such customer").reason == "no such customer"


def test_an_exception_may_be_the_reason() -> None:
    assert GiveUp(ValueError("no such customer")).reason == "no such customer"  # type: ignore[arg-type]


def test_a_wish_is_caught_with_all_this_package_raises() -> None:
    assert issubclass(Retry, MillisHooksError)
    assert issubclass(GiveUp, MillisHooksError)


@pytest.mark.parametrize(
    "after_s", [-1, float("nan"), float("inf"), 2_592_001, 10**400, True, "60", None]
)
def test_a_wish_for_a_time_that_cannot_be_is_an_error(after_s: Any) -> None:
    with pytest.raises(ValueError, match=r"after_s=.*from 0 to 2592000 \(30 days\)\."):
        Retry(after_s)


@pytest.mark.parametrize("wish", [Retry(60, "CRM is down"), Retry(0), GiveUp("no such customer")])
def test_a_wish_comes_back_from_another_process(wish: Retry | GiveUp) -> None:
    returned = pickle.loads(pickle.dumps(wish))
    assert (type(returned), str(returned)) == (type(wish), str(wish))
    assert vars(returned) == vars(wish)

"""Variants: which name a session gets."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from millis_hooks import EndOfCall, PrefetchRequest, variant
from millis_hooks.protocol.functions import FunctionRequest


def asked(session_id: str) -> PrefetchRequest:
    return PrefetchRequest(session_id=session_id)


def test_a_session_has_the_same_variant_in_every_handler() -> None:
    for number in range(20):
        session_id = f"-Ox{number}"
        function = FunctionRequest.parse("book", f"session_id={session_id}".encode())
        ended = EndOfCall.from_raw({"session_id": session_id})
        chosen = {variant(each, "a", "b") for each in (asked(session_id), function, ended)}
        assert len(chosen) == 1


def test_names_are_equally_likely_or_as_weighed() -> None:
    calls = [asked(f"-Ox{number}") for number in range(2000)]
    even = Counter(variant(call, "a", "b") for call in calls)
    assert 900 < even["a"] < 1100
    weighed = Counter(variant(call, "a", "b", "c", weights=[3, 1, 0]) for call in calls)
    assert 1400 < weighed["a"] < 1600
    assert weighed["c"] == 0


def test_two_comparisons_are_independent_of_each_other() -> None:
    calls = [asked(f"-Ox{number}") for number in range(2000)]
    both = Counter((variant(c, "a", "b"), variant(c, "a", "b", name="voice")) for c in calls)
    assert all(400 < both[one, other] < 600 for one in "ab" for other in "ab")


def test_a_request_without_a_session_gets_the_first() -> None:
    assert variant(asked(""), "a", "b", weights=[0, 1]) == "a"


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        ((), {}, "two different names"),
        (("a",), {}, "two different names"),
        (("a", "a"), {}, "two different names"),
        (("a", ""), {}, "texts"),
        (("a", 1), {}, "texts"),
        (("a", "b"), {"name": ""}, "texts"),
        (("a", "b"), {"weights": {1: 1, 2: 2}}, "a weight for each"),
        (("a", "b"), {"weights": [1]}, "a weight for each of its 2 names"),
        (("a", "b"), {"weights": [1, 2, 3]}, "a weight for each"),
        (("a", "b"), {"weights": [0, 0]}, "not all 0"),
        (("a", "b"), {"weights": [-1, 2]}, "from 0 on"),
        (("a", "b"), {"weights": [float("nan"), 1]}, "numbers"),
        (("a", "b"), {"weights": [float("inf"), 1]}, "numbers"),
        (("a", "b"), {"weights": "12"}, "numbers"),
        (("a", "b"), {"weights": [True, 1]}, "numbers"),
        (("a", "b"), {"weights": 1}, "numbers"),
    ],
)
def test_what_is_no_choice_is_refused(names: Any, options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        variant(asked("-Ox1"), *names, **options)


def test_what_is_no_call_is_refused() -> None:
    with pytest.raises(TypeError, match="not str as a call"):
        variant("a", "b", "c")  # type: ignore[arg-type]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.protocol.variables import fill, variables_of


def test_known_names_are_filled_in() -> None:
    filled = fill("Hi {userName}, you called {ToPhone}.", {"userName": "Ann", "ToPhone": "+1"})
    assert filled.text == "Hi Ann, you called +1."
    assert filled.unknown == ()


def test_unknown_names_stay_and_are_reported_once_in_order() -> None:
    filled = fill("{b} {a} {b} {userName}", {"username": "Ann"})
    assert filled.text == "{b} {a} {b} {userName}"
    assert filled.unknown == ("b", "a", "userName")


@pytest.mark.parametrize(
    ("value", "spelled"),
    [("text", "text"), (3, "3"), (0.5, "0.5"), (True, "true"), (None, "null"),
     ({"city": "Köln"}, '{"city": "Köln"}'), ([1, "a"], '[1, "a"]'), ({1}, "{1}")],
)  # fmt: skip
def test_a_value_that_is_not_text_reads_as_json(value: object, spelled: str) -> None:
    assert fill("{x}", {"x": value}).text == spelled


@pytest.mark.parametrize(
    "template",
    ['{"day": 1}', "{}", "{ x }", "{{x}}", "{x.__class__}", "{x!r}", "{x:>9}", "{0}", "{x", "x}"],
)
def test_other_braces_are_left_alone(template: str) -> None:
    assert fill(template, {"x": "filled"}).text == template


def test_a_variable_inside_json_is_filled_in() -> None:
    assert fill('{"plan": {plan}}', {"plan": "gold"}).text == '{"plan": gold}'


def test_a_value_is_not_filled_in_again() -> None:
    assert fill("{a}", {"a": "{b}", "b": "secret"}).text == "{b}"


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_any_template_can_be_filled(template: str, variables: dict[str, str]) -> None:
    assert not set(fill(template, variables).unknown) & set(variables)


def test_the_numbers_are_variables_only_on_the_phone() -> None:
    assert variables_of({"plan": "gold"}) == {"plan": "gold"}
    assert variables_of({"FromPhone": "x"}, from_phone="+1", to_phone="+2") == {
        "FromPhone": "+1",
        "ToPhone": "+2",
    }

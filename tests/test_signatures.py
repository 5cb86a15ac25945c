"""The annotation of what a handler takes is read, whatever else of the function cannot be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional

import pytest
from pydantic import BaseModel

from millis_hooks import EndOfCall, MillisHooks, RegistrationError
from millis_hooks import PrefetchRequest as Asked
from millis_hooks.signatures import metadata_model

if TYPE_CHECKING:
    from elsewhere import Result, Unknown  # type: ignore[import-not-found]

    from millis_hooks import PrefetchRequest


class Plan(BaseModel):
    name: str = "free"


def returns_what_is_unknown(call: Asked[Plan]) -> Result: ...
def takes_more(call: Asked[Plan], crm: Unknown = None) -> None: ...
def imported_for_checkers(call: PrefetchRequest[Plan]) -> None: ...
def or_none(call: Asked[Plan] | None) -> None: ...
def optional(call: Optional[Asked[Plan]]) -> None: ...  # noqa: UP045
def annotated(call: Annotated[Asked[Plan], "the call"]) -> None: ...
def text_in_text(call: Asked["Plan"]) -> None: ...  # noqa: UP037
def with_crm(crm: Unknown, call: Asked[Plan]) -> Result: ...


class Greeter:
    def greet(self, call: Asked[Plan]) -> Result: ...

    @classmethod
    def of_the_class(cls, call: Asked[Plan]) -> Result: ...

    def __call__(self, call: Asked[Plan]) -> Result: ...


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        return function(*args)

    return wrapped


def written_in_a_function() -> Callable[..., Any]:
    class Local(Plan): ...

    def greet(call: Asked[Local]) -> Result: ...

    assert metadata_model(greet) is Local
    assert metadata_model(logged(greet)) is Local
    return greet


@pytest.mark.parametrize(
    "function",
    [returns_what_is_unknown, takes_more, imported_for_checkers, or_none, optional, annotated,
     text_in_text, Greeter().greet, Greeter.of_the_class, Greeter(), logged(takes_more),
     functools.partial(with_crm, "crm"), logged(Greeter().greet)],
)  # fmt: skip
def test_the_model_is_found(function: Callable[..., Any]) -> None:
    assert metadata_model(function) is Plan
    MillisHooks().on_prefetch(name="greet")(function)


def misspelt(call: Asked[Pln]) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def of_checkers_alone(call: Asked[Unknown]) -> None: ...
def no_type(call: Unknown) -> None: ...


@pytest.mark.parametrize("function", [misspelt, of_checkers_alone, no_type])
def test_what_cannot_be_read_is_refused_where_it_is_registered(
    function: Callable[..., Any],
) -> None:
    for register in (MillisHooks().on_prefetch, MillisHooks().on_end_of_call):
        with pytest.raises(
            RegistrationError, match=r"takes call: .* cannot be read: name "
        ) as told:
            register(function)
        assert "test_signatures.py" in str(told.value)
        assert "TYPE_CHECKING" in str(told.value)


def test_a_model_of_a_function_is_found_while_the_function_is_at_work() -> None:
    greet = written_in_a_function()
    with pytest.raises(RegistrationError, match="'Asked\\[Local\\]', which cannot be read"):
        metadata_model(greet)


def test_what_is_not_annotated_or_of_no_model_has_none() -> None:
    assert metadata_model(lambda call: None) is None
    assert metadata_model(lambda *calls: None) is None

    def untyped(call: Asked) -> None: ...
    def any_number(*calls: Asked[Plan]) -> None: ...

    assert metadata_model(untyped) is metadata_model(any_number) is None


def test_one_of_several_may_be_what_the_hook_calls_it_with() -> None:
    def either(call: Asked[Plan] | EndOfCall) -> None: ...

    handler: Any = either
    MillisHooks().on_end_of_call(handler)
    with pytest.raises(RegistrationError, match="takes PrefetchRequest, but on_parked"):
        MillisHooks().on_parked(handler)

"""The annotation of what a handler takes is read, whatever else of the function cannot be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypedDict, TypeVar

import pytest
from pydantic import BaseModel

from millis_hooks import EndOfCall, MillisHooks, RegistrationError
from millis_hooks import PrefetchRequest as Asked
from millis_hooks.handlers.signatures import metadata_model

if TYPE_CHECKING:
    from elsewhere import Result, Unknown  # type: ignore[import-not-found]

    from millis_hooks import PrefetchRequest


class Plan(BaseModel):
    name: str = "free"


class Names(TypedDict):
    name: str


@dataclass
class Row:
    name: str


class Narrowed(Asked[Plan]): ...


class Longer(EndOfCall): ...


AnyMetadata = TypeVar("AnyMetadata")


def returns_what_is_unknown(call: Asked[Plan]) -> Result: ...
def takes_more(call: Asked[Plan], crm: Unknown = None) -> None: ...
def imported_for_checkers(call: PrefetchRequest[Plan]) -> None: ...
def or_none(call: Asked[Plan] | None) -> None: ...
def optional(call: Optional[Asked[Plan]]) -> None: ...  # noqa: UP045
def annotated(call: Annotated[Asked[Plan], "the call"]) -> None: ...
def plan_or_none(call: Asked[Plan | None]) -> None: ...
def optional_plan(call: Asked[Optional[Annotated[Plan, 1]]]) -> None: ...  # noqa: UP045
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

    assert metadata_model(greet, Asked) is Local
    assert metadata_model(logged(greet), Asked) is Local
    return greet


@pytest.mark.parametrize(
    "function",
    [returns_what_is_unknown, takes_more, imported_for_checkers, or_none, optional, annotated,
     plan_or_none, optional_plan,
     text_in_text, Greeter().greet, Greeter.of_the_class, Greeter(), logged(takes_more),
     functools.partial(with_crm, "crm"), logged(Greeter().greet)],
)  # fmt: skip
def test_the_model_is_found(function: Callable[..., Any]) -> None:
    assert metadata_model(function, Asked) is Plan
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


def of_a_dataclass(call: Asked[Row]) -> None: ...
def of_text(call: Asked[str] | None) -> None: ...
def narrowed(call: Narrowed) -> None: ...
def longer(call: Longer | None) -> None: ...


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (of_a_dataclass, r"metadata as .*Row; it is a dict of text, or read into a model"),
        (of_text, "metadata as str; it is a dict"),
        (narrowed, "takes Narrowed, but on_prefetch calls it with PrefetchRequest"),
        (longer, "takes Longer, but on_prefetch calls it with PrefetchRequest"),
    ],
)
def test_what_a_handler_is_never_given_is_refused(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(RegistrationError, match=told):
        MillisHooks().on_prefetch(function)


def of_names(call: Asked[Names]) -> None: ...
def of_a_dict(call: Asked[dict[str, str]]) -> None: ...
def of_a_mapping(call: Asked[Mapping[str, Any]]) -> None: ...
def of_anything(call: Asked[Any]) -> None: ...
def of_any_metadata(call: Asked[AnyMetadata]) -> None: ...


@pytest.mark.parametrize(
    "function", [of_names, of_a_dict, of_a_mapping, of_anything, of_any_metadata]
)
def test_metadata_that_stays_a_dict_has_no_model(function: Callable[..., Any]) -> None:
    MillisHooks().on_prefetch(function)
    assert metadata_model(function, Asked) is None


def test_a_model_of_a_function_is_found_while_the_function_is_at_work() -> None:
    greet = written_in_a_function()
    with pytest.raises(RegistrationError, match="'Asked\\[Local\\]', which cannot be read"):
        metadata_model(greet, Asked)


def test_a_parameter_without_a_model_has_no_metadata_type() -> None:
    assert metadata_model(lambda call: None, Asked) is None
    assert metadata_model(lambda *calls: None, Asked) is None

    def untyped(call: Asked) -> None: ...
    def any_number(*calls: Asked[Plan]) -> None: ...

    assert metadata_model(untyped, Asked) is metadata_model(any_number, Asked) is None


def test_one_of_several_may_be_what_the_hook_calls_it_with() -> None:
    def either(call: Asked[Plan] | EndOfCall) -> None: ...

    handler: Any = either
    MillisHooks().on_end_of_call(handler)
    with pytest.raises(RegistrationError, match="takes PrefetchRequest, but on_failed"):
        MillisHooks().on_failed(handler)


def test_the_model_of_an_ended_call_is_found() -> None:
    def save(call: EndOfCall[Plan, dict[str, int]]) -> None: ...

    assert metadata_model(save, EndOfCall) is Plan


def test_a_wrong_model_of_an_ended_call_is_refused() -> None:
    def save(call: EndOfCall[int]) -> None: ...

    with pytest.raises(RegistrationError, match=r"EndOfCall\[YourModel\]"):
        MillisHooks(insecure=True).on_end_of_call(save)

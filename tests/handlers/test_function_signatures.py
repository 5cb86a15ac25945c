"""The signature of a function is its schema, and one that no model could fill fails at import."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import date, datetime, time
from enum import Enum, IntEnum
from functools import partial
from typing import Annotated, Any, Literal, NewType, Optional

import pytest
from pydantic import Field

from millis_hooks import FunctionRequest, MillisHooks, RegistrationError, Router

Guests = NewType("Guests", int)


class Seat(Enum):
    INSIDE = "inside"
    GARDEN = "garden"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


def entry_of(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    router = Router()
    router.function(**options)(function)
    [handler] = router.functions()
    assert handler.tool is not None
    return handler.tool.entry()


def test_the_signature_is_the_schema() -> None:
    async def free_tables(
        call: FunctionRequest, day: date, people: Annotated[int, "How many guests"] = 2
    ) -> None:
        """Find free tables on a day.

        Call it before a table is booked.
        """

    assert entry_of(free_tables, timeout_s=4, say=["One moment."]) == {
        "name": "free_tables",
        "description": "Find free tables on a day.\n\nCall it before a table is booked.",
        "params": [
            {
                "name": "day",
                "type": "string",
                "description": "Day. As YYYY-MM-DD.",
                "required": True,
            },
            {
                "name": "people",
                "type": "number",
                "description": "How many guests. A whole number. 2 by default.",
                "required": False,
            },
        ],
        "method": "POST",
        "timeout": 5,
        "messages": ["One moment."],
    }


@pytest.mark.parametrize(
    ("annotation", "type_", "description", "is_required"),
    [
        (str, "string", "Wanted", True),
        (bool, "boolean", "Wanted", True),
        (float, "number", "Wanted", True),
        (datetime, "string", "Wanted. As YYYY-MM-DDTHH:MM.", True),
        (time, "string", "Wanted. As HH:MM.", True),
        (Literal["lunch", "dinner"], "string", "Wanted. One of: lunch, dinner.", True),
        (Seat, "string", "Wanted. One of: inside, garden.", True),
        (Size, "string", "Wanted. One of: 1, 2.", True),
        (Literal[Seat.GARDEN, "bar"], "string", "Wanted. One of: garden, bar.", True),
        (Literal["bar", None], "string", "Wanted. One of: bar.", False),
        (Guests, "number", "Wanted. A whole number.", True),
        (int | None, "number", "Wanted. A whole number.", False),
        (Optional[Seat], "string", "Wanted. One of: inside, garden.", False),  # noqa: UP045
        (Annotated[str | None, "A name"], "string", "A name", False),
        (Annotated[str, "{FromPhone}"], "string", "{FromPhone}", True),
        (
            Annotated[int, Field(ge=1, description="Guests.")],
            "number",
            "Guests. A whole numb",
            True,
        ),
    ],
)
def test_parameters_have_a_type_and_words(
    annotation: Any, type_: str, description: str, is_required: bool
) -> None:
    def book(wanted: Any) -> None: ...

    book.__annotations__["wanted"] = annotation
    [parameter] = entry_of(book)["params"]
    assert (parameter["type"], parameter["required"]) == (type_, is_required)
    assert parameter["description"].startswith(description)


@pytest.mark.parametrize(
    ("annotation", "sent", "read"),
    [
        (Size, 2.0, Size.LARGE),
        (Literal[5, 7], 7.0, 7),
        (Literal["A", "a"], "A", "A"),
        (Literal["A", "a"], " A ", "a"),
        (Literal[Seat.GARDEN], "Garden", Seat.GARDEN),
        (Literal["bar", None], None, None),
        (bool, " true ", True),
    ],
)
def test_a_choice_is_read_as_a_model_may_write_it(annotation: Any, sent: Any, read: Any) -> None:
    def book(wanted: Any) -> None: ...

    book.__annotations__["wanted"] = annotation
    router = Router()
    router.function(book)
    [handler] = router.functions()
    assert handler.tool is not None
    assert handler.tool.read({"wanted": sent}) == {"wanted": read}


def test_millis_own_switches_are_passed_on() -> None:
    def book() -> None: ...

    switches = {"run_after_call": True, "exclude_session_id": False, "response_mode": "strict"}
    entry = entry_of(book, method="GET", timeout_s=0.5, name="book_table", **switches)
    assert entry == {
        "name": "book_table",
        "description": "Book table.",
        "params": [],
        "method": "GET",
        "timeout": 2,
        **switches,
    }


def test_the_function_is_returned_unchanged() -> None:
    hooks = MillisHooks(insecure=True)

    @hooks.function
    def book(table: int) -> int:
        return table

    assert book(3) == 3


def bare(table): ...  # type: ignore[no-untyped-def]
def several(*tables: int) -> None: ...
def open_ended(**others: int) -> None: ...
def by_place(table: int, /) -> None: ...
def listed(tables: list[int]) -> None: ...
def either(table: int | str) -> None: ...
def own(session_id: str) -> None: ...
def wrong_default(table: int = "one") -> None: ...  # type: ignore[assignment]
def unknown(table: Table) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def twice(call: FunctionRequest, request: FunctionRequest) -> None: ...
def _hidden() -> None: ...
def tisch_für() -> None: ...  # noqa: PLC2401
def wrong_number(weight: float = "1.5") -> None: ...  # type: ignore[assignment]
async def yielding() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (bare, "does not say what table is. Write table: str"),
        (several, "Name each parameter"),
        (open_ended, "Name each parameter"),
        (by_place, "takes table by its place alone"),
        (listed, "a model can fill str, bool, int, float"),
        (either, "give it one type, or one type and None"),
        (own, "cannot have the parameter session_id: Millis adds it"),
        (wrong_default, "its default 'one' is of another type"),
        (wrong_number, "its default '1.5' is of another type"),
        (unknown, "cannot be read: name 'Table' is not defined"),
        (twice, "takes the request twice: call, request"),
        (_hidden, "cannot be called '_hidden'. Millis takes a letter"),
        (tisch_für, "cannot be called 'tisch_für'"),
        (partial(by_place, 1), None),
        (yielding, "yields; a handler must return"),
    ],
)
def test_a_wrong_signature_fails_at_import_with_its_place(
    function: Callable[..., Any], words: str | None
) -> None:
    if words is None:
        assert entry_of(function)["params"] == []
        return
    with pytest.raises(RegistrationError) as raised:
        Router().function(function)
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"{__file__}:")


@pytest.mark.parametrize(
    "options",
    [
        {"name": "free tables"},
        {"say": [1]},
        {"say": 5},
        {"method": "PUT"},
        {"timeout_s": 0},
        {"response_mode": "loose"},
        {"answer": "xml"},
        {"fallback": ""},
        {"channel": "phone"},
    ],
)
def test_a_wrong_option_fails_at_import(options: dict[str, Any]) -> None:
    def book() -> None: ...

    with pytest.raises(RegistrationError, match="book"):
        Router().function(**options)(book)


def test_two_functions_of_one_name_are_refused() -> None:
    router = Router()

    @router.function
    def book() -> None: ...

    with pytest.raises(RegistrationError, match="Two function handlers are named 'book'"):
        router.function(name="book")(lambda: None)

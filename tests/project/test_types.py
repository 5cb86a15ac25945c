"""What type checkers know of handlers, settings and tests. mypy checks this file, too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import date
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from millis_hooks import EndOfCall, FunctionRequest, MillisHooks, PrefetchRequest, Router
from millis_hooks.exceptions import ConfigError
from millis_hooks.protocol.reading import Json
from millis_hooks.settings import Settings, SettingsOptions
from millis_hooks.testing import Answer, HooksClient, SimulateCall
from support.paths import ROOT

router = Router()


class Customer(BaseModel):
    tier: str = "basic"
    visits: int = 0


class Pool:
    size = 1


@router.on_prefetch
def answer_with_a_mapping(call: PrefetchRequest) -> dict[str, dict[str, str]]:
    assert_type(call.metadata, dict[str, str])
    assert_type(call.state, Any)
    return {"metadata": {}}


@router.on_prefetch
async def read_a_model_before(call: PrefetchRequest[Customer, Pool]) -> str:
    assert_type(call.metadata, Customer)
    assert_type(call.state, Pool)
    return call.metadata.tier


@router.on_end_of_call
def read_a_dict_after(call: EndOfCall) -> None:
    assert_type(call.metadata, dict[str, Json])


@router.on_end_of_call(outcome="completed")
def read_a_model_after(call: EndOfCall[Customer, Pool]) -> None:
    assert_type(call.metadata, Customer)
    assert_type(call.state, Pool)


@router.on_prefetch  # type: ignore[type-var]
def answer_with_a_number(call: PrefetchRequest) -> int:
    return 1


@router.on_end_of_call
async def return_results(call: EndOfCall) -> dict[str, bool] | None:
    return {"booked": True} if call.outcome == "completed" else None


@router.on_end_of_call(name="model")
def return_a_model_as_results(call: EndOfCall) -> Customer:
    return Customer()


@router.on_end_of_call(name="lines")  # type: ignore[type-var]
def return_no_results(call: EndOfCall) -> list[str]:
    return ["booked"]


@router.function
def answer_with_a_text(day: date, people: int = 2) -> str:
    """Find a table."""
    return f"A table for {people} on {day}."


@router.function(name="tables")
async def answer_with_json(call: FunctionRequest) -> list[dict[str, object]]:
    """Find all tables."""
    return [{"table": "window"}]


@router.function(name="object")  # type: ignore[type-var]
def answer_with_what_json_has_not() -> object:
    """Find an object."""
    return object()


def test_the_keyword_arguments_are_the_settings() -> None:
    assert SettingsOptions.__annotations__.keys() == Settings.model_fields.keys()


def test_a_type_checker_finds_a_misspelt_setting() -> None:
    with pytest.raises(ConfigError):
        MillisHooks(prefetch_budget=1.0)  # type: ignore[call-arg]


def test_a_type_checker_finds_a_wrong_value() -> None:
    with pytest.raises(ConfigError):
        MillisHooks(prefetch_budget_s="soon")  # type: ignore[arg-type]


def test_tests_have_types_to_import(hooks_client: HooksClient, simulate_call: SimulateCall) -> None:
    call = simulate_call("inbound", function_answers={"book": Answer(200, b"booked")})
    assert call.run("read_a_model_after").state == "succeeded"
    assert hooks_client.prefetch().body


@pytest.fixture
def millis_hooks_app() -> MillisHooks:
    return MillisHooks(router)


#: Of what examples import, pyright reads half as much again as of the package; mypy knows it.
LARGE = re.compile("import (FastAPI|Celery|.*(create_engine|create_async_engine))")
SMALL_EXAMPLES = [
    str(example)
    for example in ROOT.glob("examples/**/*.py")
    if not LARGE.search(example.read_text())
]


@pytest.mark.timeout(600)  # it takes both processors, which others may have
@pytest.mark.skipif(shutil.which("node") is None, reason="pyright needs Node.js")
@pytest.mark.parametrize(
    "examples",
    [SMALL_EXAMPLES, pytest.param(["examples"], marks=pytest.mark.long)],
    ids=["most", "all"],
)
def test_pyright_accepts_the_examples_and_this_file(examples: list[str]) -> None:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    checked = subprocess.run(
        [*command, *examples, __file__], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout

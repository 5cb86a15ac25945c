"""Declared variables complete every answer; filters by direction and number choose its handlers."""

from __future__ import annotations

from typing import Any

import pytest

from millis_hooks import (
    ConfigError,
    EndOfCall,
    MillisHooks,
    PrefetchRequest,
    PrefetchResponse,
    RegistrationError,
    Router,
)
from millis_hooks.sandbox.scenario import Scenario, Script, SessionSpec
from millis_hooks.sandbox.texts import unknown_variables
from millis_hooks.testing import HooksClient
from support.app import MakeHooks

DECLARED = {"first_name": "there", "seats": 2}


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        (None, {"first_name": "there", "seats": 2}),
        ({"metadata": {"first_name": "Ada"}}, {"first_name": "Ada", "seats": 2}),
        ({"metadata": {"first_name": None}}, {"first_name": "there", "seats": 2}),
        ({"metadata": {"seats": 0}}, {"first_name": "there", "seats": 0}),
    ],
)
def test_declared_variables_complete_an_answer(
    make_hooks: MakeHooks, answer: Any, sent: dict[str, Any]
) -> None:
    hooks = make_hooks(variables=DECLARED)
    hooks.on_prefetch(lambda call: answer)
    with HooksClient(hooks) as client:
        assert client.prefetch().metadata == sent
        given = (answer or {}).get("metadata", {})
        expected = given["first_name"] or "Bo" if "first_name" in given else None
        known = client.prefetch(metadata={"first_name": "Bo"})
        assert known.metadata.get("first_name") == expected


@pytest.mark.parametrize("fallback", ["empty", "default"])
def test_declared_variables_complete_every_fallback(make_hooks: MakeHooks, fallback: str) -> None:
    hooks = make_hooks(
        variables=DECLARED,
        prefetch_fallback=fallback,
        prefetch_default={"metadata": {"seats": 4}},
    )

    @hooks.on_prefetch
    def fail(call: PrefetchRequest) -> None:
        raise RuntimeError

    with HooksClient(hooks) as client:
        seats = 4 if fallback == "default" else 2
        assert client.prefetch().metadata == {"first_name": "there", "seats": seats}


def test_declared_variables_are_filled_in_here_too(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(variables=DECLARED)
    prompt = "Say hi {first_name}, {nobody}."
    hooks.on_prefetch(lambda call: PrefetchResponse(extra_prompt=prompt, fill_variables=True))
    with HooksClient(hooks) as client:
        assert client.prefetch().extra_prompt == "Say hi there, {nobody}."


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"first name": "x"}, "is no name of a variable"),
        ({"1st": "x"}, "is no name of a variable"),
        ({"FromPhone": "x"}, "a name that Millis gives"),
        ({"session_id": "x"}, "a name that Millis gives"),
        ({"plan": None}, "has to be a text or a number"),
        ({"plan": ["a"]}, "has to be a text or a number"),
        ({"plan": float("nan")}, "has to be a text or a number"),
        ("first_name=there", 'expected JSON, such as {"first_name": "there"}'),
        ('{"a": "1", "a": "2"}', "is in it twice"),
    ],
)
def test_variables_that_cannot_be_are_refused(variables: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MillisHooks(insecure=True, variables=variables)


def test_variables_of_an_agent_that_are_not_declared_are_named_by_place() -> None:
    agent: dict[str, Any] = {
        "prompt": "Greet {frist_name} of {FromPhone}.",
        "first_message": "Hi {first_name}!",
        "tools": [{"name": "book", "description": "For {guests}"}],
    }
    unknown = unknown_variables(agent, {"first_name": "there"})
    assert {name for names in unknown.values() for name in names} == {"frist_name", "guests"}
    assert unknown["prompt"] == ("frist_name",)


def test_filters_by_direction_and_number_choose_the_handlers(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(own_numbers={"+14155550100"})
    asked: list[str] = []
    ended: list[str] = []

    @hooks.on_prefetch(direction="inbound", to_phone="+1 (415) 555-0100")
    def inbound(call: PrefetchRequest) -> None:
        asked.append(call.session_id)

    @hooks.on_end_of_call(direction={"outbound"}, to_phone=["+1 415 555 0199", "+14155550198"])
    def outbound(call: EndOfCall) -> None:
        ended.append(call.session_id)

    mine, other = "+14155550100", "+14155550199"
    with HooksClient(hooks) as client:
        client.prefetch(session_id="-in", from_phone=other, to_phone=mine)
        client.prefetch(session_id="-out", from_phone=mine, to_phone=other)
        client.prefetch(session_id="-web", from_phone=None, to_phone=None)
    assert asked == ["-in"]
    [handler] = [each for each in hooks.router if each.hook == "end_of_call"]

    def call(from_phone: str, to_phone: str) -> EndOfCall:
        raw: Any = {"session_id": "-1", "voip": {"from": from_phone, "to": to_phone}}
        return EndOfCall.from_raw(raw, own_numbers=frozenset({mine}))

    assert handler.matches(call(mine, other))
    assert not handler.matches(call(other, mine))
    assert not handler.matches(call(mine, "+14155550197"))
    assert not handler.matches(EndOfCall.from_raw({"session_id": "-1"}))


@pytest.mark.parametrize(
    "options",
    [
        {"direction": "in"},
        {"direction": []},
        {"to_phone": "0171 123"},
        {"to_phone": "sip:desk@example.com"},
        {"to_phone": []},
        {"to_phone": 14155550100},
    ],
)
@pytest.mark.parametrize("hook", ["on_prefetch", "on_end_of_call"])
def test_a_filter_that_no_call_can_meet_fails_at_import(hook: str, options: Any) -> None:
    with pytest.raises(RegistrationError, match="asks for"):
        getattr(Router(), hook)(**options)(lambda call: None)


def test_the_sandbox_names_variables_of_a_prompt_that_are_not_declared(
    make_hooks: MakeHooks,
) -> None:
    scenario = Scenario(
        name="greet",
        title="",
        spec=SessionSpec(agent_config={"prompt": "Greet {frist_name}."}),
        script=Script(),
    )
    for variables, expected in ((DECLARED, True), ({}, False)):
        with HooksClient(make_hooks(variables=variables)) as client:
            notes = " ".join(client.simulate(scenario).result.texts.notes)
        assert ("Not declared in variables=" in notes) is expected

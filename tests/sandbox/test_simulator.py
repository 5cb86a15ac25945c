"""Scenarios against a receiver, and what they expect of it."""

from __future__ import annotations

import asyncio

import pytest

from millis_hooks.sandbox.scenario import SHIPPED, Scenario, load_scenario, read_scenario
from millis_hooks.sandbox.simulator import ExpectationResult, Simulator, check
from millis_hooks.settings import Settings
from millis_hooks.webhooks import Marker
from support.sandbox_calls import Receiver, json_answer

#: A call whose function fails; what it expects comes behind.
CALL = """
[session]
metadata = { plan = "gold" }

[agent]
prompt = "Two lines"

[[turns]]
call = "find"

[answers.find]
status = 500

[ending]
call_status = "agent-ended"

[expect]
"""


def read(source: str) -> Scenario:
    return read_scenario(source, file="calls.toml", name="calls")


def rehearse(scenario: Scenario, receiver: Receiver) -> list[ExpectationResult]:
    webhooks = {
        "extra_prompt_webhook": "http://receiver.test/prefetch",
        "session_data_webhook": "http://receiver.test/end",
    }

    async def once() -> list[ExpectationResult]:
        mark = Marker(Settings.load(), "sandbox")
        simulator = Simulator(transport=receiver, webhooks=lambda agent_id: webhooks, mark=mark)
        session = await simulator.run_session(scenario)
        handlers = {"book": "failed"}
        return check(scenario.expected, session, outcome="completed", handlers=handlers)

    return asyncio.run(once())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_receiver_that_answers_nothing_meets_the_shipped_expectations(name: str) -> None:
    results = rehearse(load_scenario(name), Receiver())
    assert {str(one) for one in results if not one.is_met} <= {
        "outcome: voicemail: completed", "outcome: failed: completed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expect", "found"),
    [
        ('prefetch = "none"', "prefetch: none: answered"),
        ("prefetch_within_ms = 0", "prefetch within 0 ms: it took"),
        ('metadata = { plan = "free" }', "metadata plan is 'free': 'gold'"),
        ("metadata = { a = 1 }", "metadata a is 1: nothing"),
        ('prompt_contains = ["x"]', "the prompt contains 'x': it does not"),
        ('prompt_lacks = ["Two"]', "the prompt lacks 'Two': it contains it"),
        ('first_message = "Hi"', "first message: Hi: "),
        ('unresolved = ["a"]', "unknown variables: a: none"),
        ('functions = { find = "up" }', "find gives 'up': 'Failed"),
        ('functions = { fly = "" }', "fly gives '': it was not called"),
        ('call_status = "busy"', "status: busy: agent-ended"),
        ('end_of_call = "refused"', "end-of-call: refused: accepted"),
        ('outcome = "voicemail"', "outcome: voicemail: completed"),
        ('handlers = { book = "succeeded" }', "handler book: succeeded: failed"),
        ('handlers = { gone = "succeeded" }', "handler gone: succeeded: not called"),
    ],
)
def test_an_unmet_expectation_says_what_happened(expect: str, found: str) -> None:
    results = rehearse(read(f"{CALL}{expect}"), Receiver())
    assert [one.is_met for one in results] == [False]
    assert str(results[0]).startswith(found)


def test_a_scenario_without_expectations_still_expects_acceptance() -> None:
    scenario = read('[[turns]]\nuser = "Hello"')
    assert [one.is_met for one in rehearse(scenario, Receiver())] == [True]
    refused = rehearse(scenario, Receiver(end=json_answer({}, 401)))
    assert refused[0].found == "answered with status 401"


def test_an_agent_s_own_webhooks_stay() -> None:
    receiver = Receiver()
    own = '[agent]\nextra_prompt_webhook = "http://other.test/mine"\nsession_data_webhook = ""'
    rehearse(read(own), receiver)
    assert [request.url for request in receiver.sent] == ["http://other.test/mine"]

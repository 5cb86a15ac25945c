"""Scenario files: read whole, or refused with file and field."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from millis_hooks.exceptions import ConfigError
from millis_hooks.sandbox.scenario import (
    SHIPPED,
    Line,
    Scenario,
    ToolUse,
    load_scenario,
    read_scenario,
)
from millis_hooks.sandbox.simulator import ExpectationResult, Simulator, StoredCall, check
from support.sandbox_calls import Receiver, json_answer

WHOLE = '''
title = "A booking"

[session]
from_phone = "+14155550134"
metadata = { plan = "gold", cart = { items = 2 } }
dry_run = true

[agent]
prompt = """
Two
lines"""

[[turns]]
user = "Hello"
pause_s = 2

[[turns]]
call = "find"
params = { day = "tuesday" }

[answers.find]
status = 500
body = "down"

[ending]
call_status = "Agent_Ended"

[faults]
end_of_call = "twice"

[policy]
merge = "deep"

[expect]
call_status = "agent-ended"
'''


def read(source: str) -> Scenario:
    return read_scenario(source, file="calls.toml", name="calls")


def refusal(source: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read(source)
    return str(refused.value)


def test_a_whole_scenario_is_read() -> None:
    scenario = read(WHOLE)
    assert scenario.title == "A booking"
    assert scenario.spec.metadata == {"plan": "gold", "cart": {"items": 2}}
    assert (scenario.spec.dry_run, scenario.spec.policy.merge) == (True, "deep")
    assert scenario.spec.faults.end_of_call == "twice"
    assert scenario.spec.function_answers["find"].status_code == 500
    assert scenario.script.turns == (
        Line("user", "Hello", 2),
        ToolUse("find", {"day": "tuesday"}),
    )
    assert scenario.script.ending.call_status == "agent-ended"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("[session", "calls.toml: Expected ']'"),
        ("[session]\nfrom_phon = 3", "calls.toml: session.from_phon: there is no such field"),
        ("[session]\n\nfrom_phone = 3", "calls.toml: session.from_phone: "),
        ('[session]\nway = "web-sdk"\nto_phone = "+1"', "calls.toml: session: a call by web-sdk"),
        ('[session]\nunreached = "timeout"', "calls.toml: session: unreached is one of busy"),
        ("[session]\nextra_fields = { a = 1 }", "calls.toml: session: extra_fields are sent"),
        ('[ending]\ncall_status = "busyy"', "Did you mean 'busy'?"),
        ('[[turns]]\nuser = "a"\n[[turns]]\npause_s = 1', "calls.toml: turns.1: a turn has one"),
        ('[[turns]]\nuser = "a"\nparams = {a = 1}', "calls.toml: turns.0: only a call has"),
        ('[[turns]]\nuser = "a"\npause_s = -1', "calls.toml: turns.0.pause_s: "),
        ('[faults]\nprefetch = "fire"', "calls.toml: faults.prefetch: "),
        ("[policy]\nmerge_ = 1", "calls.toml: policy.merge_: there is no such field"),
        ("[expect]\nmetadata = 1", "calls.toml: expect.metadata: "),
        ("[session]\nmetadata = { on = 2026-01-01 }", "calls.toml: session.metadata.on"),
        ("[answers.find]\nstatus = 7", "calls.toml: answers.find.status: "),
        ("turns = 1", "calls.toml: turns: "),
    ],
)
def test_an_error_names_file_and_field(source: str, told: str) -> None:
    assert told in refusal(source)


def test_every_error_is_told_at_once() -> None:
    assert len(refusal("[session]\na = 1\nb = 2").splitlines()) == 2


def test_a_scenario_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'inbound'") as refused:
        load_scenario("inbuond")
    assert "tool-calls" in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    for name in ("gone.toml", "latin.toml"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            load_scenario(str(tmp_path / name))


def test_what_was_promised_is_shipped() -> None:
    assert SHIPPED == (
        "error", "hostile", "inbound", "outbound", "tool-calls", "voicemail", "web",
    )  # fmt: skip


def rehearse(scenario: Scenario, receiver: Receiver) -> list[ExpectationResult]:
    webhooks = {
        "extra_prompt_webhook": "http://receiver.test/prefetch",
        "session_data_webhook": "http://receiver.test/end",
    }

    async def once() -> list[ExpectationResult]:
        simulator = Simulator(transport=receiver, webhooks=webhooks)
        session = await simulator.run(scenario)
        stored = StoredCall("completed", {"book": "failed"})
        return check(scenario.expected, session, stored)

    return asyncio.run(once())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_receiver_that_answers_nothing_meets_what_is_shipped(name: str) -> None:
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
def test_what_was_expected_and_did_not_come_is_told(expect: str, found: str) -> None:
    source = WHOLE.replace('call_status = "agent-ended"\n', f"{expect}\n")
    results = rehearse(read(source), Receiver())
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

"""Scenario files: read whole, or refused with file and field."""

from __future__ import annotations

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
        ('[faults]\nprefetch = "fire"', "'bad-json' or 'unreachable', not 'fire'"),
        ("[faults]\nend_of_cal = 1", "Did you mean 'end_of_call'? The fields are prefetch, pre"),
        ("[session.faults]\ndelivery = 1", "session.faults.delivery: there is no such field. The"),
        ("[sesion]\nway = 1", "sesion: there is no such field. Did you mean 'session'?"),
        ("[[turns]]\ntext = 1", "The fields are user, assistant, call, params, pause_s."),
        ("[answers.find]\ntext = 1", "The fields are status, body, content_type."),
        ("[policy]\nmerge_ = 1", "calls.toml: policy.merge_: there is no such field"),
        ("[expect]\nmetadata = 1", "calls.toml: expect.metadata: "),
        ("[session]\nmetadata = { on = 2026-01-01 }", "calls.toml: session.metadata.on"),
        ("[answers.find]\nstatus = 7", "calls.toml: answers.find.status: "),
        ("turns = 1", "calls.toml: turns: "),
    ],
)
def test_an_error_names_file_and_field(source: str, told: str) -> None:
    assert told in refusal(source)


def test_all_errors_are_reported_at_once() -> None:
    assert len(refusal("[session]\na = 1\nb = 2").splitlines()) == 2


def test_an_unknown_scenario_is_refused_with_the_names_of_the_shipped() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'inbound'") as refused:
        load_scenario("inbuond")
    assert "tool-calls" in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    for name in ("gone.toml", "latin.toml"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read"):
            load_scenario(str(tmp_path / name))


def test_the_shipped_scenarios() -> None:
    assert SHIPPED == (
        "error", "hostile", "inbound", "outbound", "tool-calls", "voicemail", "web",
    )  # fmt: skip

"""Metadata merged and texts filled in, as far as Millis documents it; the rest is the policy's."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import unquote

import pytest

from millis_hooks.protocol.reading import Json
from millis_hooks.sandbox.policy import Policy, policy_settings
from millis_hooks.sandbox.texts import Filling, merge_metadata
from support.sandbox_calls import END, PREFETCH, Receiver, call


def test_objects_within_metadata_are_replaced_or_merged() -> None:
    old: dict[str, Json]
    new: dict[str, Json]
    old, new = {"cart": {"items": 2, "total": 9}}, {"cart": {"items": 3}}
    assert merge_metadata(old, new, Policy()).metadata == {"cart": {"items": 3}}
    deep = merge_metadata(old, new, Policy(merge="deep"))
    assert deep.metadata == {"cart": {"items": 3, "total": 9}}
    assert deep.changed == ("cart",)


def test_null_is_a_value_or_removes_the_key() -> None:
    assert merge_metadata({"a": 1}, {"a": None}, Policy()).metadata == {"a": None}
    removed = merge_metadata({"a": 1}, {"a": None, "b": None}, Policy(null_removes=True))
    assert (removed.metadata, removed.removed) == ({}, ("a",))


def test_setting_the_same_value_is_not_a_change() -> None:
    assert merge_metadata({"a": 1}, {"a": 1}, Policy()).changed == ()


def test_unknown_names_stay_or_leave_a_blank() -> None:
    text = 'Hi {name}, {nobody}. {"json": 1}'
    kept = Filling({"name": "Ada"}, Policy())
    blank = Filling({"name": "Ada"}, Policy(missing_variables="blank"))
    assert kept.fill(text, "prompt") == 'Hi Ada, {nobody}. {"json": 1}'
    assert blank.fill(text, "prompt") == 'Hi Ada, . {"json": 1}'
    assert kept.unresolved == blank.unresolved == {"prompt": ("nobody",)}


def test_each_unknown_name_is_reported_once_a_place() -> None:
    filling = Filling({}, Policy())
    filling.fill("{a} {b}", "tool")
    filling.fill("{a} {c}", "tool")
    assert filling.unresolved == {"tool": ("a", "b", "c")}


def test_every_setting_of_the_policy_says_what_it_means() -> None:
    settings = policy_settings()
    assert [one.name for one in settings] == [field.name for field in dataclasses.fields(Policy)]
    assert all(one.meaning.endswith(".") for one in settings)
    by_name = {one.name: one for one in settings}
    assert by_name["merge"].choices == ("shallow", "deep")
    assert by_name["null_removes"].choices == (True, False)
    assert by_name["prefetch_timeout_s"].choices == ()


@pytest.mark.parametrize(
    "config",
    [
        {"first_message": "Hi {who}, {whoo}"},
        {"flow": {"voicemail": {"action": "message", "message": "{who} {whoo}"}}},
        {"flow": {"inactivity_handling": {"idle_time": 5, "message": "Still there, {whoo}?"}}},
        {"flow": {"agent_terminate_call": {"enabled": True, "messages": ["Bye", "Bye {whoo}"]}}},
        {"flow": {"call_transfer": {"messages": ["One moment {whoo}"]}}},
        {"flow": {"call_transfer": {"phones": [{"phone": "+1", "description": "{whoo}"}]}}},
        {"flow": {"auto_fill_responses": {"messages": ["Well, {whoo}"]}}},
        {"session_timeout": {"max_duration": 60, "message": "Out of time, {whoo}"}},
        {"knowledge_base": {"messages": ["Let me look, {whoo}"]}},
        {"tools": [{"name": "find", "messages": ["Wait {whoo}"]}]},
        {"tools": [{"name": "find", "description": "For {whoo}"}]},
        {"tools": [{"name": "find", "webhook": "http://a.test/?w={whoo}"}]},
        {"tools": [{"name": "find", "webhook": "http://a.test/", "header": {"X": "{whoo}"}}]},
        {"millis_functions": [{"name": "form", "messages": ["Here, {whoo}"]}]},
        {"extra_prompt_webhook": PREFETCH + "?w={whoo}"},
        {"extra_prompt_webhook": {"url": PREFETCH, "headers": {"X-Who": "{whoo}"}}},
        {"session_data_webhook": END + "?w={whoo}"},
        {"session_data_webhook": {"url": END, "headers": {"X-Who": "{whoo}"}}},
    ],
)
def test_a_name_that_is_misspelt_anywhere_is_reported(config: dict[str, Any]) -> None:
    result = call(Receiver(), config=config, metadata={"who": "Ada"})
    assert {name for names in result.texts.unresolved.values() for name in names} == {"whoo"}


def test_messages_are_filled_in_by_their_place() -> None:
    config = {"flow": {"call_transfer": {"messages": ["To {desk}.", "{desk}!"]}, "x": {"n": [1]}}}
    result = call(Receiver(), config=config, metadata={"desk": "billing"})
    assert result.texts.messages == {"flow.call_transfer.messages": ("To billing.", "billing!")}


def test_both_webhooks_are_filled_in_when_they_are_called() -> None:
    receiver = Receiver()
    config = {
        "extra_prompt_webhook": {
            "url": PREFETCH + "?phone_number={FromPhone}&team={team}",
            "headers": {"X-Team": "{team}"},
        },
        "session_data_webhook": {"url": END + "?to={ToPhone}#{team}", "headers": {"X-T": "{team}"}},
    }
    call(
        receiver,
        config=config,
        metadata={"team": "R&D = Ü"},
        from_phone="+14155550134",
        to_phone="+14155550199",
    )
    asked, told = receiver.sent
    assert "?phone_number=%2B14155550134&team=R%26D%20%3D%20" in asked.url
    assert unquote(told.url) == END + "?to=+14155550199#R&D = Ü"
    assert ("X-Team", "R&D = Ü") in asked.headers
    assert ("X-T", "R&D = Ü") in told.headers

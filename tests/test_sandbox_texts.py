"""Metadata merged and texts filled in, as far as Millis documents it; the rest is the policy's."""

from __future__ import annotations

import dataclasses

from millis_hooks.sandbox.policy import Policy, policy_settings
from millis_hooks.sandbox.prompt import Filling, merge_metadata
from millis_hooks.wire import Json


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


def test_the_same_value_again_is_no_change() -> None:
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

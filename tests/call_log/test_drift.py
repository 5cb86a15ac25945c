"""What is new in messages: how it is found, kept, added up, and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, text
from typer.testing import CliRunner

from millis_hooks.call_log import drift as report_module
from millis_hooks.call_log.drift import (
    MOST_FINDS,
    Drift,
    DriftGroup,
    drift_of,
    drift_report,
    drift_rows,
    masked_report,
)
from millis_hooks.call_log.tables import deliveries, drift
from millis_hooks.cli.commands import app
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.masking.secret_patterns import MASK
from millis_hooks.protocol.call_status import CallStatus
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.prefetch import PrefetchRequest
from millis_hooks.protocol.samples import VINTAGES, end_of_call_body, prefetch_query
from support.dashboard_site import HOSTILE, Site
from support.stored_calls import NOW, StoredCalls

AGENT_CONFIG = [
    "app_functions", "call_settings", "custom_llm_websocket", "custom_vocabulary",
    "extra_prompt_webhook", "first_message", "flow", "knowledge_base", "language", "llm", "memory",
    "millis_functions", "privacy_settings", "prompt", "session_data_webhook", "session_timeout",
    "speech_to_text", "switch_language", "timezone", "tools", "vad_threshold", "voice",
]  # fmt: skip

#: Every field that Millis documents, or that public receivers read.
DOCUMENTED: dict[str, Any] = {
    "session_id": "-s",
    "agent_id": "-a",
    "call_id": "c",
    "chat": [
        {"role": "user", "content": "x"},
        {"role": "tool", "content": "x", "tool_call_id": "t"},
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [
                {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
    ],
    "function_calls": [{"name": "f", "params": {"anything": 1}, "result": "x"}],
    "ts": 1760000000.25,
    "duration": 41,
    "chars_used": 188,
    "agent_config": dict.fromkeys(AGENT_CONFIG),
    "cost_breakdown": [
        {
            "type": type_,
            "provider": provider,
            "credit": 1,
            "prompt_tokens": 1,
            "completion_tokens": 1,
        }
        for type_, provider in [
            ("millis", ""),
            ("millis", "millis"),
            ("tts", "elevenlabs"),
            ("stt", "deepgram"),
            ("llm", "openai"),
        ]
    ],
    "voip": {"provider": "twilio", "from": "+14155550134", "to": "+14155550199"},
    "recording": {"recording_url": "https://files.example/r.wav"},
    "metadata": {"anything": {"at": "all"}},
    "call_status": "user-ended",
    "error_message": "x",
    "call_analysis": {"opt_out_detection": True},
    "call_metrics": {"utterance_latency": {"avg": 3}},
}


def found_in(**sent: Any) -> list[Drift]:
    return drift_of(EndOfCall.from_raw({"session_id": "-s"} | sent))


def test_a_documented_field_never_counts() -> None:
    assert drift_of(EndOfCall.from_raw(DOCUMENTED)) == []
    for vintage in ("v1a", "v1b", "v2"):
        assert drift_of(EndOfCall.parse(end_of_call_body(vintage))) == []
        query = prefetch_query(vintage, metadata={"plan": "gold"}).encode()
        assert drift_of(PrefetchRequest.parse(query)) == []


@pytest.mark.parametrize("status", [*CallStatus, "NO_ANSWER", None])
def test_a_documented_status_never_counts(status: str | None) -> None:
    assert found_in(call_status=status) == []


@pytest.mark.parametrize("field", sorted(DOCUMENTED.keys() - {"session_id"}))
def test_a_field_that_is_null_or_missing_never_counts(field: str) -> None:
    assert drift_of(EndOfCall.from_raw(DOCUMENTED | {field: None})) == []
    assert drift_of(EndOfCall.from_raw({k: v for k, v in DOCUMENTED.items() if k != field})) == []


@pytest.mark.parametrize(
    ("sent", "path", "sample"),
    [
        ({"sentiment": "neutral"}, "sentiment", "neutral"),
        ({"chat": [{"role": "user", "at": 1.5}]}, "chat[].at", "1.5"),
        ({"chat": [{"tool_calls": [{"x": None}]}]}, "chat[].tool_calls[].x", "null"),
        (
            {"chat": [{"tool_calls": [{"function": {"x": []}}]}]},
            "chat[].tool_calls[].function.x",
            "[]",
        ),
        ({"function_calls": [{"took": 2}]}, "function_calls[].took", "2"),
        ({"cost_breakdown": [{"unit": "min"}]}, "cost_breakdown[].unit", "min"),
        ({"voip": {"sip": {"a": 1}}}, "voip.sip", '{"a": 1}'),
        ({"recording": {"seconds": 3}}, "recording.seconds", "3"),
        ({"agent_config": {"mood": "gay"}}, "agent_config.mood", "gay"),
        ({"call_analysis": {"summary": "x"}}, "call_analysis.summary", "x"),
        ({"call_metrics": {"jitter": True}}, "call_metrics.jitter", "true"),
    ],
)
def test_an_unknown_field_is_found(sent: dict[str, Any], path: str, sample: str) -> None:
    assert found_in(**sent) == [Drift("unknown_field", path, sample)]


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ({"call_status": "new"}, "call_status"),
        ({"chat": [{"role": "new"}]}, "chat[].role"),
        ({"cost_breakdown": [{"type": "new"}]}, "cost_breakdown[].type"),
        ({"cost_breakdown": [{"provider": "new"}]}, "cost_breakdown[].provider"),
        ({"voip": {"provider": "new"}}, "voip.provider"),
    ],
)
def test_an_unknown_value_is_found(sent: dict[str, Any], path: str) -> None:
    assert found_in(**sent) == [Drift("unknown_value", path, "new")]


def test_what_could_not_be_read_is_found_without_its_value() -> None:
    (found,) = found_in(duration="forty")
    assert (found.kind, found.path) == ("unreadable", "duration")
    assert found.sample.startswith("a string of 5 characters; ")
    query = b"session_id=-s&from=%2B1&from=Springfield"
    (found,) = drift_of(PrefetchRequest.parse(query))
    assert (found.path, "Springfield" in found.sample) == ("?from", False)


def test_a_find_counts_once_however_often_it_is_in_a_message() -> None:
    turns = [{"role": "narrator", "at": number} for number in range(1000)]
    assert found_in(chat=turns) == [
        Drift("unknown_value", "chat[].role", "narrator"),
        Drift("unknown_field", "chat[].at", "0"),
    ]


@pytest.mark.parametrize(
    "sent",
    [
        {f"k{number}": "x" * 1000 for number in range(10_000)},
        {"chat": [{"role": f"r{number}"} for number in range(10_000)]},
        {"chat": [{f"k{number}": 1} for number in range(10_000)]},
    ],
)
def test_finds_in_one_message_are_bounded_and_always_the_same(sent: dict[str, Any]) -> None:
    assert len(found_in(**sent)) == MOST_FINDS
    assert found_in(**sent) == found_in(**sent)


def test_samples_are_short_and_hold_neither_secrets_nor_numbers() -> None:
    secret = "sk-live-0123456789abcdef"
    sent = {
        "api_token": "hunter2",
        "note": f"key {secret}, call +14155550134",
        "+14155550134": {"password": "hunter2", "deep": [[[{}]]]},
        "long": "y" * 10_000_000,
        "huge": 10**400,
    }
    found = {each.path: each.sample for each in found_in(**sent)}
    assert found["api_token"] == MASK
    assert found["note"] == f"key {MASK}, call +1415•••••34"
    assert json.loads(found["+1415•••••34"]) == {"password": MASK, "deep": ["…"]}
    assert len(found["long"]) == 120
    assert found["huge"] == "a large number"


class Found:
    """Finds in a call log, put there as processing does."""

    def __init__(self, stored: StoredCalls) -> None:
        self.stored = stored

    def add(self, minutes_ago: float = 0, **sent: Any) -> int:
        """Add a delivery of these fields with what was found in it; return its id."""
        return self.add_sent(sent, minutes_ago)

    def add_sent(self, sent: dict[str, Any], minutes_ago: float = 0) -> int:
        seen_at = NOW - timedelta(minutes=minutes_ago)
        call = EndOfCall.parse(json.dumps({"session_id": "-s"} | sent).encode())
        delivery_id = self.stored.add_delivery(received_at=seen_at)
        with self.stored.database.writer.begin() as connection:
            for row in drift_rows(call, seen_at):
                connection.execute(insert(drift).values(delivery_id=delivery_id, **row))
        return delivery_id

    def report(self) -> report_module.DriftReport:
        return self.stored.write(drift_report)


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Found]:
    stored = StoredCalls(tmp_path)
    yield Found(stored)
    stored.database.close()


@pytest.mark.both_databases
def test_the_report_tells_how_often_since_when_and_what_was_found_last(found: Found) -> None:
    found.add(60, sentiment="good")
    last = found.add(5, sentiment="bad")
    found.add(30, sentiment="mixed")
    minute = timedelta(minutes=1)
    expected = DriftGroup(
        "unknown_field", "sentiment", "bad", 3, NOW - 60 * minute, NOW - 5 * minute, last
    )
    assert found.report() == report_module.DriftReport((expected,), is_complete=True)


@pytest.mark.both_databases
def test_each_unknown_value_is_a_group_of_its_own(found: Found) -> None:
    for status in ("new", "newer", "new", "a = b"):
        found.add(call_status=status)
    groups = {group.sample: group for group in found.report().groups}
    assert {sample: group.count for sample, group in groups.items()} == {
        "new": 2,
        "newer": 1,
        "a = b": 1,
    }
    assert {group.path for group in groups.values()} == {"call_status"}


@pytest.mark.both_databases
def test_kinds_come_in_the_order_of_their_weight_and_the_last_seen_first(found: Found) -> None:
    found.add(9, alpha=1)
    found.add(3, beta=1, call_status="new", duration="forty")
    assert [group.path for group in found.report().groups] == [
        "duration",
        "call_status",
        "beta",
        "alpha",
    ]


@pytest.mark.both_databases
def test_counts_and_groups_are_bounded(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "COUNT_CAP", 2)
    monkeypatch.setattr(report_module, "MOST_GROUPS", 3)
    for _ in range(4):
        found.add(a=1, b=1, c=1, d=1)
    report = found.report()
    assert [group.count for group in report.groups] == [2, 2, 2]
    assert not report.is_complete


@pytest.mark.both_databases
def test_finds_go_with_their_delivery(found: Found) -> None:
    found.add(sentiment="good")
    found.stored.write(lambda connection: connection.execute(delete(deliveries)))
    assert found.report().groups == ()


@pytest.mark.both_databases
def test_what_databases_refuse_can_be_found(found: Found) -> None:
    found.add_sent({"nul \0": "\0 \ud83d", "lone \udc00": 1, "call_status": "\ud800"})
    groups = {group.path: group.sample for group in found.report().groups}
    assert groups == {"call_status": "\ufffd", "nul \ufffd": "\ufffd \ufffd", "lone \ufffd": "1"}


def test_where_words_are_hidden_so_is_what_stands_in_an_unknown_field(found: Found) -> None:
    found.add(summary="He has the flu.", call_status="new")
    groups = masked_report(found.report(), MaskPolicy(words="full")).groups
    assert [group.sample for group in groups] == ["new", "•••"]


@pytest.mark.parametrize("vintage", VINTAGES)
def test_the_samples_of_every_vintage_are_kept(found: Found, vintage: Any) -> None:
    found.add_sent(json.loads(end_of_call_body(vintage)))
    expected = {"v2-extras": 2, "hostile": 12}
    assert len(found.report().groups) == expected.get(vintage, 0)


def test_the_report_goes_from_place_to_place_through_the_index(found: Found) -> None:
    place = "SELECT min(path) FROM drift WHERE kind = 'unreadable' AND path > 'a'"
    newest = "SELECT * FROM drift WHERE kind = 'a' AND path = 'b' ORDER BY seen_at DESC LIMIT 1"
    with found.stored.database.reader.connect() as connection:
        plans = [
            connection.execute(text(f"EXPLAIN QUERY PLAN {query}")) for query in (place, newest)
        ]
    for plan in plans:
        assert [row.detail.partition("INDEX ")[2][:13] for row in plan] == ["ix_drift_kind"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["drift", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_a_table(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", str(found.stored.database.url))
    assert "Nothing new" in run()
    found.add(sentiment="\x1b[2J")
    heads, row = run().splitlines()
    assert heads.split()[:3] == ["What", "Where", "Deliveries"]
    assert row.split()[:4] == ["unknown", "field", "sentiment", "1"]
    assert "\x1b" not in row


def test_the_command_prints_json(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", str(found.stored.database.url))
    monkeypatch.setenv("MILLIS_HOOKS_MASK_TEXT", "full")
    found.add(sentiment="good")
    assert json.loads(run("--json")) == {
        "groups": [
            {
                "kind": "unknown_field",
                "path": "sentiment",
                "sample": "•••",
                "count": 1,
                "first_seen": NOW.isoformat(),
                "last_seen": NOW.isoformat(),
                "delivery_id": 1,
                "known_since": None,
            }
        ],
        "is_complete": True,
    }


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.stored.database.close()


def test_the_drift_page_requires_sign_in(site: Site) -> None:
    assert site.get("/drift").status_code == 303
    assert site.get("/drift.json").status_code in {303, 401}


def test_the_page_lists_what_is_new_and_links_to_where(site: Site) -> None:
    site.sign_in()
    assert "Nothing new" in site.page("/deliveries/drift").text
    delivery_id = Found(site.stored).add_sent({HOSTILE: HOSTILE, "call_status": "new"})
    page = site.page("/deliveries/drift")
    assert f"/deliveries/{delivery_id}" in page.links()
    assert "Unknown value call_status new 1" in page.text
    assert not [script for script in page.all("script") if "src" not in script]
    twin = site.get("/deliveries/drift.json").json()
    assert [group["kind"] for group in twin["groups"]] == ["unknown_value", "unknown_field"]


def test_every_page_leads_to_the_report(site: Site) -> None:
    site.sign_in()
    assert "/deliveries/drift" in site.page("/deliveries").links()


def test_what_is_accepted_is_known_until_it_is_made_new_again(site: Site) -> None:
    site.sign_in()
    Found(site.stored).add_sent({"mood": "good", "call_status": "new"})

    def keys() -> dict[str, str]:
        twin = site.get("/deliveries/drift.json").json()
        paths = [group["path"] for group in twin["groups"]]
        return dict(zip(paths, twin["keys"], strict=True))

    def submit(**fields: str) -> int:
        return site.browser.post("/deliveries/drift", data=fields).status_code

    assert list(keys()) == ["call_status", "mood"]
    assert "Drift 2" in site.page("/deliveries").text
    assert submit(key=keys()["call_status"], known="1") == 303
    assert list(keys()) == ["mood", "call_status"]
    assert "Drift 1" in site.page("/deliveries").text
    assert submit(key=keys()["call_status"]) == 303
    assert list(keys()) == ["call_status", "mood"]
    assert submit(key="0" * 16, known="1") == 404
    entries = site.get("/operators.json").json()["audit_log"]
    assert [entry["words"] for entry in entries[:2]] == ["Made new again", "Accepted as known"]

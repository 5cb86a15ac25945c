"""What is kept of a prefetch: where it goes, where it does not, and who gets it back."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse, variant
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.redaction import masked_delivery
from millis_hooks.call_log.transfer.export import call_line
from millis_hooks.call_log.transfer.import_ import read_call_line
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.testing import HooksClient
from support.app import MakeHooks, Rows, serving
from support.storage import NOW

KEEP = "SELECT key, value FROM call_metadata WHERE substr(key, 1, 5) = 'keep.' ORDER BY key"


@pytest.mark.both_databases
def test_an_end_of_call_handler_gets_what_the_prefetch_was_answered_and_what_was_kept(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    hooks, seen = make_hooks(), []

    @hooks.on_prefetch
    def offer(call: PrefetchRequest) -> PrefetchResponse:
        return PrefetchResponse(
            metadata={"name": "Ada"}, extra_prompt="Be kind.", keep={"plan": "A", "score": 7}
        )

    @hooks.on_prefetch
    def again(call: PrefetchRequest) -> dict[str, Any]:
        assert variant(call, "short", "friendly") in ("short", "friendly")
        return {"keep": {"plan": "B"}}

    @hooks.on_end_of_call
    def look(call: EndOfCall) -> None:
        seen.append((call, variant(call, "short", "friendly")))

    with serving(hooks) as client:
        reply = client.get("/millis/prefetch?session_id=-Ox1&from=%2B15550100")
        assert reply.json() == {"metadata": {"name": "Ada"}, "extra_prompt": "Be kind."}
        client.post("/millis/end-of-call", json={"session_id": "-Ox1", "metadata": {"x": "y"}})
        client.post("/millis/end-of-call", json={"session_id": "-Ox2"})
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    calls = {call.session_id: (call.prefetch, chosen) for call, chosen in seen}
    assert calls["-Ox2"][0] is None
    prefetch, chosen = calls["-Ox1"]
    assert prefetch is not None
    assert (prefetch.outcome, prefetch.extra_prompt) == ("fresh", "Be kind.")
    assert prefetch.metadata == {"name": "Ada"}
    assert prefetch.keep == {"plan": "B", "score": 7, "variant": chosen}
    assert prefetch.received_at.tzinfo is not None
    assert rows(KEEP) == [
        {"key": "keep.plan", "value": "B"},
        {"key": "keep.score", "value": "7"},
        {"key": "keep.variant", "value": chosen},
    ]


def test_what_cannot_be_kept_is_left_out_by_name_and_the_answer_goes_out(
    hooks: MillisHooks,
) -> None:
    @hooks.on_prefetch
    def keep(call: PrefetchRequest) -> PrefetchResponse:
        many = {f"n{number:02}": number for number in range(51)}
        return PrefetchResponse(keep={"long": "x" * 5000, "odd": object(), **many})

    with HooksClient(hooks) as client:
        reply = client.prefetch()
    assert (reply.body, len(reply.keep)) == ({}, 50)
    assert reply.delivery is not None
    for words in ("keep.long: it has over 4,000 bytes", "keep.odd", "keep.n50: it is beyond"):
        assert words in (reply.delivery.reason or "")


@pytest.mark.parametrize("keep", ["B", ["plan"], 1])
def test_what_is_no_mapping_is_not_kept(hooks: MillisHooks, keep: Any) -> None:
    @hooks.on_prefetch(name="typed")
    def typed(call: PrefetchRequest) -> PrefetchResponse:
        return PrefetchResponse(keep=keep)

    @hooks.on_prefetch(name="plain")
    def plain(call: PrefetchRequest) -> dict[str, Any]:
        return {"metadata": {"a": "b"}, "keep": keep}

    with HooksClient(hooks) as client:
        reply = client.prefetch()
    assert (reply.body, reply.keep) == ({"metadata": {"a": "b"}}, {})
    reason = reply.delivery.reason if reply.delivery else ""
    assert "keep" in (reason or "")
    assert "is not an object of names and values; it was left out" in (reason or "")


def test_what_was_kept_is_masked_exported_and_imported() -> None:
    kept = Delivery("prefetch", NOW, "cached", 200, "-Ox1", answer=b"{}", kept='{"plan":"B"}')
    line = json.loads(b"".join(call_line({}, [kept], masked=False)))
    assert read_call_line(line) == [kept._replace(imported=True)]
    masked = masked_delivery(kept, MaskPolicy(numbers="full", words="full"))
    assert "B" not in (masked.kept or "")

"""The timeline of a call."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from support.dashboard_site import Site
from support.stored_calls import NOW


def steps(site: Site) -> list[dict[str, Any]]:
    timeline: list[dict[str, Any]] = site.get("/calls/-call.json").json()["timeline"]
    return timeline


def test_each_step_names_its_clock(site: Site) -> None:
    site.add_prefetch()
    delivery_id = site.stored.add_delivery(
        session_id="-call", body=b'{"session_id": "-call"}', received_at=NOW
    )
    started_at = NOW - timedelta(seconds=61.8)
    site.stored.add_call(
        "-call",
        delivery_id=delivery_id,
        started_at=started_at,
        duration_s=60.0,
        call_status="user-ended",
    )
    assert [(step["kind"], step["clock"]) for step in steps(site)] == [
        ("prefetch", "here"),
        ("started", "millis"),
        ("ended", "millis"),
        ("received", "here"),
    ]
    assert steps(site)[-1]["after_s"] == pytest.approx(1.8)
    text = site.page("/calls/-call").text
    assert "User ended 14:19:58 * 1:00 long" in text or "User ended 14:19:58* 1:00 long" in text
    assert "End-of-call received +1.8 s" in text
    assert "* by Millis' clock" in text


def test_clocks_that_disagree_give_no_lag(site: Site) -> None:
    site.add_ended_call()
    site.stored.add_delivery(session_id="-late", body=b"{}", received_at=NOW)
    site.stored.add_call("-late", started_at=NOW + timedelta(hours=9), duration_s=60.0)
    received = site.get("/calls/-late.json").json()["timeline"][-1]
    assert (received["kind"], received["after_s"]) == ("received", None)


@pytest.mark.parametrize(("minutes_ago", "kind"), [(1, "live"), (200, "lost")])
def test_without_an_end_the_timeline_shows_the_state(
    site: Site, minutes_ago: float, kind: str
) -> None:
    site.stored.add_unended_call("-call", minutes_ago=minutes_ago)
    assert [step["kind"] for step in steps(site)] == ["unasked", kind]


def test_the_timeline_counts_the_changes_by_the_prefetch(site: Site) -> None:
    site.add_prefetch("tier=silver", metadata={"tier": "gold", "name": "Ada"}, extra_prompt="Hi.")
    site.add_ended_call(metadata={"tier": "gold", "name": "Ada"})
    details = "in 84 ms, 2 metadata keys, 1 changed and 1 added, extra prompt 3 characters"
    assert details in site.page("/calls/-call").text

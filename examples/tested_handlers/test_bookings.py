"""Whole calls, simulated against the handlers: everything is real except Millis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bookings import BOOKED

from millis_hooks.testing import Answer, CallContent, HooksClient, SimulateCall


@pytest.fixture(autouse=True)
def _empty_calendar() -> Iterator[None]:
    yield
    BOOKED.clear()


def test_a_known_caller_is_named(hooks_client: HooksClient) -> None:
    reply = hooks_client.prefetch(from_phone="+14155550134")
    assert reply.metadata == {"customer_name": "Ada"}


def test_an_unknown_caller_gets_no_metadata(hooks_client: HooksClient) -> None:
    assert hooks_client.prefetch(from_phone="+14155550111").body == {}


def test_a_visitor_of_the_website_has_no_number(hooks_client: HooksClient) -> None:
    assert hooks_client.prefetch(from_phone=None, to_phone=None).body == {}


def test_a_booking_is_made(simulate_call: SimulateCall) -> None:
    assert simulate_call("scenarios/booking.toml").unmet == []
    assert BOOKED == ["Booked 10:30"]


def test_a_dry_run_books_nothing(simulate_call: SimulateCall) -> None:
    assert simulate_call("scenarios/booking.toml", dry_run=True).unmet == []
    assert BOOKED == []


def test_a_slot_that_is_taken_is_tried_again_later(simulate_call: SimulateCall) -> None:
    taken = Answer(200, b"Failed: taken")
    call = simulate_call("scenarios/booking.toml", function_answers={"book_slot": taken})
    run = call.run("book")
    assert run.state == "retrying"
    assert "Failed: taken" in (run.attempts[0].error_message or "")


def test_a_call_without_a_booking_books_nothing(hooks_client: HooksClient) -> None:
    said = [{"role": "user", "content": "Wrong number, sorry."}]
    call = hooks_client.end_of_call(content=CallContent(chat=said))
    assert (call.run("book").state, BOOKED) == ("succeeded", [])


@pytest.mark.parametrize("scenario", ["web", "voicemail", "error", "hostile"])
def test_handlers_succeed_in_every_scenario(simulate_call: SimulateCall, scenario: str) -> None:
    call = simulate_call(scenario)
    assert call.handled is not None
    assert {run.state for run in call.handled.runs} <= {"succeeded"}

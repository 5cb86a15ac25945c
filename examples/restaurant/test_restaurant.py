"""The greeting, the functions as an agent calls them, and a whole call in which they are used."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import pytest
from restaurant import BOOKED, OFFERS

from millis_hooks.testing import FunctionReply, HooksClient, SimulateCall

DAY = date(2026, 12, 1)


@pytest.fixture(autouse=True)
def _empty_book() -> Iterator[None]:
    yield
    BOOKED.clear()


def test_a_guest_who_called_before_is_welcomed_back(hooks_client: HooksClient) -> None:
    assert hooks_client.prefetch().metadata == {"greeting": "Good evening!"}
    hooks_client.end_of_call()
    again = hooks_client.prefetch()
    assert (again.metadata, again.keep["guest"]) == ({"greeting": "Welcome back!"}, "known")
    assert "said at the end: <<<Yes, please.>>>" in (again.extra_prompt or "")


def test_a_guest_gets_one_of_two_offers(hooks_client: HooksClient) -> None:
    reply = hooks_client.prefetch()
    assert reply.extra_prompt == OFFERS[str(reply.keep["variant"])]


def test_tables_that_are_large_enough_are_offered(hooks_client: HooksClient) -> None:
    reply = hooks_client.function("free_tables", day="2026-12-01", people="4")
    assert reply.body == {"day": "2026-12-01", "tables": ["round", "long"]}
    assert reply.outcome == "answered"


def test_a_day_that_is_no_date_is_asked_for_again(hooks_client: HooksClient) -> None:
    reply = hooks_client.function("free_tables", day="tomorrow")
    assert "day should be a date as YYYY-MM-DD" in reply.text
    assert reply.outcome == "invalid"


def book(client: HooksClient, *, table: str, dry_run: bool = False) -> FunctionReply:
    """Have the agent book a table for Ada."""
    return client.function(
        "book_table", day=DAY, at="19:30", table=table, name="Ada", dry_run=dry_run
    )


def test_a_table_is_booked_once(hooks_client: HooksClient) -> None:
    booked = "Booked: the window table on 2026-12-01 at 19:30 for 2, Ada."
    assert book(hooks_client, table="Window").result == booked
    assert "taken meanwhile" in book(hooks_client, table="window").text
    assert BOOKED == {(DAY, "window"): "Ada"}


def test_a_dry_run_books_nothing(hooks_client: HooksClient) -> None:
    assert "Booked" in book(hooks_client, table="round", dry_run=True).text
    assert not BOOKED


def test_a_guest_books_in_a_call(simulate_call: SimulateCall) -> None:
    booked = simulate_call("scenarios/booking.toml")
    assert not booked.unmet
    results = booked.run("keep_outcome").result
    assert results == {"offered": True, "booked": True, "table": "window", "people": 2}
    assert BOOKED == {(DAY, "window"): "Ada"}

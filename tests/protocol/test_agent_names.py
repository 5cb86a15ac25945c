"""What is shown of an agent."""

from __future__ import annotations

import pytest

from millis_hooks.protocol.agent_names import AgentNames, check_agent, names_at_millis


def test_a_given_name_comes_before_that_at_millis_and_without_one_the_end_of_the_id_is_shown() -> (
    None
):
    names = AgentNames({"-Ox1": "Front desk"})
    names.take({"-Ox1": "desk v2 (copy)", "-Ox2": "Bookings"})
    assert names.label("-Ox1") == "Front desk"
    assert names.label("-Ox2") == "Bookings"
    assert names.label("-OxFrontDesk8kPq2Lr71") == "…kPq2Lr71"
    assert names.label("sales") == "sales"
    assert names.label(None) == ""


def test_agents_of_one_name_at_millis_are_distinguished() -> None:
    names = AgentNames()
    names.take({"-Ox1bookingsAgent001": "Desk", "-Ox1bookingsAgent002": "desk"})
    assert names.label("-Ox1bookingsAgent001") == "Desk (…Agent001)"
    assert names.in_order(["-Ox9", "-Ox1bookingsAgent002"]) == ["-Ox1bookingsAgent002", "-Ox9"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Front\n\tdesk\0", "Front desk"),
        ("\u202edesk\u2066 of \ud800two", "desk of two"),
        ("x" * 100_000, "x" * 59 + "…"),
        ("<script>", "<script>"),
    ],
)
def test_names_at_millis_are_one_line_of_bounded_length(name: str, shown: str) -> None:
    assert names_at_millis([("-Ox1", name)]) == {"-Ox1": shown}


def test_what_is_not_a_name_at_millis_is_left_out() -> None:
    odd = [("-a", None), ("-b", 7), (None, "x"), ("", "x"), ("a b", "x"), ("c" * 999, "x")]
    assert names_at_millis([*odd, ("-d", "\u202e\0")]) == {}
    many = ((str(number), f"n{number}") for number in range(20_000))
    assert len(names_at_millis(many)) == 10_000


@pytest.mark.parametrize(
    ("agent_id", "name", "why"),
    [
        ("", "Desk", "is not the id of an agent"),
        ("two words", "Desk", "is not the id of an agent"),
        ("-Ox1", "  ", "needs a name"),
        ("-Ox1", 7, "needs a name"),
        ("-Ox1", "a\u202eb", "cannot be printed"),
        ("-Ox1", "x" * 61, "more than 60 characters"),
    ],
)
def test_an_id_or_a_name_that_cannot_be_one_is_refused(
    agent_id: str, name: object, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        check_agent(agent_id, name)

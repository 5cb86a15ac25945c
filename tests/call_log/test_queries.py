"""The call log answers what pages ask, whatever is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.queries.records import LIVE_FOR, Page, RunCounts, Waiting
from millis_hooks.call_log.queries.requests import RequestFilter, list_requests
from millis_hooks.call_log.search import Excerpt
from millis_hooks.exceptions import StorageError
from support import databases
from support.stored_calls import NOW, StoredCalls

pytestmark = pytest.mark.both_databases


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path)
    yield log
    log.database.close()


@pytest.fixture(scope="module")
def two_calls(
    tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind
) -> Iterator[StoredCalls]:
    """Two calls that differ, for tests that only read."""
    log = StoredCalls(tmp_path_factory.mktemp("two"))
    text = 'I want a refund, "now".\nAuf der Straße.\n+14155550134\n-NxAgent'
    log.add_call("-failed", minutes_ago=20, outcome="failed", agent_id="-sales", text=text)
    log.add_call("-done", agent_id="-desk", call_status="user-ended", text="nothing here")
    yield log
    log.database.close()


@pytest.fixture(scope="module")
def one_year(
    tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind
) -> Iterator[StoredCalls]:
    """Calls of a year, for tests that only read."""
    log = StoredCalls(tmp_path_factory.mktemp("year"))
    for name, hours in (("-hour", 1), ("-20h", 20), ("-3d", 72), ("-year", 24 * 365)):
        log.add_call(name, minutes_ago=hours * 60)
    yield log
    log.database.close()


def sessions(page: Page) -> list[str]:
    return [row.call.session_id for row in page.rows]


def listed(stored: StoredCalls, **wanted: Any) -> list[str]:
    return sessions(stored.queries.ask(list_calls, CallFilter(**wanted), now=NOW))


def test_calls_are_listed_newest_first(stored: StoredCalls) -> None:
    for minutes_ago, session_id in ((30, "-old"), (1, "-new"), (20, "-middle")):
        stored.add_call(session_id, minutes_ago=minutes_ago)
    assert listed(stored) == ["-new", "-middle", "-old"]


def test_pages_hold_every_call_once_and_lead_back(stored: StoredCalls) -> None:
    for number in range(7):
        stored.add_call(f"-{number}", minutes_ago=5)  # all at the same moment: the id decides
    ask = stored.queries.ask
    first = ask(list_calls, CallFilter(), now=NOW, size=3)
    second = ask(list_calls, CallFilter(), now=NOW, size=3, before=first.older)
    third = ask(list_calls, CallFilter(), now=NOW, size=3, before=second.older)
    assert sessions(first) + sessions(second) + sessions(third) == [
        f"-{n}" for n in range(6, -1, -1)
    ]
    assert (first.newer, third.older) == (None, None)
    assert sessions(ask(list_calls, CallFilter(), now=NOW, size=3, after=third.newer)) == sessions(
        second
    )


def test_leading_back_ends_on_the_full_first_page(stored: StoredCalls) -> None:
    for number in range(5):
        stored.add_call(f"-{number}")
    ask = stored.queries.ask
    older = ask(
        list_calls,
        CallFilter(),
        now=NOW,
        size=4,
        before=ask(list_calls, CallFilter(), now=NOW, size=4).older,
    )
    back = ask(list_calls, CallFilter(), now=NOW, size=4, after=older.newer)
    assert sessions(back) == ["-4", "-3", "-2", "-1"]
    assert back.newer is None


def test_calls_that_arrive_do_not_shift_an_open_page(stored: StoredCalls) -> None:
    for number in range(4):
        stored.add_call(f"-{number}", minutes_ago=10)
    cursor = stored.queries.ask(list_calls, CallFilter(), now=NOW, size=2).older
    stored.add_call("-arrived", minutes_ago=0)
    page = stored.queries.ask(list_calls, CallFilter(), now=NOW, size=2, before=cursor)
    assert sessions(page) == ["-1", "-0"]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "!!", "é", "bnVsbA", "WzEsIDJd", "W10", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwgMWU5OTld"],
)
def test_an_invalid_cursor_is_ignored(two_calls: StoredCalls, cursor: str) -> None:
    page = two_calls.queries.ask(list_calls, CallFilter(), now=NOW, before=cursor)
    assert sessions(page) == ["-done", "-failed"]


def test_calls_in_progress_are_not_listed_until_their_end_is_overdue(stored: StoredCalls) -> None:
    minutes = LIVE_FOR.total_seconds() / 60
    stored.add_unended_call("-live", minutes_ago=minutes - 1)
    stored.add_unended_call("-lost", minutes_ago=minutes + 1)
    assert listed(stored) == listed(stored, outcome="lost") == ["-lost"]
    assert [live.call.session_id for live in stored.queries.live_calls(now=NOW)] == ["-live"]
    assert stored.queries.waiting(now=NOW) == Waiting(live=1)


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("source", "chosen"), [("test", "test"), ("as_real", "test"), ("sandbox", "sandbox")]
)
def test_a_call_that_was_made_up_is_listed_where_it_is_asked_for_and_never_missed(
    stored: StoredCalls, source: str, chosen: str
) -> None:
    for session_id, minutes_ago in (("-old", 11), ("-new", 9)):
        stored.add_unended_call(session_id, minutes_ago=minutes_ago, source=source)
    stored.add_call("-ended", minutes_ago=12, source=source)
    stored.add_call("-real", minutes_ago=13)
    stored.add_call("-fetched", minutes_ago=14, source="millis_api")
    page = stored.queries.ask(list_calls, CallFilter(), now=NOW)
    assert sessions(page) == ["-real", "-fetched"]
    assert (page.counts["all"], page.counts["completed"], page.hidden) == (2, 2, 2)
    assert stored.queries.waiting(now=NOW) == Waiting()
    assert stored.queries.live_calls(now=NOW) == ()
    for name, others in ((chosen, []), ("all", ["-real", "-fetched"])):
        listed = stored.queries.ask(list_calls, CallFilter(source=name), now=NOW)
        assert sessions(listed) == ["-old", "-ended", *others]
        assert (listed.counts["all"], listed.counts["lost"]) == (2 + len(others), 0)
        assert listed.hidden == 0
        (live,) = stored.queries.live_calls(now=NOW, source=name)
        assert (live.call.session_id, live.call.state(NOW)) == ("-new", "live")
    old = listed.rows[0].call
    assert (old.state(NOW), old.is_lost(NOW)) == ("unended", False)
    other = "sandbox" if chosen == "test" else "test"
    assert sessions(stored.queries.ask(list_calls, CallFilter(source=other), now=NOW)) == []


@pytest.mark.both_databases
def test_calls_with_a_failed_handler_are_counted_under_the_other_filters(
    stored: StoredCalls,
) -> None:
    for session_id, agent, state in (("-a", "-x", "failed"), ("-b", "-y", "failed"),
                                     ("-c", "-x", "succeeded")):  # fmt: skip
        call_id = stored.add_call(session_id, agent_id=agent)
        stored.add_run(call_id, "save", state)
        stored.add_run(call_id, "mail", state)
    rehearsed = stored.add_call("-d", source="sandbox")
    stored.add_run(rehearsed, "save", "failed")
    for filters, expected in ((CallFilter(), 2), (CallFilter(agent=("-x",)), 1),
                              (CallFilter(outcome="failed", source="all"), 3)):  # fmt: skip
        page = stored.queries.ask(list_calls, filters, now=NOW)
        assert page.failed_handlers == expected
    assert stored.queries.waiting(now=NOW) == Waiting(failed=2)
    assert stored.queries.today(now=NOW).failed_runs == 4


def test_a_live_call_comes_with_the_query_of_its_prefetch(stored: StoredCalls) -> None:
    stored.add_unended_call("-live", minutes_ago=1)
    stored.add_delivery("prefetch", session_id="-live", query="session_id=-live&tier=gold")
    (live,) = stored.queries.live_calls(now=NOW)
    assert live.prefetch_query == "session_id=-live&tier=gold"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"outcome": "failed"}, ["-failed"]),
        ({"outcome": "completed"}, ["-done"]),
        ({"outcome": "nonsense"}, ["-done", "-failed"]),
        ({"agent": ("-sales",)}, ["-failed"]),
        ({"status": ("user-ended",)}, ["-done"]),
        ({"agent": ("-sales",), "status": ("user-ended",)}, []),
        ({"agent": ("' OR 1=1 --",)}, []),
        ({"agent": ("\x00\ud800",)}, []),
    ],
)
def test_filters_narrow_the_list(
    two_calls: StoredCalls, wanted: dict[str, Any], expected: list[str]
) -> None:
    assert listed(two_calls, **wanted) == expected


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("today", ["-hour"]),
        ("24h", ["-hour", "-20h"]),
        ("7d", ["-hour", "-20h", "-3d"]),
        ("all", ["-hour", "-20h", "-3d", "-year"]),
        ("nonsense", ["-hour", "-20h", "-3d"]),
    ],
)
def test_the_period_says_how_far_back_a_list_goes(
    one_year: StoredCalls, span: str, expected: list[str]
) -> None:
    assert listed(one_year, range=span) == expected


def test_tabs_count_what_the_other_filters_leave(stored: StoredCalls) -> None:
    stored.add_call("-1", agent_id="-a", outcome="failed")
    stored.add_call("-2", agent_id="-a", outcome="voicemail")
    stored.add_call("-3", agent_id="-b", outcome="failed")
    stored.add_unended_call("-4", agent_id="-a", minutes_ago=500)
    wanted = CallFilter(agent=("-a",), outcome="voicemail")
    counts = stored.queries.ask(list_calls, wanted, now=NOW).counts
    assert {name: count for name, count in counts.items() if count} == {
        "all": 3,
        "failed": 1,
        "voicemail": 1,
        "lost": 1,
    }


@pytest.mark.parametrize(
    ("query", "is_found"),
    [
        ("refund", True),
        ("REFUND", True),
        ("a  ref", True),
        ("fu", True),
        ("+1 (415) 555-0134", True),
        ("4155550134", True),
        ("-NxAgent", True),
        ("straße", True),
        ('"now"', True),
        ("money back", False),
        ("%", False),
        ("_u", False),
        ("NEAR(refund", False),
        ("refund OR a", False),
        ("refund*", False),
        ('a" OR "refund', False),
        ("text:refund", False),
        ("\ud800zz", False),
        ("x" * 5000, False),
    ],
)
def test_search_finds_text_as_typed_and_nothing_is_an_operator(
    two_calls: StoredCalls, query: str, is_found: bool
) -> None:
    assert listed(two_calls, q=query) == (["-failed"] if is_found else [])


def test_a_search_for_nothing_narrows_nothing(stored: StoredCalls) -> None:
    stored.add_call("-a")
    assert listed(stored, q=" \x00\n ") == ["-a"]


def test_without_the_search_index_whole_ids_and_numbers_are_found(stored: StoredCalls) -> None:
    stored.add_call("-a", from_phone="+14155550134")
    stored.write(lambda connection: connection.execute(text("DROP TABLE call_search")))
    for wanted in (CallFilter(q="-a"), CallFilter(q="+1 415 555 0134")):
        page = stored.queries.ask(list_calls, wanted, now=NOW)
        assert (sessions(page), page.is_plain) == (["-a"], True)
    assert listed(stored, q="refund") == []


def test_an_excerpt_is_the_line_that_was_hit_from_a_few_words_before(
    stored: StoredCalls,
) -> None:
    stored.add_call("-a", text="Hello\nSo how could I get a refund for the second one?\n-NxAgent")
    (row,) = stored.queries.ask(list_calls, CallFilter(q="Refund"), now=NOW).rows
    assert row.excerpt == Excerpt("…could I get a ", "refund", " for the second one?")


def test_todays_totals_begin_at_midnight_utc(stored: StoredCalls) -> None:
    stored.add_call("-yesterday", minutes_ago=15 * 60, cost_total=9.0)
    for number in range(20):
        stored.add_call(f"-{number}", prefetch_ms=float(number), cost_total=0.5)
    stored.add_call("-failed", outcome="failed")
    today = stored.queries.today(now=NOW)
    assert (today.calls, today.errors, today.credits) == (21, 1, 10.0)
    assert today.prefetch_p95_ms == 18.0


def test_a_day_without_calls_has_no_totals_to_show(stored: StoredCalls) -> None:
    today = stored.queries.today(now=NOW)
    assert (today.calls, today.credits, today.prefetch_p95_ms) == (0, None, None)


def test_a_list_says_how_the_handlers_of_each_call_stand(stored: StoredCalls) -> None:
    call_id = stored.add_call("-a")
    for handler, state in (
        ("a", "succeeded"),
        ("b", "retrying"),
        ("c", "pending"),
        ("d", "running"),
    ):
        stored.add_run(call_id, handler, state)
    failed = stored.add_run(call_id, "e", "failed")
    stored.add_run(call_id, "tell", "failed", hook="failed", failed_run_id=failed)
    (row,) = stored.queries.ask(list_calls, CallFilter(), now=NOW).rows
    assert row.runs == RunCounts(total=5, retrying=1, failed=1, waiting=2)


def test_a_run_that_was_replaced_is_not_counted(stored: StoredCalls) -> None:
    call_id = stored.add_call("-a")
    stored.add_run(call_id, "save", "failed", is_latest=False)
    stored.add_run(call_id, "save", "succeeded", is_replay=True)
    (row,) = stored.queries.ask(list_calls, CallFilter(), now=NOW).rows
    assert row.runs == RunCounts(total=1)


def test_agents_are_listed_once(stored: StoredCalls) -> None:
    for session_id, agent_id in (("-1", "-b"), ("-2", "-a"), ("-3", "-b"), ("-4", None)):
        stored.add_call(session_id, agent_id=agent_id)
    assert stored.queries.agents() == ("-a", "-b")


def test_a_call_comes_with_everything_kept_about_it(stored: StoredCalls) -> None:
    call_id = stored.add_call("-a", cost_total=0.3)
    stored.add_delivery(session_id="-a", body=b'{"session_id": "-a"}')
    stored.add_cost(call_id, 1, type="tts", credit=0.1)
    stored.add_cost(call_id, 0, type="llm", credit=0.2)
    run_id = stored.add_run(call_id, "save", "retrying")
    stored.add_attempt(run_id, 2, outcome="failed", duration_ms=20.0)
    stored.add_attempt(run_id, 1, outcome="failed", duration_ms=10.0)
    record = stored.queries.call("-a")
    assert record is not None
    assert [item.type for item in record.costs] == ["llm", "tts"]
    assert [attempt.number for attempt in record.runs[0].attempts] == [1, 2]
    assert record.deliveries[0].body == b'{"session_id": "-a"}'


def test_a_run_comes_with_what_its_handler_is_registered_with(stored: StoredCalls) -> None:
    call_id = stored.add_call("-a")
    stored.add_handler("save", max_attempts=3, repeatable=False)
    stored.add_handler("gone", hook="failed")
    for handler in ("save", "gone"):
        stored.add_run(call_id, handler, "failed", reason="3 of 3 attempts failed", spent=3)
    record = stored.queries.call("-a")
    assert record is not None
    assert [(run.max_attempts, run.repeatable) for run in record.runs] == [(3, False), (None, None)]
    assert (record.runs[0].spent, record.runs[0].reason) == (3, "3 of 3 attempts failed")


def test_of_many_runs_those_that_were_replaced_long_ago_are_left_out(stored: StoredCalls) -> None:
    call_id = stored.add_call("-a")
    kept = stored.add_run(call_id, "kept", "succeeded")
    replaced = [
        stored.add_run(call_id, "save", "failed", is_latest=False, is_replay=True)
        for _ in range(110)
    ]
    record = stored.queries.call("-a")
    assert record is not None
    assert record.run_count == 111
    assert [run.id for run in record.runs] == [kept, *replaced[-99:]]


@pytest.mark.parametrize("session_id", ["", "-none", "\x00", "\ud800", "' OR ''='", "x" * 10_000])
def test_an_unknown_session_is_none(two_calls: StoredCalls, session_id: str) -> None:
    assert two_calls.queries.call(session_id) is None


def test_the_body_of_a_redelivery_is_read_once(stored: StoredCalls) -> None:
    stored.add_call("-a")
    for body, content_hash in ((b"one", b"1"), (b"one", b"1"), (b"two", b"2")):
        stored.add_delivery(session_id="-a", body=body, content_hash=content_hash)
    record = stored.queries.call("-a")
    assert record is not None
    assert [each.body for each in record.deliveries] == [b"one", None, b"two"]
    assert [each.body_bytes for each in record.deliveries] == [3, 3, 3]


def test_of_many_deliveries_the_one_the_call_was_read_from_is_shown(stored: StoredCalls) -> None:
    ids = [
        stored.add_delivery(session_id="-a", content_hash=bytes([number]), body=b"x")
        for number in range(30)
    ]
    stored.add_call("-a", delivery_id=ids[-1])
    record = stored.queries.call("-a")
    assert record is not None
    assert record.delivery_count == 30
    assert record.deliveries[-1].id == ids[-1]
    assert len(record.deliveries) < 30


def test_deliveries_that_could_not_be_read_are_listed_and_counted(stored: StoredCalls) -> None:
    stored.add_delivery(body=b"fine")
    broken = stored.add_delivery(body=b"{broken", outcome="unparsed", reason="not JSON")
    unparsed = RequestFilter(outcome="unparsed")
    (listed,) = stored.queries.ask(partial(list_requests, filters=unparsed)).rows
    assert (listed.id, listed.reason, listed.bytes) == (broken, "not JSON", 7)
    assert stored.queries.unparsed_count() == 1
    delivery = stored.queries.delivery(broken)
    assert delivery is not None
    assert delivery.body == b"{broken"


def test_a_call_without_an_end_is_live_first_and_lost_later(stored: StoredCalls) -> None:
    stored.add_unended_call("-a", minutes_ago=0)
    record = stored.queries.call("-a")
    assert record is not None
    assert record.call.is_live(NOW)
    assert record.call.is_lost(NOW + LIVE_FOR + timedelta(seconds=1))


def test_a_database_that_fails_is_a_storage_error(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(StorageError):
        Queries(engine).agents()
    engine.dispose()

"""Filters combine freely, and a page holds what they leave, in order, however it is found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, update

from millis_hooks.call_log.queries import call_list
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.queries.records import LIVE_FOR, Page
from millis_hooks.call_log.results import ResultFilter
from millis_hooks.call_log.tables import call_metadata, calls
from support import databases
from support.stored_calls import NOW, StoredCalls

pytestmark = pytest.mark.both_databases

OWN, HERS, HIS = "+14155550199", "+14155550134", "+4930901820"
DAYS = 30
PAGE = 30

Row = dict[str, Any]
Predicate = Callable[[Row], bool]


class Many:
    """A log of calls of every kind, in an order of ids that is not that of time."""

    def __init__(self, folder: Path) -> None:
        self.stored = StoredCalls(folder)
        chance = random.Random(4)
        with self.stored.at_once():
            self.rows = [self._add(f"-{number:03}", chance) for number in range(100)]

    def _add(self, session_id: str, chance: random.Random) -> Row:
        on_phone = chance.random() < 0.7
        row: Row = {
            "session_id": session_id,
            "minutes_ago": chance.choice([0, 5, chance.uniform(0, DAYS * 24 * 60)]),
            "agent_id": chance.choice(["-a", "-b", "-c", None]),
            "channel": "phone" if on_phone else chance.choice(["web", "chat"]),
            "direction": chance.choice(["inbound", "outbound", None]) if on_phone else None,
            "from_phone": chance.choice([OWN, HERS, HIS]) if on_phone else None,
            "to_phone": chance.choice([OWN, HERS]) if on_phone else None,
            "duration_s": chance.choice([None, 0.0, chance.uniform(0, 600)]),
            "cost_total": chance.choice([None, chance.uniform(0, 2)]),
            "repeated": chance.random() < 0.1,
            "text": f"{chance.choice(['the refund', 'ein Termin', '予約を変更'])} {session_id}",
        }
        if chance.random() < 0.15:
            return self._add_more(self.stored.add_unended_call(**row), row, chance)
        row["outcome"] = chance.choice(["completed", "failed", "voicemail", "unknown"])
        row["call_status"] = chance.choice(["user-ended", "error", "invented"])
        return self._add_more(self.stored.add_call(**row), row, chance)

    def _add_more(self, call_id: int, row: Row, chance: random.Random) -> Row:
        received_at = NOW - timedelta(minutes=row["minutes_ago"])
        pairs = {"tier": chance.choice(["gold", "tin"])} if chance.random() < 0.6 else {}
        for key, value in pairs.items():
            kept = {"call_id": call_id, "key": key, "value": value, "received_at": received_at}
            self.stored.write(lambda connection: connection.execute(insert(call_metadata), kept))  # noqa: B023
        booked, score = chance.choice([True, False, None]), chance.choice([None, 1, 4, 4.5])
        for handler in chance.choice([["book"], ["book", "book again"]]):
            self.stored.add_results(call_id, handler, booked=booked, score=score)
        runs = chance.choice([[], ["failed"], ["retrying", "succeeded"], ["succeeded"]])
        for number, state in enumerate(runs):
            self.stored.add_run(call_id, f"handler{number}", state)
        unhandled = update(calls).where(calls.c.id == call_id).values(unhandled=not runs)
        self.stored.write(lambda connection: connection.execute(unhandled))
        is_unparsed = chance.random() < 0.1
        outcome = "unparsed" if is_unparsed else "stored"
        self.stored.add_delivery(session_id=row["session_id"], outcome=outcome)
        about = {
            "booked": booked,
            "score": score,
            "id": call_id,
            "received_at": received_at,
            "metadata": pairs,
            "runs": runs,
        }
        return {"outcome": None, "call_status": None} | row | about | {"unparsed": is_unparsed}

    def expected(self, wanted: CallFilter) -> list[Row]:
        left = [row for row in self.rows if all(holds(row) for holds in predicates(wanted))]
        return sorted(left, key=lambda row: (row["received_at"], row["id"]), reverse=True)


def predicates(wanted: CallFilter) -> Iterator[Predicate]:
    """The same filters, said in Python."""
    since, until = wanted.period(NOW)
    yield lambda row: row["outcome"] is not None or row["received_at"] < NOW - LIVE_FOR
    yield lambda row: (since or datetime.min.replace(tzinfo=NOW.tzinfo)) <= row["received_at"]
    yield lambda row: not until or row["received_at"] < until
    yield lambda row: wanted.q.casefold() in row["text"].casefold()
    yield lambda row: not wanted.agent or row["agent_id"] in wanted.agent
    yield lambda row: not wanted.status or row["call_status"] in wanted.status
    yield lambda row: wanted.channel in (None, row["channel"])
    yield lambda row: wanted.direction in (None, row["direction"])
    yield lambda row: wanted.number is None or wanted.number in (row["from_phone"], row["to_phone"])
    yield lambda row: wanted.metadata in ((), tuple(row["metadata"].items()))
    for each in wanted.results:
        yield partial(has_result, each)
    yield lambda row: within(row["duration_s"], wanted.min_s, wanted.max_s)
    yield lambda row: within(row["cost_total"], wanted.cost_min, wanted.cost_max)
    yield lambda row: wanted.handler in (None, "none") or wanted.handler in row["runs"]
    yield lambda row: wanted.handler != "none" or not row["runs"]
    yield lambda row: not wanted.unparsed or row["unparsed"]
    yield lambda row: not wanted.duplicate or row["repeated"]
    if wanted.outcome:
        outcome = {"lost": None}.get(wanted.outcome, wanted.outcome)
        yield lambda row: row["outcome"] == outcome


def has_result(wanted: ResultFilter, row: Row) -> bool:
    value = row[wanted.name]
    match wanted.operator:
        case "=":
            return str(value).lower() == wanted.value
        case "!=":
            return str(value).lower() != wanted.value
    return value is not None and value >= float(wanted.value)


def within(value: float | None, least: float | None, most: float | None) -> bool:
    if least is None and most is None:
        return True
    return value is not None and (least or 0) <= value <= (most if most is not None else 1e9)


def maybe(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([None, None, *values])


RESULTS = ("booked=true", "booked!=false", "score>=4", "score=4", "score>=99")
FILTERS = st.builds(
    CallFilter,
    q=st.sampled_from(["", "", "", "refund", "REFUND", "er", "予約を", "-01", "absent"]),
    outcome=maybe("completed", "failed", "lost", "voicemail"),
    status=st.sampled_from([(), (), ("user-ended",), ("error", "invented"), ("absent",)]),
    agent=st.sampled_from([(), (), ("-a",), ("-b", "-c"), ("-absent",)]),
    channel=maybe("phone", "web", "chat"),
    direction=maybe("inbound", "outbound"),
    number=maybe(OWN, HIS, "+100"),
    range=st.sampled_from(["all", "all", "7d", "today"]),
    until=maybe(NOW - timedelta(days=3)),
    min_s=maybe(0.0, 60.0),
    max_s=maybe(0.0, 300.0),
    cost_min=maybe(0.5),
    cost_max=maybe(1.0),
    metadata=st.sampled_from([(), (), (("tier", "gold"),), (("tier", "absent"),)]),
    results=st.sampled_from([(), (), *((ResultFilter.read(text),) for text in RESULTS)]),
    handler=maybe("retrying", "failed", "none"),
    unparsed=st.sampled_from([False, False, True]),
    duplicate=st.sampled_from([False, False, True]),
)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind) -> Iterator[Many]:
    many = Many(tmp_path_factory.mktemp("log"))
    yield many
    many.stored.database.close()


@given(wanted=FILTERS, few=st.sampled_from([0, 10, 1000]))
def test_pages_hold_exactly_what_all_filters_leave(
    many: Many, wanted: CallFilter, few: int
) -> None:
    """Whatever counts as few, which decides how calls are found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_list, "FEW", few)
        patch.setattr(call_list, "_FIRST_PART", 4)
        check_pages(many, wanted)


def check_pages(many: Many, wanted: CallFilter) -> None:
    found: list[str] = []
    pages: list[Page] = []
    before: str | None = None
    while not pages or before:
        page = many.stored.queries.ask(list_calls, wanted, now=NOW, before=before, size=PAGE)
        pages.append(page)
        found += [row.call.session_id for row in page.rows]
        before = page.older
    expected = many.expected(wanted)
    assert found == [row["session_id"] for row in expected]
    leads_back(many, wanted, pages)


def leads_back(many: Many, wanted: CallFilter, pages: list[Page]) -> None:
    for page, earlier in zip(pages[:0:-1], pages[-2::-1], strict=True):
        back = many.stored.queries.ask(list_calls, wanted, now=NOW, after=page.newer, size=PAGE)
        assert back.rows == earlier.rows


@given(wanted=FILTERS)
def test_tabs_count_each_outcome_under_all_other_filters(many: Many, wanted: CallFilter) -> None:
    page = many.stored.queries.ask(list_calls, wanted, now=NOW)
    assert page.at_least == ()
    assert page.counts["all"] == len(many.expected(replace(wanted, outcome=None)))
    for tab in ("completed", "failed", "voicemail", "lost"):
        assert page.counts[tab] == len(many.expected(replace(wanted, outcome=tab)))


@pytest.mark.parametrize(
    "wanted",
    [CallFilter(range="all"), CallFilter(range="all", agent=("-a", "-b", "-c")),
     CallFilter(range="all", q="the"), CallFilter(range="all", min_s=0)],
)  # fmt: skip
def test_counting_stops_and_says_so(
    many: Many, monkeypatch: pytest.MonkeyPatch, wanted: CallFilter
) -> None:
    monkeypatch.setattr(call_list, "FEW", 3)
    monkeypatch.setattr(call_list, "MOST_COUNTED", 5)
    monkeypatch.setattr(call_list, "_COUNTED_AT_ONCE", 4)
    monkeypatch.setattr(call_list, "COUNT_S", 60)
    page = many.stored.queries.ask(list_calls, wanted, now=NOW)
    assert page.counts["all"] == 5
    assert "all" in page.at_least
    for tab, count in page.counts.items():
        expected = len(many.expected(replace(wanted, outcome=None if tab == "all" else tab)))
        assert count is None or count == min(expected, 5)
        assert (tab in page.at_least) == (count == 5 and expected > 5)


def test_counts_that_take_too_long_are_left_out(
    many: Many, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_list, "FEW", 3)
    monkeypatch.setattr(call_list, "COUNT_S", -1)
    monkeypatch.setattr(call_list, "_COUNTED_AT_ONCE", 5)
    page = many.stored.queries.ask(list_calls, CallFilter(range="all", min_s=0), now=NOW)
    assert page.rows
    assert (set(page.counts.values()), page.at_least) == ({None}, ())

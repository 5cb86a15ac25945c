"""A search finds what a call's text holds, in any language, and takes any input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_calls import NOW, StoredCalls

from millis_hooks.call_log import ways
from millis_hooks.call_log.filters import CallFilter
from millis_hooks.call_log.search import Excerpt, clean_query

pytestmark = pytest.mark.both_databases

SAID = (
    "Is there a table for two on Tuesday?",
    "Die Straße heißt Große Freiheit, Nummer 36.",
    "¿Me puede decir el número de referencia, señor Ibáñez?",
    "予約を変更したいのですが、空いていますか。",
    "أريد تغيير موعدي من فضلك",
    "Я хочу перенести встречу",
    "ฉันต้องการเปลี่ยนนัด",
    "मुझे अपना समय बदलना है",
    'He said "100 % sure", didn\'t he? AND NOT (NEAR "x")*',
    "👩‍👩‍👧 family 🏳️‍🌈 plan",
    "Support is there 24/7, says user_name.",
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path_factory.mktemp("log"))
    for number, text in enumerate(SAID):
        log.add_call(f"-{number}", text=f"{text}\n+1415555013{number}")
    yield log
    log.database.close()


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path)
    yield log
    log.database.close()


def found(stored: StoredCalls, q: str) -> list[str]:
    page = stored.queries.list_calls(CallFilter(q=q, range="all"), now=NOW)
    return [row.call.session_id for row in page.rows]


@pytest.mark.parametrize(
    ("q", "number"),
    [
        ("able for tw", 0), ("STRASSE", None), ("straße", 1), ("große freiheit", 1),
        ("IBÁÑEZ", 2), ("ibanez", None), ("変更したい", 3), ("予約", 3), ("موعدي", 4),
        ("ПЕРЕНЕСТИ", 5), ("เปลี่ยน", 6), ("समय", 7), ("100 % s", 8), ('sure", did', 8),
        ("AND NOT (NEAR", 8), ("👧 family", 9), ("24/7", 10), ("24%7", None),
        ("r_n", 10), ("s_u", None), ("+1 415 555-0135", 5), ("0136", 6),
    ],
)  # fmt: skip
def test_any_part_of_what_was_said_finds_the_call(
    spoken: StoredCalls, q: str, number: int | None
) -> None:
    assert found(spoken, q) == ([] if number is None else [f"-{number}"])


@settings(deadline=None, max_examples=200)
@given(q=st.text(max_size=30) | st.sampled_from(SAID).flatmap(lambda said: st.sampled_from(
    [said[:3], said[5:9], said[-4:], said[2:], f'"{said[:4]}"', f"{said[1:5]}*"]
)))  # fmt: skip
def test_whatever_is_searched_for_is_taken_as_text(spoken: StoredCalls, q: str) -> None:
    sought = clean_query(q)
    phone = "".join(each for each in sought if each.isdigit()) or None
    for session_id in found(spoken, q):
        text = SAID[int(session_id[1:])]
        is_there = sought.lower() in f"{text}\n+1415555013{session_id[1:]}".lower()
        assert is_there or phone is not None
    is_literal = [f"-{n}" for n, said in enumerate(SAID) if sought and sought in said]
    assert set(is_literal) <= set(found(spoken, q))


def test_hits_are_listed_by_time_though_the_index_has_them_by_id(
    stored: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "FEW", 3)
    monkeypatch.setattr(ways, "_FIRST_PART", 2)
    minutes = [50, 10, 40, 20, 30, 60, 5]  # as after an import of older calls
    for ago in minutes:
        stored.add_call(f"-{ago}", minutes_ago=ago, text="a refund")
    assert found(stored, "refund") == [f"-{ago}" for ago in sorted(minutes)]


def test_an_excerpt_shows_the_hit_as_it_was_written(stored: StoredCalls) -> None:
    stored.add_call("-a", text="İstanbul, İzmir\nthen Die STRAẞE is long, said he")
    (row,) = stored.queries.list_calls(CallFilter(q="die stra"), now=NOW).rows
    assert row.excerpt == Excerpt("then ", "Die STRA", "ẞE is long, said he")


def test_a_number_is_marked_however_it_was_typed(stored: StoredCalls) -> None:
    stored.add_call("-a", text="call me\n+14155550134\n-a")
    (row,) = stored.queries.list_calls(CallFilter(q="(415) 555-0134"), now=NOW).rows
    assert row.excerpt == Excerpt("+1", "4155550134", "")


def test_a_search_too_short_for_the_index_has_excerpts_too(stored: StoredCalls) -> None:
    stored.add_call("-a", text="予約を変更")
    (row,) = stored.queries.list_calls(CallFilter(q="変更"), now=NOW).rows
    assert row.excerpt == Excerpt("予約を", "変更", "")

"""A search finds what a call's text holds, in any language, and takes any input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.call_log.queries import call_list
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.search import (
    BLANK,
    Excerpt,
    Field,
    Item,
    clean_query,
    fold,
    searchable,
    stretch_of,
    terms_of,
)
from support import databases
from support.stored_calls import NOW, StoredCalls

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
def spoken(
    tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind
) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path_factory.mktemp("log"))
    with log.at_once():
        for number in range(len(SAID)):
            log.add_call(f"-{number}", text=text_of_call(number))
    yield log
    log.database.close()


@pytest.fixture(scope="module")
def numbers(
    tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind
) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path_factory.mktemp("numbers"))
    said = ("+4915112345678", "call +49 151 1234 5678 please", "it is +49 (151) 1234-56-78.")
    for number, text in enumerate(said):
        log.add_call(f"-{number}", minutes_ago=number, text=text)
    log.add_call("-other", text="+4915112345679 and 49 151")
    yield log
    log.database.close()


@pytest.fixture(scope="module")
def itemized(
    tmp_path_factory: pytest.TempPathFactory, database_kind: databases.Kind
) -> Iterator[StoredCalls]:
    """A call with an item of every kind, and another."""
    log = StoredCalls(tmp_path_factory.mktemp("items"))
    log.add_call("-a", items=ITEMS)
    log.add_delivery(session_id="-a", body=json.dumps(BODY).encode())
    log.add_call("-b", text="something else")
    yield log
    log.database.close()


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredCalls]:
    log = StoredCalls(tmp_path)
    yield log
    log.database.close()


def found(stored: StoredCalls, q: str) -> list[str]:
    page = stored.queries.ask(list_calls, CallFilter(q=q, range="all"), now=NOW)
    return [row.call.session_id for row in page.rows]


@pytest.mark.parametrize(
    ("q", "number"),
    [
        ("able for tw", 0), ("STRASSE", 1), ("straße", 1), ("große freiheit", 1),
        ("IBÁÑEZ", 2), ("ibanez", 2), ("変更したい", 3), ("予約", 3), ("موعدي", 4),
        ("ПЕРЕНЕСТИ", 5), ("เปลี่ยน", 6), ("समय", 7), ("100 % s", 8), ('sure", did', 8),
        ("AND NOT (NEAR", 8), ("👧 family", 9), ("24/7", 10), ("24%7", None),
        ("r_n", 10), ("s_u", None), ("+1 415 555-0135", 5), ("0136", 6),
    ],
)  # fmt: skip
def test_any_part_of_what_was_said_finds_the_call(
    spoken: StoredCalls, q: str, number: int | None
) -> None:
    assert found(spoken, q) == ([] if number is None else [f"-{number}"])


@given(q=st.text(max_size=30) | st.sampled_from(SAID).flatmap(lambda said: st.sampled_from(
    [said[:3], said[5:9], said[-4:], said[2:], f'"{said[:4]}"', f"{said[1:5]}*"]
)))  # fmt: skip
def test_whatever_is_searched_for_is_taken_as_text(spoken: StoredCalls, q: str) -> None:
    sought, hits = clean_query(q), found(spoken, q)
    for session_id in hits:
        text = searchable([Item(Field.TRANSCRIPT, text_of_call(int(session_id[1:])))])
        assert all(any(phrase in text for phrase in term) for term in terms_of(sought))
    if sought and '"' not in sought:
        literal = {f"-{n}" for n, said in enumerate(SAID) if fold(sought) in fold(said)}
        assert literal <= set(hits)


def text_of_call(number: int) -> str:
    return f"{SAID[number]}\n+1415555013{number}"


ITEMS = [
    Item(Field.NUMBER, "+12065550129"),
    Item(Field.ID, "-P6zGeJ"),
    Item(Field.ERROR, "STT stream closed"),
    Item(Field.FUNCTION, "lookup_charges"),
    Item(Field.METADATA, "C-20931", "customer_id"),
    Item(Field.TRANSCRIPT, "I want a refund.\nAt half past ten, for the Crown."),
]
#: A delivery with the same.
BODY: dict[str, Any] = {
    "session_id": "-a",
    "call_id": "-P6zGeJ",
    "voip": {"from": "+12065550129"},
    "error_message": "STT stream closed",
    "function_calls": [{"name": "lookup_charges"}],
    "metadata": {"customer_id": "C-20931"},
    "chat": [{"content": "I want a refund."}, {"content": "At half past ten, for the Crown."}],
}


@pytest.mark.parametrize(
    ("q", "fields"),
    [
        ("refund crown", ["transcript"]),
        ("crown REFUND", ["transcript"]),
        ('"half past ten"', ["transcript"]),
        ('"past half"', None),
        ("“half past ten” refund", ["transcript"]),
        ("refund crowns", None),
        ("C-20931", ["metadata"]),
        ("customer_id", None),
        ("refund 20931", ["metadata", "transcript"]),
        ("stt stream", ["error"]),
        ("stt crown lookup", ["error", "function", "transcript"]),
        ("lookup_charges", ["function"]),
        ("206 555 0129", ["number"]),
        ("(206) 555-0129", ["number"]),
        ("(206) 555", ["number"]),
        ("0129", ["number"]),
        ("555-0129 refund", ["number", "transcript"]),
        ("555 0128", None),
        ('"crown stt"', None),
        ('"', ["all"]),
        ('""', ["all"]),
        ("refund - (crown)", None),
        ("refund - crown", ["transcript"]),
        ("a b c d e f g h i", None),
        ("a n d", ["transcript"]),
        ('refund" OR "zebra', None),
        ("ref* NEAR/2", None),
        ("refund\x00crown", ["transcript"]),
    ],
)
def test_a_search_finds_its_words_anywhere_and_says_where(
    itemized: StoredCalls, q: str, fields: list[str] | None
) -> None:
    page = itemized.queries.ask(list_calls, CallFilter(q=q), now=NOW)
    if fields == ["all"]:
        assert len(page.rows) == 2
        return
    assert [row.call.session_id for row in page.rows] == (["-a"] if fields else [])
    for row in page.rows:
        hits = [row.excerpt, *row.more_excerpts]
        assert [hit.field for hit in hits if hit] == fields


def test_an_excerpt_is_of_all_ends_of_a_call(stored: StoredCalls) -> None:
    end = stored.add_delivery(session_id="-a", body=json.dumps(BODY | {"chat": []}).encode())
    stored.add_delivery(session_id="-a", body=json.dumps(BODY | {"metadata": {}}).encode())
    stored.add_call("-a", items=ITEMS, delivery_id=end, repeated=True)
    (row,) = stored.queries.ask(list_calls, CallFilter(q="crown 20931"), now=NOW).rows
    assert [each.field for each in row.all_excerpts] == ["metadata", "transcript"]


def test_a_hit_in_metadata_names_its_key(itemized: StoredCalls) -> None:
    (row,) = itemized.queries.ask(list_calls, CallFilter(q="20931"), now=NOW).rows
    assert row.excerpt == Excerpt("C-", "20931", "", "metadata", "customer_id")


@pytest.mark.parametrize(
    ("filters", "is_found"),
    [
        ({"function": "lookup_charges"}, True),
        ({"function": "Lookup_Charges"}, True),
        ({"function": "lookup"}, False),
        ({"function": "C-20931"}, False),
        ({"provider": "lookup_charges"}, False),
        ({"provider": "elevenlabs"}, True),
        ({"provider": "elevenlabs", "function": "lookup_charges", "q": "crown"}, True),
    ],
)
def test_calls_are_listed_by_a_whole_function_or_provider(
    stored: StoredCalls, filters: dict[str, str], *, is_found: bool
) -> None:
    stored.add_call("-a", items=[*ITEMS, Item(Field.PROVIDER, "ElevenLabs")])
    page = stored.queries.ask(list_calls, CallFilter(**filters), now=NOW)  # type: ignore[arg-type]
    assert [row.call.session_id for row in page.rows] == ["-a"] * is_found


@pytest.mark.parametrize(
    ("number", "is_found"),
    [
        ("+12065550129", True), ("206 555 0129", True), ("(206) 555-0129", True),
        ("0129", True), ("29", True), ("+1206", True), ("0128", False), ("0207", False),
    ],
)  # fmt: skip
def test_a_number_filter_takes_a_part_but_not_of_what_was_said(
    stored: StoredCalls, number: str, *, is_found: bool
) -> None:
    stored.add_call("-a", items=ITEMS, from_phone="+12065550129")
    stored.add_call("-b", text="it is 206 555 0129 or 0207 and +1206", from_phone="+4915112345678")
    page = stored.queries.ask(list_calls, CallFilter(number=number), now=NOW)
    assert [row.call.session_id for row in page.rows] == ["-a"] * is_found


def test_a_long_search_is_cut_and_answered(itemized: StoredCalls) -> None:
    for q in ("word " * 2_000, "x y z " * 2_000, '"' * 10_000, "refund " * 1_500):
        assert len(clean_query(q)) <= 200
        everything = ["-b", "-a"] if '"' in q else []
        assert found(itemized, q) == (["-a"] if "refund" in q else everything)


def test_hits_are_listed_by_time_though_the_index_has_them_by_id(
    stored: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_list, "FEW", 3)
    monkeypatch.setattr(call_list, "_FIRST_PART", 2)
    minutes = [50, 10, 40, 20, 30, 60, 5]  # as after an import of older calls
    for ago in minutes:
        stored.add_call(f"-{ago}", minutes_ago=ago, text="a refund")
    assert found(stored, "refund") == [f"-{ago}" for ago in sorted(minutes)]


def test_an_excerpt_shows_the_hit_as_it_was_written(stored: StoredCalls) -> None:
    stored.add_call("-a", text="İstanbul, İzmir\nthen Die STRAẞE is long, said he")
    (row,) = stored.queries.ask(list_calls, CallFilter(q="die stra"), now=NOW).rows
    assert row.excerpt == Excerpt("then ", "Die STRA", "ẞE is long, said he")


def test_a_number_is_marked_however_it_was_typed(stored: StoredCalls) -> None:
    stored.add_call("-a", text="call me\n+14155550134\n-a")
    (row,) = stored.queries.ask(list_calls, CallFilter(q="(415) 555-0134"), now=NOW).rows
    assert row.excerpt == Excerpt("+1", "4155550134", "")


def test_a_search_too_short_for_the_index_has_excerpts_too(stored: StoredCalls) -> None:
    stored.add_call("-a", text="予約を変更")
    (row,) = stored.queries.ask(list_calls, CallFilter(q="変更"), now=NOW).rows
    assert row.excerpt == Excerpt("予約を", "変更", "")


ALIKE = [
    ("Ibáñez", "IBANEZ"), ("cafe\u0301 noir", "café NOIR"), ("Ёлка и й", "елка и й"),
    ("İstanbul", "istanbul"), ("DIYARBAKIR", "dıyarbakır"), ("ΟΔΥΣΣΕΎΣ", "οδυσσευς"),
    ("Straße", "STRASSE"), ("Łódź", "lodz"), ("Æblegrød", "aeblegrod"),
    ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
    ("ｶﾞｲﾄﾞ", "ガイド"), ("한국어", "\u1112\u1161\u11ab국어"), ("didn’t", "didn't"), ("‘so’", "'so'"),
    ("“well”", '"well"'), ("«bien»", '"bien"'), ("nine–to—five", "nine-to-five"),
    ("no\u00a0break\u202fhere", "no break here"),
    ("book  a\ntable\r\n please", "book a table please"),
    ("soft\u00adly", "softly"), ("à\u200bla", "ala"), ("ﬁne", "fine"), ("wait…", "wait..."),
    ("١٢٣٤ شارع", "1234 شارع"), ("مُوعِد", "موعد"), ("שָׁלוֹם", "שלום"),
]  # fmt: skip
APART = [
    ("かき", "がき"),
    ("कमल", "कामल"),
    ("มา", "มี"),
    ("한국", "항국"),
    ("a b", "ab"),
    ("a-b", "a b"),
]


@pytest.mark.parametrize(("said", "sought"), ALIKE)
def test_what_a_person_does_not_tell_apart_is_found(said: str, sought: str) -> None:
    assert fold(said) == fold(sought)
    assert fold(fold(said).replace(BLANK, " ")) == fold(said)


@pytest.mark.parametrize(("one", "other"), APART)
def test_letters_of_their_own_stay_apart(one: str, other: str) -> None:
    assert fold(one) != fold(other)


def test_text_and_search_are_folded_alike_in_the_log(stored: StoredCalls) -> None:
    some = ALIKE[::4]
    with stored.at_once():
        for number, (said, _) in enumerate(some):
            stored.add_call(f"-{number}", text=f"Hm: {said}, yes.")
    for number, (_, sought) in enumerate(some):
        assert f"-{number}" in found(stored, sought)


@pytest.mark.parametrize(
    "q",
    [
        "+4915112345678", "4915112345678", "0049 151 1234 5678", "+49 (0)151/1234-5678",
        "151 1234 5678", "+49.151.12345678", "(151) 12345678", "＋４９ 151 12345678",
        "151–1234–5678", "+49\u00a0151\u00a012345678",
    ],
)  # fmt: skip
def test_a_number_is_found_in_any_way_of_writing_it(numbers: StoredCalls, q: str) -> None:
    assert found(numbers, q) == ["-0", "-1", "-2"]


@pytest.mark.parametrize("q", ["\u0301", "\u200b", " \u00ad ", "\x00"])
def test_a_search_for_invisible_characters_is_ignored(stored: StoredCalls, q: str) -> None:
    assert clean_query(q) == ""
    stored.add_call("-a", text="anything")
    assert found(stored, q) == ["-a"]


@given(text=st.text(max_size=40), more=st.text(max_size=10))
def test_where_something_stands_is_found_in_the_text_as_it_was_written(
    text: str, more: str
) -> None:
    whole = f"{text}| needle |{more}"
    start = fold(whole).index(f"{BLANK}needle{BLANK}|")
    first, last = stretch_of(whole, start + 1, start + 7)
    assert whole[first:last].strip("\u0300").startswith("needle")


@pytest.mark.parametrize(
    ("said", "q", "hit"),
    [
        ("the  Señor\tIba\u0301n\u0303ez  said", "senor ibanez", "Señor Iba\u0301n\u0303ez"),
        ("call (415) 555 01 34 now", "4155550134", "415) 555 01 34"),
        ("Große Straße 5", "grosse strasse", "Große Straße"),
    ],
)
def test_the_hit_is_marked_as_it_was_written(
    stored: StoredCalls, said: str, q: str, hit: str
) -> None:
    stored.add_call("-a", text=said)
    (row,) = stored.queries.ask(list_calls, CallFilter(q=q), now=NOW).rows
    assert row.excerpt is not None
    assert row.excerpt.hit == hit

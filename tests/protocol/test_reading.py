from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from itertools import pairwise
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.exceptions import PayloadError
from millis_hooks.protocol.reading import describe, read_json


@pytest.mark.parametrize(
    "body",
    [b'\xef\xbb\xbf{"a": "\xc3\xa9"}', '{"a": "é"}'.encode("utf-16"), b'{"a": "\\u00e9"}'],
    ids=["byte order mark", "utf-16", "escape"],
)
def test_json_in_any_encoding_is_read(body: bytes) -> None:
    assert read_json(body) == {"a": "é"}


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'["\\ud83d", "\\ud83d\\ude00"]', ["\ufffd", "😀"]),
        (b'{"\\udc00": 1}', {"\ufffd": 1}),
        (b"[NaN, -Infinity, 1e999, 1.5]", [None, None, None, 1.5]),
        (b'["Infinity", 1e999]', ["Infinity", None]),
    ],
)
def test_what_could_not_be_written_again_is_replaced(body: bytes, value: Any) -> None:
    assert read_json(body) == value


@pytest.mark.parametrize("before", range(2**16 - 4, 2**16 + 2))
def test_surrogates_are_joined_wherever_a_piece_ends(before: int) -> None:
    text = "a" * before + "\ud83d\ude00\ud83d"
    assert read_json(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")) == (
        "a" * before + "😀\ufffd"
    )


@pytest.mark.parametrize("before", range(2**15 - 4, 2**15 + 2))
def test_utf_16_is_read_wherever_a_piece_ends(before: int) -> None:
    text = "a" * before + "😀" * 2**17
    assert read_json(json.dumps(text, ensure_ascii=False).encode("utf-16")) == text


def longest_hold(work: Callable[[], object]) -> float:
    """The largest part of the work's CPU time in which no other thread ran."""
    beats, is_over = [process_time()], threading.Event()

    def beat() -> None:
        while not is_over.wait(0.001):
            beats.append(process_time())

    thread = threading.Thread(target=beat)
    thread.start()
    work()
    beats.append(process_time())
    is_over.set()
    thread.join()
    return max(after - before for before, after in pairwise(beats)) / (beats[-1] - beats[0])


@pytest.mark.parametrize(
    "body",
    [
        b'"' + rb"\ud800" * 800_000 + b'"',
        '"'.encode("utf-16") + b"\x00\xdc" * 800_000 + '"'.encode("utf-16-le"),
    ],
    ids=["escapes", "utf-16"],
)
def test_other_threads_run_while_a_million_surrogates_are_read(body: bytes) -> None:
    # A busy machine may keep the other thread waiting, but not each time.
    assert any(longest_hold(lambda: read_json(body)) < 0.5 for _ in range(5))


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"Ren\xe9", "Ren\ufffd"),  # Latin-1
        (b"\x80 5", "\ufffd 5"),  # Windows-1252
        (b"caf\xc3", "caf\ufffd"),  # cut within a character
        (b"\xf0\x9f\x98 and on", "\ufffd and on"),
        (b"\xc0\xaf", "\ufffd\ufffd"),  # longer than need be
        (b"\xed\xa0\xbd\xed\xb8\x80", "😀"),  # as Java writes it
        (b"\xed\xa0\xbd", "\ufffd"),
        (b"\xff\\ud800", "\ufffd\ufffd"),
    ],
)
def test_an_invalid_utf8_byte_is_replaced_alone(raw: bytes, text: str) -> None:
    assert read_json(b'{"name": "%b", "age": 7}' % raw) == {"name": text, "age": 7}


def test_of_a_name_that_repeats_the_last_value_counts_however_the_body_is_read() -> None:
    twice = b'{"a": 1, "\\u0061": 2%b}'
    assert read_json(twice % b"") == {"a": 2}
    assert read_json(twice % b', "b": "\xff"') == {"a": 2, "b": "\ufffd"}


@pytest.mark.parametrize("item", [b"{}", b'"\\ud800"', b'"\xff"', b"NaN", b"1e999"])
def test_a_large_body_of_many_parts_leaves_the_collector_as_it_was(item: bytes) -> None:
    value = read_json(b"[%b]" % b",       ".join([item] * 40_000))
    assert isinstance(value, list)
    assert 0 < len(value) <= 40_000
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b" ", "the body is empty"),
        (b'{"a": }', "not JSON: Expecting value"),
        (b'{"a": "\xff}', "not JSON: Unterminated string"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 300 + b"]" * 300, "nested too deeply"),
    ],
    ids=["empty", "broken", "cut", "endless", "deep"],
)
def test_invalid_json_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason) as refusal:
        read_json(body)
    assert "\n" not in str(refusal.value)


@given(st.binary() | st.text().map(lambda text: json.dumps(text).encode()))
def test_whatever_is_read_can_be_written_again(body: bytes) -> None:
    try:
        value = read_json(body)
    except PayloadError:
        return
    assert read_json(json.dumps(value, allow_nan=False).encode()) == value


@pytest.mark.parametrize(
    ("value", "description"),
    [
        (None, "null"), (True, "the boolean true"), (-1, "the number -1"), (2.5, "the number 2.5"),
        (14155550134, "a large number"), (10**400, "a large number"), ("", "an empty string"),
        ("a", "a string of 1 character"), ("secret", "a string of 6 characters"),
        ([1], "a list of 1 item"), ({}, "an object with 0 keys"), (object(), "no JSON value"),
    ],
)  # fmt: skip
def test_a_value_is_described_without_being_told(value: Any, description: str) -> None:
    assert describe(value) == description

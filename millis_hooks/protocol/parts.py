"""Limits of the parts of a payload: they are counted in the bytes, before they become objects.

An empty object is two bytes of JSON and thirty times as much in memory, so ten megabytes of them
are too much for a small machine. Nearly all payloads are far below the limits and are read
unchanged. Of others the first parts of each field are read, and the omitted parts are reported; the
stored bytes keep everything.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from ..exceptions import PayloadError

#: Limits of items in these lists, and of keys in the metadata.
MOST: Mapping[str, int] = MappingProxyType(
    {"chat": 5_000, "function_calls": 1_000, "cost_breakdown": 200, "metadata": 2_000}
)
#: Limit of the tool calls of all messages.
MOST_TOOL_CALLS = 2_000
#: Commas, brackets and braces, also in texts, of a payload that is read unchanged.
FEW_PARTS = 50_000
#: Of a larger payload, limits for each field.
_FIELD_PARTS: Mapping[str, int] = MappingProxyType({"chat": 50_000})
_OTHER_FIELD_PARTS = 10_000
#: Limit of unknown fields of a larger payload.
_MOST_UNKNOWN = 500
#: Limit of all its fields; the names of known ones may repeat.
_MOST_FIELDS = 10_000
#: The limit of pydantic's reader.
MAX_DEPTH = 200

#: The fields of an end-of-call, which are read at any position.
KNOWN = frozenset(
    {"session_id", "call_id", "agent_id", "chat", "function_calls", "ts", "duration", "chars_used",
     "agent_config", "cost_breakdown", "voip", "recording", "metadata", "call_status",
     "error_message", "call_analysis", "call_metrics"}
)  # fmt: skip


#: Called with each field that is not read in full: its name, what it has, and what is read.
Note: TypeAlias = Callable[[str, str, str], object]


_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'


def _nested(levels: int) -> bytes:
    """Return the pattern of a list or object that holds others down to so many levels."""
    inner = b"|" + _nested(levels - 1) if levels else b""
    return rb'[\[{](?:[^"\[\]{}]++|' + _STRING + inner + rb")*+[\]}]"


# Items are skipped in a few large matches: one by one, a million take seconds.
_ITEM = rb'(?:[^"\[\]{},]++|' + _STRING + b"|" + _nested(3) + b")*+,"
_AT_ONCE = (1_000, 50, 1)
#: Deeper nesting is skipped bracket by bracket, at most so many.
_MOST_STEPS = 100_000
_UNKNOWN = rb'(?!\s*"(?:' + "|".join(sorted(KNOWN)).encode() + rb')"\s*:)' + _ITEM


def _several(item: bytes) -> dict[int, re.Pattern[bytes]]:
    return {count: re.compile(b"(?:%b){%d}+" % (item, count), re.DOTALL) for count in _AT_ONCE}


_ITEMS, _UNKNOWNS = _several(_ITEM), _several(_UNKNOWN)

#: A quotation mark alone begins a text that does not end.
_TOKEN = re.compile(rb"[\[\]{},]|" + _STRING + rb'|"', re.DOTALL)
_BEGINNING = re.compile(rb"\s*\{")
_KEY = re.compile(rb"\s*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_SCALAR = re.compile(_STRING + rb'|[^\s,\[\]{}"]++', re.DOTALL)
_AFTER = re.compile(rb"\s*([,}])\s*")


def within_limits(body: bytes | str, note: Note) -> bytes | str:
    """Return JSON without the parts above the limits, and call `note` for them.

    Raises `PayloadError` for what has many parts and is not JSON.
    """
    if count_parts(body) <= FEW_PARTS:
        return body
    text = _as_utf8(body)
    if _BEGINNING.match(text):
        return _Fields(text, note).read()
    begins_at = len(text) - len(text.lstrip())
    if text[begins_at : begins_at + 1] != b"[":
        return text  # one value, which costs no more than its text
    read, ends_at = _container(text, begins_at, "", note)
    return read + text[ends_at:]


def count_parts(body: bytes | str) -> int:
    """Count the characters that may begin a part, also in texts: an upper bound."""
    if isinstance(body, str):
        return body.count(",") + body.count("{") + body.count("[")
    return body.count(b",") + body.count(b"{") + body.count(b"[")


def _as_utf8(body: bytes | str) -> bytes:
    if isinstance(body, bytes):
        coding = json.detect_encoding(body)
        if coding == "utf-8":
            return body
        body = decoded(body, coding)
    return body.encode("utf-8", "surrogatepass")


#: In bytes or characters. Decoding or searching a piece holds the GIL; for a whole body that would
#: take seconds.
PIECE = 2**16


def decoded(body: bytes, encoding: str) -> str:
    """Return the text; each byte that is none becomes U+FFFD."""
    pieces = (body[at : at + PIECE] for at in range(0, len(body), PIECE))
    return "".join(codecs.iterdecode(pieces, encoding, "replace"))


class _Fields:
    """Reads the fields of an object in one pass."""

    def __init__(self, text: bytes, note: Note) -> None:
        self._text = text
        self._note = note
        self._unknown = 0

    def read(self) -> bytes:
        at, read, mark = _expect(_BEGINNING, self._text, 0).end(), list[bytes](), b","
        while mark == b",":
            if len(read) > _MOST_FIELDS:
                raise PayloadError("names of fields repeat thousands of times")
            at = self._pass_over_unknown(at)
            key = _expect(_KEY, self._text, at)
            value, at = self._value(key[1], key.end())
            if self._is_read(key[1]):
                read.append(key[1] + b":" + value)
            after = _expect(_AFTER, self._text, at)
            mark, at = after[1], after.end()
        if self._unknown > _MOST_UNKNOWN:
            found = f"{self._unknown:,} fields that are not known"
            self._note("", found, f"the first {_MOST_UNKNOWN:,} are read")
        return b"{" + b",".join(read) + b"}" + self._text[at:]

    def _pass_over_unknown(self, at: int) -> int:
        if self._unknown < _MOST_UNKNOWN:
            return at
        at, passed = _pass_over(_UNKNOWNS, self._text, at)
        self._unknown += passed
        return at

    def _value(self, key: bytes, at: int) -> tuple[bytes, int]:
        if self._text[at : at + 1] in (b"[", b"{"):
            return _container(self._text, at, _name(key), self._note)
        scalar = _expect(_SCALAR, self._text, at)
        return scalar[0], scalar.end()

    def _is_read(self, key: bytes) -> bool:
        if _name(key) in KNOWN:
            return True
        self._unknown += 1
        return self._unknown <= _MOST_UNKNOWN


def _container(text: bytes, at: int, field: str, note: Note) -> tuple[bytes, int]:
    """Return the part that is read of the list or object at an offset, and its end."""
    most, room = MOST.get(field), _FIELD_PARTS.get(field, _OTHER_FIELD_PARTS)
    kind = "a list of {:,} items" if text[at : at + 1] == b"[" else "an object with {:,} keys"
    read, kept_from, depth, items, is_noted = list[bytes](), at, 0, 0, False
    while True:
        token = _expect(_TOKEN, text, at)
        at, mark = token.end(), token[0]
        depth += (mark in b"[{") - (mark in b"]}")
        if not depth:
            return b"".join((*read, text[kept_from:at])), at
        if depth == MAX_DEPTH:
            raise PayloadError("nested too deeply")
        room -= mark in b",[{"
        items += mark == b"," and depth == 1
        if mark == b"," and (room <= 0 or (depth == 1 and items == most)):
            read.append(text[kept_from : token.start()])
            at, passed = _end_of(text, at)
            kept_from = at
            if depth == 1:
                note(field, kind.format(items + passed + 1), f"the first {items:,} are read")
            elif not is_noted:
                note(field, "too many parts within parts", "the first of them are read")
                is_noted = True


def _end_of(text: bytes, at: int) -> tuple[int, int]:
    """Return where the list or object ends that a place is in, and how many commas of its own come
    before that. Raises `PayloadError` where too much of it is deep."""
    commas = depth = 0
    for _ in range(_MOST_STEPS):
        at, passed = _pass_over(_ITEMS, text, at)
        token = _expect(_TOKEN, text, at)
        commas += 0 if depth else passed + (token[0] == b",")
        depth += (token[0] in b"[{") - (token[0] in b"]}")
        if depth < 0:
            return token.start(), commas
        at = token.end()
    raise PayloadError("too many parts are nested deeply")


def _pass_over(items: Mapping[int, re.Pattern[bytes]], text: bytes, at: int) -> tuple[int, int]:
    """Return the offset after all items of the kind, and their number."""
    passed = 0
    for count, several in items.items():
        while (found := several.match(text, at)) is not None:
            at, passed = found.end(), passed + count
    return at, passed


def _expect(pattern: re.Pattern[bytes], text: bytes, at: int) -> re.Match[bytes]:
    """Return the first match at or after an offset. Raises `PayloadError` if there is none."""
    found = pattern.search(text, at) if pattern is _TOKEN else pattern.match(text, at)
    if found is None or found[0] == b'"':
        raise PayloadError(f"not JSON: broken near byte {at:,}")
    return found


def _name(key: bytes) -> str:
    return key[1:-1].decode("utf-8", "replace")

"""Tolerant reading of JSON, query strings and single values from untrusted senders.

The parts of a payload are counted in the bytes, before they become objects: an empty object is two
bytes of JSON and thirty times as much in memory, so ten megabytes of them are too much for a small
machine. Nearly all payloads are far below the limits and are read unchanged. Of others the first
parts of each field are read, and the omitted parts are reported; the stored bytes keep everything.
"""

from __future__ import annotations

import codecs
import gc
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Any, TypeAlias, cast
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import JsonValue
from pydantic_core import from_json, to_json

from ..exceptions import PayloadError

#: Any JSON value.
Json: TypeAlias = JsonValue


@dataclass(frozen=True, slots=True)
class Problem:
    """A field that could not be read, described without its value."""

    field: str  # the wire's name; `chat[].content` for a field of a list's items
    found: str
    why: str

    def __str__(self) -> str:
        return f"{self.field}: {self.found}; {self.why}"


def describe(value: object) -> str:
    """Describe a JSON value by type and size, without its content."""
    match value:
        case None:
            return "null"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            return f"the number {value:.6g}" if abs(value) < 1e6 else "a large number"
        case str():
            return f"a string of {_counted(value, 'character')}" if value else "an empty string"
        case list():
            return f"a list of {_counted(value, 'item')}"
        case dict():
            return f"an object with {_counted(value, 'key')}"
    return "no JSON value"


def _counted(things: str | list[Any] | dict[str, Any], noun: str) -> str:
    return f"{len(things):,} {noun}" + ("" if len(things) == 1 else "s")


def _ignored(field: str, found: str, why: str) -> None:
    """Ignore omitted parts."""


def read_json(body: bytes | str, left_out: Note = _ignored) -> Json:
    """Read any JSON there is a way to read: UTF-16, a byte order mark, bytes of another encoding,
    lone surrogates, NaN.

    What is returned can be written as JSON again: bytes that are not UTF-8 and lone surrogates are
    U+FFFD, numbers that are not finite are null. Of a name that repeats in an object the last value
    counts. Of absurdly many parts the first are read, and `left_out` is told of the others. Raises
    `PayloadError`, and nothing else, for what cannot be read.
    """
    value = read_any_json(body, left_out)
    # 1e999 still becomes an infinity; writing and searching is faster than walking through.
    return _finite(value) if b"Infinity" in to_json(value, inf_nan_mode="constants") else value


def object_in(value: Json | bytes) -> dict[str, Json]:
    """Return an object of JSON, also where it is written as text; {} for anything else."""
    if isinstance(value, str | bytes):
        try:
            value = read_json(value)
        except PayloadError:
            return {}
    return value if isinstance(value, dict) else {}


def read_any_json(body: bytes | str, left_out: Note = _ignored) -> Json:
    """Read as `read_json` does, in half the time; infinite numbers stay."""
    with collecting_nothing() if len(body) > LARGE_BYTES else nullcontext():
        body = within_limits(body, left_out)
        try:
            return cast("Json", from_json(body, allow_inf_nan=False))
        except ValueError:
            return _read_odd_json(body)


#: Larger bodies are read away from the serving loop, in bytes.
LARGE_BYTES = 256 * 1024


def read_uncounted_json(body: bytes | str) -> Json:
    """Read as `read_any_json` does, with all the parts of a body that is not large. For a value
    that is dropped at once: to count its parts takes twice as long as to read them."""
    if len(body) <= LARGE_BYTES:
        with suppress(ValueError):
            return cast("Json", from_json(body, allow_inf_nan=False))
    return read_any_json(body)


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """Pause the garbage collector while much is read: it would traverse what has grown again and
    again, which for a large value takes several times as long as reading."""
    pauses = gc.isenabled()
    if pauses:
        gc.disable()
    try:
        yield
    finally:
        if pauses:
            gc.enable()


def _read_odd_json(body: bytes | str) -> Json:
    """Read JSON that breaks the standard, in linear time."""
    try:
        # Written and read again it has no lone surrogates: faster than to look at each text.
        plain = _joined(json.dumps(_loads(body), ensure_ascii=False, check_circular=False))
    except RecursionError:
        raise PayloadError("nested too deeply") from None
    except ValueError as error:
        raise PayloadError(f"not JSON: {error}" if body.strip() else "the body is empty") from None
    try:
        return cast("Json", from_json(plain))
    except ValueError:  # the only thing that `json` has no limit for
        raise PayloadError("nested too deeply") from None


def _loads(body: bytes | str) -> Any:
    text = body if isinstance(body, str) else _decoded(body)
    return json.loads(text, parse_constant=lambda _name: None, parse_int=_whole_number)


def _whole_number(digits: str) -> int | None:
    """Return a number; None, as for one that is not finite, where it has more digits than Python
    reads."""
    return int(digits) if len(digits) <= _MOST_DIGITS else None


_MOST_DIGITS = 4_300


def _decoded(body: bytes) -> str:
    """Return the text; each byte that is none becomes U+FFFD.

    Surrogates that are encoded one by one, as Java does, are kept to be joined: where there may be
    a million of them that takes seconds, so not in a large body.
    """
    encoding = json.detect_encoding(body)
    if len(body) <= LARGE_BYTES:
        with suppress(UnicodeDecodeError):
            return body.decode(encoding, "surrogatepass")
    return decoded(body, encoding)


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value


def _joined(text: str) -> str:
    """Join surrogates that pair up and replace those that do not."""
    with suppress(UnicodeEncodeError):
        text.encode()
        return text
    return "".join(map(_joined_piece, _pieces(text)))


def _joined_piece(text: str) -> str:
    return _LONE.sub("\ufffd", text).encode("utf-16", "surrogatepass").decode("utf-16")


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces, and no pair of surrogates."""
    at = 0
    while at < len(text):
        end = at + PIECE
        end += _PAIR.match(text, end - 1) is not None
        yield text[at:end]
        at = end


_PAIR = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")

#: Replaced beforehand: a decoder takes four times as long for each.
_LONE = re.compile(r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


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
    """Return the pattern of a list or object that holds others down to a number of levels."""
    inner = b"|" + _nested(levels - 1) if levels else b""
    return rb'[\[{](?:[^"\[\]{}]++|' + _STRING + inner + rb")*+[\]}]"


# Items are skipped in a few large matches: one by one, a million take seconds.
_ITEM = rb'(?:[^"\[\]{},]++|' + _STRING + b"|" + _nested(3) + b")*+,"
_AT_ONCE = (1_000, 50, 1)
#: The most brackets that are skipped one by one, because they are nested deeper.
_MOST_STEPS = 100_000
_UNKNOWN = rb'(?!\s*"(?:' + "|".join(sorted(KNOWN)).encode() + rb')"\s*:)' + _ITEM


@cache  # compiled when they are needed, which is hardly ever
def _several(item: bytes) -> dict[int, re.Pattern[bytes]]:
    return {count: re.compile(b"(?:%b){%d}+" % (item, count), re.DOTALL) for count in _AT_ONCE}


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
    if len(body) <= FEW_PARTS or count_parts(body) <= FEW_PARTS:
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
        at, passed = _pass_over(_UNKNOWN, self._text, at)
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
        at, passed = _pass_over(_ITEM, text, at)
        token = _expect(_TOKEN, text, at)
        commas += 0 if depth else passed + (token[0] == b",")
        depth += (token[0] in b"[{") - (token[0] in b"]}")
        if depth < 0:
            return token.start(), commas
        at = token.end()
    raise PayloadError("too many parts are nested deeply")


def _pass_over(item: bytes, text: bytes, at: int) -> tuple[int, int]:
    """Return the offset after all items of the kind, and their number."""
    passed = 0
    for count, several in _several(item).items():
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


#: No figure of a call is larger, and sums of many such ones are still numbers to any database.
MAX_FIGURE = 10**12
_MAX_IDENTIFIER_CHARS = 255


def identifier(value: object) -> str | None:
    """Return an id as text; None for what cannot be one."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    if not isinstance(value, str) or len(value) > _MAX_IDENTIFIER_CHARS:
        return None
    return value.strip() or None


def finite(value: object) -> float | None:
    """Return a number as a float; None for what is none, or larger than any figure of a call."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MAX_FIGURE else None


#: 5138-11-16 in seconds and 1973-03-03 in milliseconds: no call is near either.
_MILLISECONDS_FROM = 1e11
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2100, 1, 1, tzinfo=UTC)


def utc_time(ts: float | str | None) -> datetime | None:
    """Read Unix seconds, milliseconds or ISO 8601; None for what is not a time a call can have."""
    if ts is None:
        return None
    try:
        seconds = float(ts)
    except ValueError:
        return _iso_time(cast("str", ts))
    if abs(seconds) > _MILLISECONDS_FROM:
        seconds /= 1000
    plausible = _EARLIEST.timestamp() <= seconds < _LATEST.timestamp()
    return datetime.fromtimestamp(seconds, UTC) if plausible else None


def _iso_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.strip())
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment if _EARLIEST <= moment < _LATEST else None


#: What nearly all addresses are like; to take others apart takes ten times as long.
_PLAIN_URL = re.compile(r"https?://[a-z0-9.-]+/[A-Za-z0-9._~/+=-]*")


def web_url(url: str) -> str | None:
    """Return the address if a page may link to it: `http` or `https`, and nothing hidden in it."""
    if _PLAIN_URL.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    plain = url.isprintable() and " " not in url
    return url if plain and parts.scheme in {"http", "https"} and parts.netloc else None


_MAX_FIELDS = 1000


def read_query(query: bytes, problems: list[Problem]) -> list[tuple[str, str]]:
    """Split a query string; `urllib.parse.parse_qsl` takes three times as long for the same."""
    pairs = query.decode("utf-8", "replace").replace("+", " ").split("&", _MAX_FIELDS)
    if len(pairs) > _MAX_FIELDS:
        problems.append(Problem("query", f"more than {_MAX_FIELDS} fields", "the rest is left out"))
        del pairs[_MAX_FIELDS:]
    fields = []
    for pair in filter(None, pairs):
        name, _, value = pair.partition("=")
        fields.append((_unescape(name), _unescape(value)) if "%" in pair else (name, value))
    return fields


def _unescape(text: str) -> str:
    # `unquote` takes twice as long: it looks for what is not ASCII, which stays as it is here.
    return unquote_to_bytes(text).decode("utf-8", "replace")

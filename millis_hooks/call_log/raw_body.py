"""The column type of bodies: stored as received, or compressed.

New bodies are stored as they come, since compressing takes longer than writing and senders wait;
`upkeep/file.py` compresses old ones. `RawBytes` reads both alike.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Integer,
    LargeBinary,
    String,
    TypeDecorator,
    case,
    func,
    literal,
    type_coerce,
)
from sqlalchemy import cast as sql_cast

from .dialects import Either

#: No JSON begins like this. What follows is the body's length in ten digits, and its zlib stream.
MARK = b"\0zlib"
_DIGITS = 10
_HEAD_BYTES = len(MARK) + _DIGITS
#: A higher level takes twice the time for a twentieth less.
_LEVEL = 1


class RawBytes(TypeDecorator[bytes]):
    """Bytes that may be packed."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        return None if value is None else storable(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:
        return None if value is None else unpack(value)


def storable(body: bytes) -> bytes:
    """Return the body as it can be stored: packed only if it would be taken for a packed one."""
    return _packed(body) if body.startswith(MARK) else body


def pack(body: bytes) -> bytes | None:
    """Return the body as it is stored in less room; None if there is no less."""
    packed = _packed(body)
    return packed if len(packed) < len(body) else None


def unpack(stored: bytes) -> bytes:
    """Return the body as it was received."""
    if not stored.startswith(MARK):
        return stored
    with suppress(ValueError, zlib.error):
        length = int(stored[len(MARK) : _HEAD_BYTES])
        return zlib.decompressobj().decompress(stored[_HEAD_BYTES:], length)
    return stored  # of before there were packed ones


def is_packed(column: ColumnElement[bytes]) -> ColumnElement[bool]:
    """Say of a column of `RawBytes` that it is packed."""
    return func.substr(_as_stored(column), 1, len(MARK)) == literal(MARK, LargeBinary)


def length_of(column: ColumnElement[bytes]) -> ColumnElement[int]:
    """Return the length of what was received, without reading all of it."""
    stored = _as_stored(column)
    digits = func.substr(stored, len(MARK) + 1, _DIGITS)
    as_text = Either(sqlite=sql_cast(digits, String), postgresql=func.encode(digits, "escape"))
    told = sql_cast(as_text, Integer)
    return case((is_packed(column), told), else_=func.length(stored))


def _as_stored(column: ColumnElement[bytes]) -> ColumnElement[bytes]:
    return type_coerce(column, LargeBinary)


def _packed(body: bytes) -> bytes:
    return b"%b%010d%b" % (MARK, len(body), zlib.compress(body, _LEVEL))

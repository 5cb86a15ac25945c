"""Undoes gzip and deflate, by what a body is and not by what its header says of it.

Senders and proxies leave the header out, repeat it, or name a coding that is not there. Never more
bytes come out than allowed.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from .exceptions import PayloadError, PayloadTooLargeError

#: A body may be compressed so many times, as by a sender and by a proxy.
MOST_CODINGS = 2
#: Members of a gzip body (RFC 1952, 2.2). Some tools begin one for every 64 kB, or for every write.
MOST_MEMBERS = 200

_AUTO = 32 + zlib.MAX_WBITS  # a gzip or a zlib header
_RAW = -zlib.MAX_WBITS  # deflate without any, as some senders understand the word
_GZIP = b"\x1f\x8b"
_MAY_BE_RAW = re.compile(r"gzip|deflate")
#: JSON begins like this, in whatever encoding; a raw stream of a JSON object never does.
_JSON = re.compile(rb'[\s\0\xef\xbb\xbf\xfe\xff]*[{\["]')
_READ = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})


class Decoded(NamedTuple):
    """A body without its compression, and how many bytes behind that are left out."""

    body: bytes
    left_out: int = 0


def decode(body: bytes, content_encoding: str, *, max_bytes: int) -> Decoded:
    """Return `body` as it was before it was compressed; `content_encoding` is the HTTP header.

    The header is asked only about deflate without a header of its own, which nothing else tells.
    Raises `PayloadTooLargeError` over `max_bytes`, and `PayloadError` if it cannot be undone.
    """
    left_out = 0
    for _ in range(MOST_CODINGS):
        if _is_compressed(body):
            body, more = _inflate_members(body, max_bytes)
            left_out += more
        elif _MAY_BE_RAW.search(content_encoding.lower()) and not _JSON.match(body):
            return Decoded(_inflate_raw(body, max_bytes), left_out)
        else:
            return Decoded(body, left_out)
    if _is_compressed(body):
        raise PayloadError(f"compressed more than {MOST_CODINGS} times")
    return Decoded(body, left_out)


def unknown_coding(content_encoding: str) -> str | None:
    """Say which coding the header names that cannot be undone here, if it names one."""
    names = (name.strip() for name in content_encoding.lower().split(",", MOST_CODINGS))
    unknown = next((name for name in names if name not in _READ), None)
    return unknown and f"content-encoding {unknown[:40]!r} is not one we can read"


def _is_compressed(body: bytes) -> bool:
    """Tell by the first bytes: gzip's mark, or zlib's two with their check. JSON has neither."""
    if body.startswith(_GZIP):
        return True
    is_deflate = len(body) > 1 and body[0] & 0x8F == zlib.DEFLATED
    return is_deflate and int.from_bytes(body[:2]) % 31 == 0


def _inflate_raw(body: bytes, max_bytes: int) -> bytes:
    try:
        inflated, rest = _inflate(_RAW, body, max_bytes)
    except PayloadError:  # so it is something else
        return body
    return body if rest else inflated


def _inflate_members(body: bytes, max_bytes: int) -> Decoded:
    inflated, rest = _inflate(_AUTO, body, max_bytes)
    members = [inflated]
    while rest.startswith(_GZIP):
        if len(members) == MOST_MEMBERS:
            raise PayloadError(f"a gzip body of more than {MOST_MEMBERS} members")
        max_bytes -= len(members[-1])
        inflated, rest = _inflate(_AUTO, rest, max_bytes)
        members.append(inflated)
    return Decoded(b"".join(members), len(rest))


def _inflate(wbits: int, body: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    """Return what was compressed, and what follows it, unless that only fills up a block."""
    inflater = zlib.decompressobj(wbits)
    try:
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise PayloadError("the compressed body is damaged") from error
    if len(inflated) > max_bytes:
        raise PayloadTooLargeError
    if not inflater.eof:
        raise PayloadError("the compressed body ends too early")
    return inflated, inflater.unused_data.lstrip(b"\0\r\n")

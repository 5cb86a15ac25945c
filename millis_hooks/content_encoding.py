"""Undoes gzip and deflate, never to more bytes than allowed."""

from __future__ import annotations

import zlib

from .exceptions import PayloadError, PayloadTooLargeError

_AUTO = 32 + zlib.MAX_WBITS  # a gzip or a zlib header
_RAW = -zlib.MAX_WBITS  # deflate without any, as some senders understand the word


def decode(body: bytes, content_encoding: str, *, max_bytes: int) -> bytes:
    """Return `body` as it was before `content_encoding`, the value of the HTTP header.

    Raises `PayloadTooLargeError` over `max_bytes`, and `PayloadError` if it cannot be undone.
    """
    for coding in reversed(content_encoding.lower().split(",")):
        match coding.strip():
            case "" | "identity":
                pass
            case "gzip" | "x-gzip" | "deflate":
                body = _inflate(body, max_bytes)
            case other:
                raise PayloadError(f"content-encoding {other[:40]!r} is not one we can read")
    return body


def _inflate(body: bytes, max_bytes: int) -> bytes:
    try:
        return _inflate_as(_AUTO, body, max_bytes)
    except PayloadError:
        return _inflate_as(_RAW, body, max_bytes)


def _inflate_as(wbits: int, body: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(wbits)
    try:
        inflated = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise PayloadError("the compressed body is damaged") from error
    if len(inflated) > max_bytes:
        raise PayloadTooLargeError
    if not inflater.eof:
        raise PayloadError("the compressed body ends too early")
    if inflater.unused_data:
        raise PayloadError("something follows the compressed body")
    return inflated

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.content_encoding import decode
from millis_hooks.exceptions import PayloadError, PayloadTooLargeError

MESSAGE = b'{"session_id": "-Ox1"}'
LIMIT = 1000


def raw_deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(body) + deflater.flush()


@pytest.mark.parametrize("content_encoding", ["", "identity", " Identity , "])
def test_what_is_not_encoded_stays_as_it_is(content_encoding: str) -> None:
    assert decode(MESSAGE, content_encoding, max_bytes=LIMIT) == MESSAGE


@pytest.mark.parametrize(
    ("content_encoding", "body"),
    [
        ("gzip", gzip.compress(MESSAGE, mtime=0)),
        ("X-GZIP", gzip.compress(MESSAGE, mtime=0)),
        ("deflate", zlib.compress(MESSAGE)),
        ("deflate", raw_deflate(MESSAGE)),
        ("deflate, gzip", gzip.compress(zlib.compress(MESSAGE), mtime=0)),
        ("gzip,gzip", gzip.compress(gzip.compress(MESSAGE, mtime=0), mtime=0)),
    ],
)
def test_what_is_compressed_is_what_it_was(content_encoding: str, body: bytes) -> None:
    assert decode(body, content_encoding, max_bytes=LIMIT) == MESSAGE


@pytest.mark.parametrize("content_encoding", ["br", "zstd", "gzip, br", "x" * 10_000])
def test_an_encoding_we_do_not_know_is_a_payload_error(content_encoding: str) -> None:
    with pytest.raises(PayloadError, match="content-encoding") as error:
        decode(MESSAGE, content_encoding, max_bytes=LIMIT)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    "body", [b"", MESSAGE, gzip.compress(MESSAGE, mtime=0)[:-1], b"\x1f\x8b" + bytes(20)]
)
def test_a_damaged_body_is_a_payload_error(body: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(body, "gzip", max_bytes=LIMIT)


def test_what_follows_the_compressed_body_is_never_lost_in_silence() -> None:
    two_members = gzip.compress(MESSAGE, mtime=0) + gzip.compress(MESSAGE, mtime=0)
    with pytest.raises(PayloadError):
        decode(two_members, "gzip", max_bytes=LIMIT)


def test_exactly_the_limit_fits_and_one_byte_more_does_not() -> None:
    assert len(decode(gzip.compress(bytes(LIMIT)), "gzip", max_bytes=LIMIT)) == LIMIT
    with pytest.raises(PayloadTooLargeError):
        decode(gzip.compress(bytes(LIMIT + 1)), "gzip", max_bytes=LIMIT)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, raw_deflate])
def test_a_bomb_is_too_large(compress: object) -> None:
    assert callable(compress)
    with pytest.raises(PayloadTooLargeError):
        decode(compress(bytes(10_000_000)), "deflate", max_bytes=LIMIT)


@given(st.binary(), st.text() | st.sampled_from(["gzip", "deflate", "gzip, deflate"]))
def test_any_body_is_decoded_or_refused(body: bytes, content_encoding: str) -> None:
    try:
        decoded = decode(body, content_encoding, max_bytes=LIMIT)
    except (PayloadError, PayloadTooLargeError):
        return
    assert len(decoded) <= max(LIMIT, len(body))

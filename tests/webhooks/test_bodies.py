from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millis_hooks.exceptions import PayloadError, PayloadTooLargeError
from millis_hooks.webhooks.bodies import decode, unknown_coding

MESSAGE = b'{"session_id": "-Ox1"}'
LIMIT = 1000


def raw_deflate(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(body) + deflater.flush()


def gzipped(data: bytes) -> bytes:
    """Compress without the time, which would make other ids of tests in each process."""
    return gzip.compress(data, mtime=0)


GZIP = gzipped(MESSAGE)
UTF16 = MESSAGE.decode().encode("utf-16")


@pytest.mark.parametrize(
    "body", [MESSAGE, b"", b" [1]", b"\xef\xbb\xbf{}", UTF16, b'"{}"', b"no JSON"]
)
@pytest.mark.parametrize("content_encoding", ["", "identity", " Identity , ", "br", "zstd", "gzip"])
def test_what_is_not_compressed_stays_as_it_is(body: bytes, content_encoding: str) -> None:
    assert decode(body, content_encoding, max_bytes=LIMIT) == (body, 0)


@pytest.mark.parametrize(
    "body",
    [
        GZIP,
        GZIP + bytes(8),
        GZIP + b"\r\n",
        gzipped(GZIP),
        b"".join(gzipped(MESSAGE[at : at + 1]) for at in range(len(MESSAGE))),
        gzipped(MESSAGE[:9]) + b"\0\0" + gzipped(MESSAGE[9:]) + gzipped(b""),
        zlib.compress(MESSAGE),
        zlib.compress(MESSAGE, 1),
        zlib.compress(GZIP, 9),
        gzipped(zlib.compress(MESSAGE)),
    ],
)
@pytest.mark.parametrize(
    "content_encoding",
    ["", "identity", "gzip", "X-GZIP", "deflate", "br", "gzip, gzip", "x" * 9000],
)
def test_what_is_compressed_is_reported_by_what_it_is(body: bytes, content_encoding: str) -> None:
    assert decode(body, content_encoding, max_bytes=LIMIT) == (MESSAGE, 0)


@pytest.mark.parametrize(
    ("content_encoding", "body"),
    [
        ("deflate", raw_deflate(MESSAGE)),
        ("gzip", raw_deflate(MESSAGE)),
        ("Deflate, gzip", gzipped(raw_deflate(MESSAGE))),
    ],
)
def test_deflate_without_a_header_is_reported_by_that_of_http(
    content_encoding: str, body: bytes
) -> None:
    assert decode(body, content_encoding, max_bytes=LIMIT) == (MESSAGE, 0)


@pytest.mark.parametrize("compress", [gzipped, zlib.compress])
def test_what_is_compressed_three_times_is_not_undone(compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(PayloadError, match="compressed more than 2 times"):
        decode(compress(compress(compress(MESSAGE))), "gzip, gzip, gzip", max_bytes=LIMIT)


def test_the_length_of_the_header_costs_nothing() -> None:
    stored = zlib.compressobj(0, wbits=31)
    body = stored.compress(MESSAGE) + stored.flush()
    assert decode(body, ", ".join(["gzip"] * 5000), max_bytes=LIMIT) == (MESSAGE, 0)


@pytest.mark.parametrize(("content_encoding", "named"), [("br", "br"), ("gzip, zstd", "zstd")])
def test_a_coding_we_do_not_know_is_named(content_encoding: str, named: str) -> None:
    assert unknown_coding(content_encoding) == f"content-encoding '{named}' is not one we can read"


def test_unknown_content_codings_are_named_briefly() -> None:
    assert len(unknown_coding("x" * 10_000) or "") < 100
    assert unknown_coding("GZIP, deflate,") is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (GZIP[:-1], "ends too early"),
        (zlib.compress(MESSAGE)[:-3], "ends too early"),
        (b"\x1f\x8b" + bytes(20), "damaged"),
        (GZIP + GZIP[:-1], "ends too early"),
        (GZIP + b"\x1f\x8b is not a member", "damaged"),
        (gzipped(b"") * 201, "more than 200 members"),
    ],
)
def test_a_damaged_body_is_a_payload_error(body: bytes, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        decode(body, "gzip", max_bytes=LIMIT)


@pytest.mark.parametrize("compressed", [GZIP, GZIP + gzipped(b" "), zlib.compress(MESSAGE)])
@pytest.mark.parametrize("rest", [b"EOF", b"{}", b"\x1f", b"\0\0-"])
def test_what_follows_a_compressed_body_is_counted(compressed: bytes, rest: bytes) -> None:
    body, left_out = decode(compressed + rest, "", max_bytes=LIMIT)
    assert (body.strip(), left_out) == (MESSAGE, len(rest.lstrip(b"\0")))


def test_what_may_be_deflate_without_a_header_has_nothing_behind_it() -> None:
    body = raw_deflate(MESSAGE) + b"more"
    assert decode(body, "deflate", max_bytes=LIMIT) == (body, 0)


def test_members_share_the_limit() -> None:
    half = gzipped(bytes(LIMIT // 2))
    assert len(decode(half + half, "", max_bytes=LIMIT).body) == LIMIT
    with pytest.raises(PayloadTooLargeError):
        decode(half + half + gzipped(b"1"), "", max_bytes=LIMIT)


def test_exactly_the_limit_fits_and_one_byte_more_does_not() -> None:
    assert len(decode(gzipped(bytes(LIMIT)), "gzip", max_bytes=LIMIT).body) == LIMIT
    with pytest.raises(PayloadTooLargeError):
        decode(gzipped(bytes(LIMIT + 1)), "gzip", max_bytes=LIMIT)


@pytest.mark.parametrize("compress", [gzipped, zlib.compress, raw_deflate])
def test_a_bomb_is_too_large(compress: object) -> None:
    assert callable(compress)
    with pytest.raises(PayloadTooLargeError):
        decode(compress(bytes(10_000_000)), "deflate", max_bytes=LIMIT)


@given(st.binary(), st.text() | st.sampled_from(["gzip", "deflate", "gzip, deflate"]))
def test_any_body_is_decoded_or_refused(body: bytes, content_encoding: str) -> None:
    try:
        decoded, _ = decode(body, content_encoding, max_bytes=LIMIT)
    except (PayloadError, PayloadTooLargeError):
        return
    assert len(decoded) <= max(LIMIT, len(body))

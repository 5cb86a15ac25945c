"""Bodies of webhook requests: received whole or not at all, decompressed within bounds, and read.

Servers differ in what they do with a body that was cut off, or that offers another protocol: some
hand on an empty one. So what was announced is compared here with what arrived. Compression is
recognized by the body itself, because senders and proxies leave the header out, repeat it, or name
a coding that was not applied.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from starlette.types import Receive

from ..call_log.sanitize import clean_text
from ..exceptions import (
    ClientGoneError,
    IncompleteBodyError,
    PayloadError,
    PayloadTooLargeError,
    TooManyBodiesError,
)
from ..protocol.events import Identity, identify
from ..protocol.reading import LARGE_BYTES

#: The most times that a body may be compressed, for example by a sender and by a proxy.
MOST_CODINGS = 2
#: Members of a gzip body (RFC 1952, 2.2). Some tools begin one for every 64 kB, or for every write.
MOST_MEMBERS = 200

_AUTO = 32 + zlib.MAX_WBITS  # a gzip or a zlib header
_RAW = -zlib.MAX_WBITS  # deflate without any, as some senders understand the word
_GZIP = b"\x1f\x8b"
_MAY_BE_RAW = re.compile(r"gzip|deflate", re.IGNORECASE)
#: JSON begins like this, in whatever encoding; a raw stream of a JSON object never does.
_JSON = re.compile(rb'[\s\0\xef\xbb\xbf\xfe\xff]*[{\["]')
_CONTENT_TYPE_CHARS = 200
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
        elif content_encoding and _MAY_BE_RAW.search(content_encoding) and not _JSON.match(body):
            return Decoded(_inflate_raw(body, max_bytes), left_out)
        else:
            return Decoded(body, left_out)
    if _is_compressed(body):
        raise PayloadError(f"compressed more than {MOST_CODINGS} times")
    return Decoded(body, left_out)


def unknown_coding(content_encoding: str) -> str | None:
    """Return a message about a coding in the header that cannot be decoded, if there is one."""
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


#: What all bodies under way may take together, in bytes, unless a single one may be larger.
MOST_BYTES = 64 * 1024 * 1024

#: Headers that announce a body without its length.
_ANNOUNCES = (b"transfer-encoding", b"upgrade")
#: All that are asked about a body.
_OF_BODIES = frozenset({b"content-encoding", b"content-length", b"content-type", *_ANNOUNCES})


class Reading(NamedTuple):
    """A body without its compression, and whose call it is about; `reason` says why it names none,
    or what was left out."""

    body: bytes
    identity: Identity | None
    reason: str | None = None


def read_body(received: bytes, content_encoding: str = "", *, max_bytes: int) -> Reading:
    """Read a body by what it is; one that cannot be decompressed stays as it was received.

    Raises `PayloadTooLargeError` if it has more than `max_bytes` once decompressed.
    """
    try:
        body, left_out = decode(received, content_encoding, max_bytes=max_bytes)
    except PayloadError as error:
        return Reading(received, None, str(error))
    reason = f"left out: {left_out:,} bytes behind the compressed body" if left_out else None
    try:
        return Reading(body, identify(body), reason)
    except PayloadError as error:
        return Reading(body, None, unknown_coding(content_encoding) or str(error))


@dataclass(slots=True)
class Budget:
    """The bytes that all bodies under way may take together. For one event loop."""

    free_bytes: int = MOST_BYTES

    def share(self) -> Share:
        """Return the part of one request: nothing yet."""
        return Share(self)


class Share:
    """What one request takes of a budget, until it is left."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    def hold(self, size: int) -> None:
        """Hold this number of bytes in all; raises `TooManyBodiesError` if others hold them."""
        more = size - self._held
        if more > self._budget.free_bytes:
            raise TooManyBodiesError
        self._budget.free_bytes -= more
        self._held = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hold(0)


class Headers:
    """What the headers of a request say about its body."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in _OF_BODIES:
                self._values.setdefault(name, []).append(value)
        lengths = (value.strip() for value in self._all(b"content-length"))
        #: The announced lengths in bytes, without those that are not numbers.
        self.lengths = {int(length[:19]) for length in lengths if length.isdigit()}

    @property
    def content_encoding(self) -> str:
        """The named codings."""
        return b",".join(self._all(b"content-encoding")).decode("latin-1")

    @property
    def stored_content_type(self) -> str | None:
        """The first named content type, as it is stored."""
        named = self._all(b"content-type")
        text = named[0].decode("latin-1") if named else None
        return clean_text(text, max_chars=_CONTENT_TYPE_CHARS)

    def require_all(self, size: int) -> None:
        """Raise `IncompleteBodyError` unless `size` bytes are what was announced."""
        if self.lengths - {size}:
            announced = " and ".join(map(str, sorted(self.lengths)))
            raise IncompleteBodyError(
                f"Not stored: {size} bytes of the body arrived, and Content-Length says {announced}"
                f"{self._offer()}. The sender has to send it again."
            )
        if not size and any(self._all(name) for name in _ANNOUNCES):
            raise IncompleteBodyError(
                f"Not stored: the body did not arrive{self._offer()}. The sender has to send it "
                "again."
            )

    def _offer(self) -> str:
        if not self._all(b"upgrade"):
            return ""
        return (
            "; the request offers another protocol (Upgrade), and with that some servers lose the "
            "body: `millis-hooks run` does not"
        )

    def _all(self, name: bytes) -> Sequence[bytes]:
        return self._values.get(name, ())


class Bodies:
    """Receives bodies and reads them, large ones on a thread of their own."""

    def __init__(self, budget: Budget, *, max_bytes: int) -> None:
        """Take bodies up to `max_bytes`, also once decompressed."""
        self._budget = budget
        self._max_bytes = max_bytes
        # One is enough, and holds what many parts take in memory to once.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="millis-hooks-reading")

    def close(self) -> None:
        """End the thread. Blocks while it reads."""
        self._thread.shutdown()

    def share(self) -> Share:
        """Return the part of the budget of one request."""
        return self._budget.share()

    async def receive(self, headers: Headers, receive: Receive, share: Share) -> bytes:
        """Return the whole body.

        Raises `PayloadTooLargeError` over the limit, `TooManyBodiesError` over the share,
        `IncompleteBodyError` if more or less came than was announced, and `ClientGoneError`.
        """
        if max(headers.lengths, default=0) > self._max_bytes:
            raise PayloadTooLargeError
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError(f"The sender left after {size} bytes of the body.")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_bytes:
                raise PayloadTooLargeError
            share.hold(size)
            chunks.append(chunk)
            if not message.get("more_body", False):
                headers.require_all(size)
                return b"".join(chunks)

    async def read(self, received: bytes, content_encoding: str, share: Share) -> Reading:
        """Read as `read_body` does, large bodies off the event loop."""
        if len(received) <= LARGE_BYTES:
            most = min(LARGE_BYTES, self._max_bytes)
            # What is larger once decompressed is left to the thread, which has the real limit.
            with suppress(PayloadTooLargeError):
                return read_body(received, content_encoding, max_bytes=most)
        read = partial(read_body, received, content_encoding, max_bytes=self._max_bytes)
        reading = await asyncio.get_running_loop().run_in_executor(self._thread, read)
        share.hold(len(reading.body))
        return reading

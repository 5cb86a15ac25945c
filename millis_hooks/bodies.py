"""Bodies of webhooks: taken whole or not at all, within bounds, and read by what they are.

Servers differ in what they do with a body that was cut off, or that came with the offer of another
protocol: some hand on an empty one. So what was announced is compared with what came, here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from starlette.types import Receive

from .content_encoding import decode, unknown_coding
from .events import Identity, identify
from .exceptions import (
    ClientGoneError,
    IncompleteBodyError,
    PayloadError,
    PayloadTooLargeError,
    TooManyBodiesError,
)
from .wire import LARGE_BYTES

#: What all bodies under way may take together, in bytes, unless a single one may be larger.
MOST_BYTES = 64 * 1024 * 1024

#: What announces a body whose length nobody told.
_ANNOUNCES = (b"transfer-encoding", b"upgrade")


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
    told = f"left out: {left_out:,} bytes behind the compressed body" if left_out else None
    try:
        return Reading(body, identify(body), told)
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
        """Take so many bytes in all; raises `TooManyBodiesError` if others have taken them."""
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
    """What the headers of a request say of its body."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._headers = list(headers)

    @property
    def content_encoding(self) -> str:
        """All codings that are named."""
        return b",".join(self._all(b"content-encoding")).decode("latin-1")

    @property
    def content_type(self) -> str | None:
        """The first content type that is named."""
        named = self._all(b"content-type")
        return named[0].decode("latin-1") if named else None

    @property
    def lengths(self) -> set[int]:
        """The lengths that are told, in bytes, leaving out what is no number."""
        told = (value.strip() for value in self._all(b"content-length"))
        return {int(length[:19]) for length in told if length.isdigit()}

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

    def _all(self, name: bytes) -> list[bytes]:
        return [value for each, value in self._headers if each == name]


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
        """Return what a request may hold its body in."""
        return self._budget.share()

    async def receive(self, headers: Headers, receive: Receive, share: Share) -> bytes:
        """Return the whole body.

        Raises `PayloadTooLargeError` over the limit, `TooManyBodiesError` over the share,
        `IncompleteBodyError` if more or less came than was announced, and `ClientGoneError`.
        """
        if any(length > self._max_bytes for length in headers.lengths):
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
        """Read as `read_body` does, without keeping the event loop from anybody."""
        read = partial(read_body, received, content_encoding)
        if len(received) <= LARGE_BYTES:
            # What is larger once decompressed is left to the thread, which has the real limit.
            with suppress(PayloadTooLargeError):
                return read(max_bytes=min(LARGE_BYTES, self._max_bytes))
        large = partial(read, max_bytes=self._max_bytes)
        reading = await asyncio.get_running_loop().run_in_executor(self._thread, large)
        share.hold(len(reading.body))
        return reading

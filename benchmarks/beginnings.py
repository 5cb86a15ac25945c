"""Delivers calls one at a time, and reads when their handlers began."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from .load import END_OF_CALL, HEADERS, Server

#: The file into which the application of `noting` writes.
NOTES = "begun"
#: A handler that has not begun after so long is not waited for.
PATIENCE_S = 60
POLL_S = 0.001


@dataclass(frozen=True)
class Beginnings:
    """When the handlers of each session began, in nanoseconds since the epoch."""

    began_ns: dict[str, int]
    again: int  # handlers that began for a session that had one

    @property
    def per_s(self) -> float:
        """How many began in a second, from the first to the last."""
        times = self.began_ns.values()
        return len(times) / ((max(times) - min(times)) / 1e9)


@dataclass(frozen=True)
class Notes:
    """What the handlers of a running or stopped service have noted."""

    path: Path

    def read(self) -> Beginnings:
        lines = [line.split() for line in self.path.read_text().splitlines()]
        times = Counter(session for session, _ in lines)
        began_ns = {session: int(at) for session, at in reversed(lines)}  # the first counts
        return Beginnings(began_ns, times.total() - len(times))

    def wait_for(self, count: int) -> None:
        """Return once so many handlers have begun; raises TimeoutError."""
        end = time.monotonic() + PATIENCE_S
        seen = 0
        with self.path.open("rb") as file:
            while (seen := seen + file.read().count(b"\n")) < count:
                if time.monotonic() > end:
                    raise TimeoutError(f"{seen} of {count} handlers have begun")
                time.sleep(POLL_S)


@dataclass
class Caller:
    """Delivers one call after the other on a connection of its own."""

    server: Server
    body: bytes
    #: When the 200 of each session was read, in nanoseconds since the epoch.
    acknowledged_ns: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._connection = HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)

    def deliver(self) -> None:
        """Deliver a call and wait for its 200; raises RuntimeError for another answer."""
        session = f"-Alone-{len(self.acknowledged_ns):08d}"
        body = self.body.replace(b"SESSION", session.encode(), 1)
        self._connection.request("POST", END_OF_CALL, body, HEADERS)
        response = self._connection.getresponse()
        response.read()
        acknowledged_ns = time.time_ns()
        if response.status != 200:
            raise RuntimeError(f"a delivery was answered with {response.status}")
        self.acknowledged_ns[session] = acknowledged_ns

    def delays_ms(self, beginnings: Beginnings) -> list[float]:
        """Return how long after its 200 each call's handler began; infinity if it did not."""
        return [
            (beginnings.began_ns.get(session, float("inf")) - acknowledged_ns) / 1e6
            for session, acknowledged_ns in self.acknowledged_ns.items()
        ]

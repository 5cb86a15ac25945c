"""Turns stored deliveries into calls, after they were acknowledged.

A stored delivery is its own to-do: its id stays in the inbox until one transaction has written
everything derived from it. So a crash at any moment loses nothing, doing the work twice changes
nothing, and a delivery that cannot be read holds up nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Row, func, select

from ..exceptions import AnotherAgentError, StorageOutageError
from ..failures import describe_failure
from .database import Database
from .derived import give_up, save
from .digest import Digest, RunsFor, digest_delivery
from .news import Change
from .tables import deliveries, inbox
from .writer import Writer

logger = logging.getLogger("millis_hooks.call_log")

#: Deliveries that go into one transaction, by number and by size: small, because every
#: acknowledgement that arrives meanwhile waits for it.
CHUNK_DELIVERIES = 50
CHUNK_BYTES = 2 * 1024 * 1024
#: In a flood acknowledgements and fallbacks come first: after each chunk processing rests up to
#: this many times as long as it took, and less the more there is to do.
REST = 25
#: And no longer than this: what took long may have waited for the database.
LONGEST_REST_S = 3.0
#: So many deliveries in the inbox halve the rest.
LARGE_BACKLOG = 50_000
#: How long a process leaves the oldest deliveries to another that has just taken them.
ELSEWHERE_S = 0.05
#: Where several came at once, how long the next may gather: a chunk of two takes half as long as a
#: chunk of fifty.
GATHER_S = 0.05
#: The inbox is looked through at least this often, whoever filled it.
SWEEP_S = 5.0
#: What the last process left in it waits this long: who calls first should not wait for that.
FIRST_SWEEP_S = 0.2


class Processor:
    """Empties the inbox on a thread of its own."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        *,
        runs_for: RunsFor,
        own_numbers: frozenset[str] = frozenset(),
        on_runs: Callable[[], None] = lambda: None,
        tell: Callable[[Iterable[Change]], None] = lambda changes: None,
    ) -> None:
        """Ask `runs_for` which handlers want a call; call `on_runs` when runs were written.

        What has changed is passed to `tell`.
        """
        self._database = database
        self._writer = writer
        self._runs_for = runs_for
        self._own_numbers = own_numbers
        self._on_runs = on_runs
        self._tell = tell
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._backlog = 0  # at most so many deliveries wait behind the chunk
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-processing", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that something may have come into the inbox."""
        if not self._wanted.is_set():
            self._wanted.set()

    def close(self) -> None:
        """Finish the chunk at hand; the rest waits in the inbox for the next start."""
        self._closing.set()
        self._wanted.set()
        self._thread.join()

    def process_chunk(self) -> int:
        """Process the oldest deliveries and return how many there were."""
        chunk = self._read_chunk()
        if chunk and not self.process(chunk):
            self._closing.wait(ELSEWHERE_S)
        return len(chunk)

    def process(self, chunk: Sequence[Row[Any]]) -> int:
        """Process these rows of `deliveries`, as far as they wait in the inbox and no other process
        is at them: none of a session that another of them is of. Return how many these were."""
        try:
            return self._process(chunk)
        except StorageOutageError:  # none of them is to blame
            raise
        except Exception:  # one of them holds the others up
            return sum(map(self._process_alone, chunk))

    def _process(self, chunk: Sequence[Row[Any]]) -> int:
        if not chunk:
            return 0
        refused: list[int] = []
        read = [(row, self._digest(row, refused)) for row in chunk]
        digests = [digest for _, digest in read if digest]
        done = [row.id for row in chunk]
        taken = self._writer.run(lambda connection: save(connection, digests, done, refused))
        self._tell(_change(row, digest) for row, digest in read)
        if any(digest.handlers for digest in digests):
            self._on_runs()
        return taken

    def _process_alone(self, row: Row[Any]) -> int:
        """Process one delivery, or note why it cannot be; raise only if nothing can be written."""
        try:
            return self._process([row])
        except StorageOutageError:
            raise
        except Exception as error:
            failure = describe_failure(error)
            logger.error("delivery %d could not be processed\n%s", row.id, failure.block)
            self._writer.run(lambda connection: give_up(connection, row.id, str(failure)))
            self._tell([_change(row, None)])
            return 1

    def _run(self) -> None:
        sweep_s = FIRST_SWEEP_S
        while not self._closing.is_set():
            self._wanted.wait(timeout=sweep_s)
            self._wanted.clear()
            sweep_s = SWEEP_S
            try:
                self._empty_inbox()
            except Exception as error:  # whatever it is: the thread must live
                logger.error("processing waits up to %s s: %s", SWEEP_S, describe_failure(error))

    def _empty_inbox(self) -> None:
        """Process chunk after chunk; in a flood, leave most of the time to those who wait."""
        while not self._closing.is_set():
            began = time.perf_counter()
            done = self.process_chunk()
            if not done:
                return
            if self._writer.is_flooded:
                rest = REST / (1 + self._backlog / LARGE_BACKLOG)
                took_s = time.perf_counter() - began
                self._closing.wait(min(took_s * rest, LONGEST_REST_S))
            elif done > 1 and not self._backlog:
                self._closing.wait(GATHER_S)

    def _read_chunk(self) -> list[Row[Any]]:
        """Take the oldest, bounded in bytes, and no session twice: their order matters."""
        oldest = (
            select(deliveries)
            .join(inbox, inbox.c.delivery_id == deliveries.c.id)
            .order_by(inbox.c.delivery_id)
            .limit(CHUNK_DELIVERIES)
        )
        chunk: list[Row[Any]] = []
        sessions: set[str] = set()
        size = 0
        with self._database.reader.connect() as connection:
            with connection.execution_options(yield_per=1).execute(oldest) as found:
                for row in found:
                    if row.session_id in sessions:
                        break
                    if row.session_id is not None:
                        sessions.add(row.session_id)
                    chunk.append(row)
                    size += len(row.body)
                    if size > CHUNK_BYTES:
                        break
            newest = connection.scalar(select(func.max(inbox.c.delivery_id)))
        self._backlog = newest - chunk[-1].id if chunk and newest else 0
        return chunk

    def _digest(self, row: Row[Any], refused: list[int]) -> Digest | None:
        try:
            return digest_delivery(row, own_numbers=self._own_numbers, runs_for=self._runs_for)
        except AnotherAgentError:
            refused.append(row.id)
            return None


def _change(row: Row[Any], digest: Digest | None) -> Change:
    if digest is None:
        return Change("unparsed", row.session_id)
    return Change("ended" if digest.ends_call else "started", row.session_id)

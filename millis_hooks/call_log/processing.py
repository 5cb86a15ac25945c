"""Turns stored deliveries into calls, after they were acknowledged.

A stored delivery is its own to-do: its id stays in the inbox until one transaction has written
everything derived from it. So a crash at any moment loses nothing, repeating the work changes
nothing, and a delivery that cannot be read delays no other. Deliveries to be read again wait in
`rereads`, and have their turn when the inbox is empty.

On SQLite deliveries are read before the writer's transaction, which finds out whether they are
still as they were read. On PostgreSQL one transaction of its own claims, reads and writes: what is
claimed, by delivery and by session, is left alone by other processes, and none waits for another.

A delivery that may have ended a process is read alone, and its attempt is counted before: large
ones, and those that another process left behind. After two attempts that no process survived, it
is set aside. One process at a time reads such deliveries, so that none is taken for poison while it
is being read. A process that was just started leaves what another died of for a while, so that the
same delivery is not at hand whenever processes end early for another reason. All others are read
without a count: a process that dies of one leaves it behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Table, bindparam, func, select, update

from ..masking.error_report import describe_failure
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from ..protocol.reading import LARGE_BYTES, collecting_nothing
from .call_ends import ReadEnds, RunsFor
from .call_rows import QUEUES, give_up, write
from .change_feed import Change
from .database import Database
from .dialects import is_outage
from .locks import FileHolder
from .projection import Digest, digest_delivery
from .raw_body import length_of
from .sessions import SessionReader
from .statements import Prepared, among
from .tables import deliveries, inbox, rereads
from .writer import Writer

#: Any number that no other program takes for its advisory locks.
_READING_LOCK = 7_203_145_113_262_077_932


_TRY_LOCK = select(func.pg_try_advisory_xact_lock(_READING_LOCK))

logger = logging.getLogger("millis_hooks.call_log")

#: The most deliveries that go into one transaction, by number and by size. The more there are, the
#: less each costs; but an acknowledgement that arrives meanwhile waits for it, so there are fewer
#: where it takes longer than this, and in a flood, down to so few.
CHUNK_DELIVERIES = 400
CHUNK_BYTES = 2 * 1024 * 1024
CHUNK_S = 0.03
LEAST_DELIVERIES = 50
#: In a flood acknowledgements and fallbacks come first: after each chunk processing rests up to
#: this many times as long as it took, and less the more there is to do.
REST = 25
#: And no longer than this: what took long may have waited for the database.
LONGEST_REST_S = 3.0
#: The number of deliveries in the inbox that halves the rest.
LARGE_BACKLOG = 50_000
#: How long a process leaves the oldest deliveries to another that has just taken them.
ELSEWHERE_S = 0.05
#: Where several came at once, how long the next may gather: a chunk of two takes half as long as a
#: chunk of fifty.
GATHER_S = 0.05
#: The inbox is read at least this often: other processes fill it too.
SWEEP_S = 5.0
#: Deliveries left by the last process wait this long, so that they do not delay the first calls.
FIRST_SWEEP_S = 0.2
#: How long a process leaves a delivery whose reading may have ended another.
SETTLES_S = 1.0
#: Attempts to read a delivery, all of which ended the process, after which it is set aside.
MOST_ATTEMPTS = 2
_SET_ASIDE = f"set aside: the process ended {MOST_ATTEMPTS} times while this was read"


class Processor:
    """Empties the inbox on a thread of its own."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        *,
        runs_for: RunsFor,
        own_numbers: frozenset[str] = frozenset(),
        mask: MaskPolicy = SECRETS_ALONE,
        hears_of_changes: Callable[[str], bool] = lambda name: False,
        on_runs: Callable[[], None] = lambda: None,
        tell: Callable[[Iterable[Change]], None] = lambda changes: None,
        read_ends: ReadEnds | None = None,
    ) -> None:
        """Ask `runs_for` for the handlers of a call, and `hears_of_changes` of each whether it is
        called again when a later end changes the call. What `mask` hides cannot be searched for.

        `on_runs` is called when runs were written, and `tell` with the changes of each chunk.
        `read_ends` gets the end-of-calls of new runs.
        """
        self._database = database
        self._writer = writer
        self._own_numbers = own_numbers
        self._hears_of_changes = hears_of_changes
        self._on_runs = on_runs
        self._tell = tell
        self._read_ends = read_ends
        self._sessions = SessionReader(self._digest, runs_for, mask)
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._size = 2 * LEAST_DELIVERIES  # of the next chunk, at most
        self._backlog = 0  # the most deliveries that wait behind the chunk
        self._turns = FileHolder(Path(f"{database.path}-reading")) if database.is_file else None
        self._left_over = self._oldest()
        self._survived: set[int] = set()
        self._settled_at = 0.0  # in seconds of the monotonic clock
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-processing", daemon=True
        )

    def start(self) -> None:
        self._settled_at = time.monotonic() + SETTLES_S
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

    def process_chunk(self, queue: Table = inbox) -> int:
        """Process the oldest deliveries of a queue and return how many there were."""
        waiting: list[Row[Any]] = []
        chunk: list[int] = []

        def choose(connection: Connection) -> Sequence[int]:
            waiting.extend(_oldest(queue)(connection, {"limit": self._limit()}))
            chunk.extend(_first_of(waiting, self._is_suspect))
            return chunk

        try:
            taken = self._transact(queue, choose)
        except Exception as error:
            if is_outage(error) or not chunk:  # none of them is to blame
                raise
            taken = self._process_each(queue, chunk)
        self._backlog = waiting[0].newest - waiting[-1].id if waiting else 0
        if waiting and not chunk:
            return self._process_first(queue, waiting)
        if chunk and not taken:
            self._closing.wait(ELSEWHERE_S)
        return len(chunk)

    def _limit(self) -> int:
        most = LEAST_DELIVERIES if self._writer.is_flooded else self._size
        return min(most, CHUNK_DELIVERIES)

    def _process_first(self, queue: Table, waiting: Sequence[Row[Any]]) -> int:
        """Process the first alone; where that has to wait, all that need not be alone."""
        first = waiting[0]
        may_be_poison = 0 < first.attempts < MOST_ATTEMPTS and first.id not in self._survived
        waits = may_be_poison and time.monotonic() < self._settled_at
        if not waits and self._process_suspect(queue, first):
            return 1
        others = [each.id for each in waiting if not self._is_suspect(each)]
        self.process(others, queue)
        return len(others)

    def process(self, ids: Sequence[int], queue: Table = inbox) -> int:
        """Process these deliveries, as far as they wait in the queue and no other process is at
        them. Return how many these were."""
        try:
            return self._process_claimed(queue, ids)
        except Exception as error:
            if is_outage(error):
                raise
            return self._process_each(queue, ids)

    def _process_claimed(self, queue: Table, ids: Sequence[int]) -> int:
        return self._transact(
            queue,
            lambda connection: [row.delivery_id for row in _these(queue)(connection, {"ids": ids})],
        )

    def _process_each(self, queue: Table, ids: Sequence[int]) -> int:
        """Process deliveries one by one, and note which cannot be: it held the others up."""
        taken = 0
        for delivery_id in ids:
            try:
                taken += self._process_claimed(queue, [delivery_id])
            except Exception as error:
                if is_outage(error):
                    raise
                self._give_up(delivery_id, error)
                taken += 1
        return taken

    @collecting_nothing()  # what is read goes at the end: until then there is nothing to collect
    def _transact(self, queue: Table, choose: Callable[[Connection], Sequence[int]]) -> int:
        """Read the deliveries that are chosen, and write what they come to; return how many were
        taken out of the queue."""
        is_file = self._database.is_file
        engine = self._database.reader if is_file else self._database.writer
        with engine.begin() as connection:
            ids = choose(connection)
            if not ids:
                return 0
            batch = self._sessions.read(connection, ids, is_again=queue is rereads)
            if self._read_ends is not None:
                batch.hand_on(self._read_ends)
            work = partial(write, batch=batch, hears_of_changes=self._hears_of_changes)
            began = time.perf_counter()
            written = self._writer.run(work) if is_file else work(connection)
            self._size = _next_size(self._size, len(ids), time.perf_counter() - began)
        self._tell(batch.changes)
        if written.has_runs:
            self._on_runs()
        return written.deliveries

    def _give_up(self, delivery_id: int, error: BaseException) -> None:
        failure = describe_failure(error)
        logger.error("delivery %d could not be processed\n%s", delivery_id, failure.block)
        self._writer.run(partial(give_up, delivery_id=delivery_id, reason=str(failure)))
        self._tell([Change("unparsed")])

    def _run(self) -> None:
        sweeps_s = chain((FIRST_SWEEP_S, SETTLES_S), repeat(SWEEP_S))
        while not self._closing.is_set():
            is_called = self._wanted.wait(timeout=next(sweeps_s))
            self._wanted.clear()
            try:
                if not is_called:  # these were left by another process
                    self._left_over |= self._oldest()
                self._empty_queues()
            except Exception as error:  # of any kind: the thread must live
                logger.error("processing waits up to %s s: %s", SWEEP_S, describe_failure(error))

    def _empty_queues(self) -> None:
        """Process chunk after chunk; in a flood, leave most of the time to those who wait."""
        while not self._closing.is_set():
            began = time.perf_counter()
            done = self.process_chunk()
            is_again = not done
            done = done or self.process_chunk(rereads)
            if not done:
                return
            took_s = time.perf_counter() - began
            if self._writer.is_flooded:
                rest = REST / (1 + self._backlog / LARGE_BACKLOG)
                self._closing.wait(min(took_s * rest, LONGEST_REST_S))
            elif is_again:
                self._closing.wait(min(took_s, LONGEST_REST_S))
            elif done > 1 and not self._backlog:
                self._closing.wait(GATHER_S)

    def _process_suspect(self, queue: Table, waiting: Row[Any]) -> bool:
        """Read alone what may end the process, and count that before; return False if another
        process is at such a one."""
        with self._turn() as is_ours:
            if not is_ours:
                return False
            if waiting.id not in self._survived and not self._count_attempt(queue, waiting):
                return True
            try:
                taken = self.process([waiting.id], queue)
            except MemoryError as error:
                self._give_up(waiting.id, error)
                taken = 1
            finally:
                self._survived.add(waiting.id)
            if not taken:  # another process is at it, and may yet fail
                self._writer.run(partial(_set_attempts, queue, waiting.id, 0))
        self._left_over.discard(waiting.id)
        self._survived.discard(waiting.id)
        return True

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Say whether it is this process's turn, for as long as it is entered; it ends with the
        process."""
        if self._turns is None:
            with self._database.reader.connect() as connection:
                yield bool(connection.scalar(_TRY_LOCK))
            return
        is_ours = self._turns.hold()
        try:
            yield is_ours
        finally:
            if is_ours:
                self._turns.let_go()

    def _count_attempt(self, queue: Table, waiting: Row[Any]) -> bool:
        """Return True once the attempt is counted; False if it was set aside or does not wait."""
        seen: list[int] = []  # a transaction whose COMMIT was lost may be repeated, and counts once

        def count(connection: Connection) -> int | None:
            is_it = queue.c.delivery_id == waiting.id
            before: int | None = connection.scalar(
                select(queue.c.attempts).where(is_it).with_for_update()
            )
            if before is None:
                return None
            seen.append(before)
            before = seen[0]
            if before < MOST_ATTEMPTS:
                _set_attempts(queue, waiting.id, before + 1, connection)
            else:
                give_up(connection, waiting.id, _SET_ASIDE)
            return before

        before = self._writer.run(count)
        if before is not None and before >= MOST_ATTEMPTS:
            logger.error("delivery %d was %s", waiting.id, _SET_ASIDE)
            self._tell([Change("unparsed", waiting.session_id)])
        return before is not None and before < MOST_ATTEMPTS

    def _is_suspect(self, waiting: Row[Any]) -> bool:
        return (
            waiting.attempts > 0
            or waiting.id in self._left_over
            or waiting.body_bytes > LARGE_BYTES
        )

    def _oldest(self) -> set[int]:
        """Return the deliveries that another process may have been at."""
        oldest = (select(each.c.delivery_id).order_by(each.c.delivery_id) for each in QUEUES)
        with self._database.reader.connect() as connection:
            return {
                id_ for each in oldest for id_ in connection.scalars(each.limit(CHUNK_DELIVERIES))
            }

    def _digest(self, row: Row[Any]) -> Digest:
        return digest_delivery(row, own_numbers=self._own_numbers)


@cache
def _oldest(queue: Table) -> Prepared:
    """Select what is known of the oldest deliveries of a queue without reading them. On PostgreSQL
    those are claimed that no other process has."""
    return Prepared(
        select(
            deliveries.c.id,
            deliveries.c.session_id,
            queue.c.attempts,
            length_of(deliveries.c.body).label("body_bytes"),
            select(func.max(queue.c.delivery_id)).scalar_subquery().label("newest"),
        )
        .join(queue, queue.c.delivery_id == deliveries.c.id)
        .order_by(queue.c.delivery_id)
        .limit(bindparam("limit"))
        .with_for_update(of=queue, skip_locked=True)
    )


@cache
def _these(queue: Table) -> Prepared:
    """Select deliveries of a queue, and claim them as `_oldest` does."""
    waiting = select(queue.c.delivery_id).where(among(queue.c.delivery_id, "ids"))
    waiting = waiting.order_by(queue.c.delivery_id)
    return Prepared(waiting.with_for_update(of=queue, skip_locked=True))


def _next_size(size: int, taken: int, wrote_s: float) -> int:
    """Return how many deliveries the next chunk may have, by how long it took to write this one."""
    if wrote_s > CHUNK_S:
        size = max(size // 2, LEAST_DELIVERIES)
    elif wrote_s < CHUNK_S / 2 and taken >= size:
        size *= 2
    return min(size, CHUNK_DELIVERIES)


def _set_attempts(queue: Table, delivery_id: int, attempts: int, connection: Connection) -> None:
    is_it = queue.c.delivery_id == delivery_id
    connection.execute(update(queue).where(is_it).values(attempts=attempts))


def _first_of(waiting: Sequence[Row[Any]], is_suspect: Callable[[Row[Any]], bool]) -> list[int]:
    """Choose the oldest up to the first that has to be read alone, bounded in bytes."""
    chosen: list[int] = []
    size = 0
    for each in waiting:
        if size > CHUNK_BYTES or is_suspect(each):
            break
        chosen.append(each.id)
        size += each.body_bytes
    return chosen

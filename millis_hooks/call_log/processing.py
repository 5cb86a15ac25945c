"""Turns stored deliveries into calls, after they were acknowledged.

A stored delivery is its own to-do: its id stays in the inbox until one transaction has written
everything derived from it. So a crash at any moment loses nothing, repeating the work changes
nothing, and a delivery that cannot be read delays no other.

A delivery that may have ended a process is read alone, and its attempt is counted before: large
ones, and those that another process left behind. After two attempts that no process survived, it
is set aside. One process at a time reads such deliveries, so that none is taken for poison while it
is being read. All others are read without a count: a process that dies of one leaves it behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, Row, func, select, update

from ..exceptions import AnotherAgentError
from ..masking.error_report import describe_failure
from ..protocol.reading import LARGE_BYTES
from .call_ends import RunsFor
from .call_rows import give_up, save
from .change_feed import Change
from .database import Database
from .dialects import is_outage
from .locks import FileHolder
from .projection import Digest, digest_delivery
from .raw_body import length_of
from .rederive import Changes
from .tables import deliveries, inbox
from .writer import Writer

#: Says whether it is this process's turn, for as long as it is entered; it ends with the process.
Turn: TypeAlias = Callable[[], AbstractContextManager[bool]]

#: Any number that no other program takes for its advisory locks.
_READING_LOCK = 7_203_145_113_262_077_932


def turns_on(database: Database) -> Turn:
    """Return how the processes on a call log take turns."""
    if database.is_file:
        holder = FileHolder(Path(f"{database.path}-reading"))
        return lambda: _with_file(holder)
    return lambda: _with_session(database.reader)


@contextmanager
def _with_file(holder: FileHolder) -> Iterator[bool]:
    is_ours = holder.hold()
    try:
        yield is_ours
    finally:
        if is_ours:
            holder.let_go()


@contextmanager
def _with_session(reader: Engine) -> Iterator[bool]:
    with reader.connect() as connection:
        yield _lock(connection)


def _lock(connection: Connection) -> bool:
    """Take the lock until the transaction ends, unless another session has it."""
    return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(_READING_LOCK))))


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
        hears_of_changes: Callable[[str], bool] = lambda name: False,
        on_runs: Callable[[], None] = lambda: None,
        tell: Callable[[Iterable[Change]], None] = lambda changes: None,
    ) -> None:
        """Ask `runs_for` which handlers want a call, and `hears_of_changes` of each whether a later
        end that changes the call is for it too; call `on_runs` when runs were written.

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
        self._changes = Changes(
            database, writer, partial(self._digest, refused=[]), hears_of_changes
        )
        self._turn = turns_on(database)
        self._left_over = self._oldest()
        self._survived: set[int] = set()
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
        waiting = self._waiting()
        if waiting and self._is_suspect(waiting[0]):
            if self._process_suspect(waiting[0]):
                return 1
            waiting = [each for each in waiting if not self._is_suspect(each)]
        chosen = _first_of(waiting, self._is_suspect)
        chunk = self._read(chosen) if chosen else ()
        if chunk and not self.process(chunk):
            self._closing.wait(ELSEWHERE_S)
        return len(chunk)

    def process(self, chunk: Sequence[Row[Any]]) -> int:
        """Process these rows of `deliveries`, as far as they wait in the inbox and no other process
        is at them: none of a session that another of them is of. Return how many these were."""
        try:
            return self._process(chunk)
        except Exception as error:
            if is_outage(error):  # none of them is to blame
                raise
            # One of them holds the others up.
            return sum(map(self._process_alone, chunk))

    def _process(self, chunk: Sequence[Row[Any]]) -> int:
        if not chunk:
            return 0
        refused: list[int] = []
        read = [(row, self._digest(row, refused)) for row in chunk]
        again = self._changes.among(read)
        first = [(row, digest) for row, digest in read if row.id not in again]
        taken, has_runs = self._save(first, refused) if first else (0, False)
        for row, digest in read:
            if row.id in again and digest is not None:
                changed, called = self._changes.take(row, digest.call["session_id"])
                taken, has_runs = taken + changed, has_runs or bool(called)
        self._tell(_change(row, digest) for row, digest in read)
        if has_runs:
            self._on_runs()
        return taken

    def _save(
        self, read: Sequence[tuple[Row[Any], Digest | None]], refused: Sequence[int]
    ) -> tuple[int, bool]:
        digests = [digest for _, digest in read if digest]
        done = [row.id for row, _ in read]
        taken = self._writer.run(lambda connection: save(connection, digests, done, refused))
        return taken, any(digest.handlers for digest in digests)

    def _process_alone(self, row: Row[Any]) -> int:
        """Process one delivery, or note why it cannot be; raise only if nothing can be written."""
        try:
            return self._process([row])
        except Exception as error:
            if is_outage(error):
                raise
            self._give_up(row, error)
            return 1

    def _give_up(self, row: Row[Any], error: Exception) -> None:
        failure = describe_failure(error)
        logger.error("delivery %d could not be processed\n%s", row.id, failure.block)
        self._writer.run(lambda connection: give_up(connection, row.id, str(failure)))
        self._tell([_change(row, None)])

    def _run(self) -> None:
        sweep_s = FIRST_SWEEP_S
        while not self._closing.is_set():
            is_called = self._wanted.wait(timeout=sweep_s)
            self._wanted.clear()
            sweep_s = SWEEP_S
            try:
                if not is_called:  # what there is now somebody else has left
                    self._left_over |= self._oldest()
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

    def _process_suspect(self, waiting: Row[Any]) -> bool:
        """Read alone what may end the process, and count that before; return False if another
        process is at such a one."""
        with self._turn() as is_ours:
            if not is_ours:
                return False
            if waiting.id not in self._survived and not self._count_attempt(waiting):
                return True
            try:
                taken = self.process(self._read([waiting]))
            except MemoryError as error:
                self._give_up(waiting, error)
                taken = 1
            finally:
                self._survived.add(waiting.id)
            if not taken:  # another process is at it, and may yet fail
                self._writer.run(partial(_forget_attempts, delivery_id=waiting.id))
        self._left_over.discard(waiting.id)
        self._survived.discard(waiting.id)
        return True

    def _count_attempt(self, waiting: Row[Any]) -> bool:
        """Return True once the attempt is counted; False if it was set aside, or is in no inbox."""

        def count(connection: Connection) -> int | None:
            is_it = inbox.c.delivery_id == waiting.id
            before: int | None = connection.scalar(
                select(inbox.c.attempts).where(is_it).with_for_update()
            )
            if before is None:
                return None
            attempts = before + 1
            if attempts > MOST_ATTEMPTS:
                give_up(connection, waiting.id, _SET_ASIDE)
            else:
                connection.execute(update(inbox).where(is_it).values(attempts=attempts))
            return attempts

        attempts = self._writer.run(count)
        if attempts is not None and attempts > MOST_ATTEMPTS:
            logger.error("delivery %d was %s", waiting.id, _SET_ASIDE)
            self._tell([Change("unparsed", waiting.session_id)])
        return attempts is not None and attempts <= MOST_ATTEMPTS

    def _is_suspect(self, waiting: Row[Any]) -> bool:
        return (
            waiting.attempts > 0
            or waiting.id in self._left_over
            or waiting.body_bytes > LARGE_BYTES
        )

    def _oldest(self) -> set[int]:
        """Return the deliveries that another process may have been at."""
        return {waiting.id for waiting in self._waiting()}

    def _waiting(self) -> Sequence[Row[Any]]:
        """Return what is known of the oldest deliveries without reading them."""
        oldest = (
            select(
                deliveries.c.id,
                deliveries.c.session_id,
                inbox.c.attempts,
                length_of(deliveries.c.body).label("body_bytes"),
            )
            .join(inbox, inbox.c.delivery_id == deliveries.c.id)
            .order_by(inbox.c.delivery_id)
            .limit(CHUNK_DELIVERIES)
        )
        with self._database.reader.connect() as connection:
            waiting = connection.execute(oldest).all()
            newest = connection.scalar(select(func.max(inbox.c.delivery_id)))
        self._backlog = newest - waiting[-1].id if waiting and newest else 0
        return waiting

    def _read(self, waiting: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
        chosen = deliveries.c.id.in_([each.id for each in waiting])
        with self._database.reader.connect() as connection:
            return connection.execute(select(deliveries).where(chosen).order_by("id")).all()

    def _digest(self, row: Row[Any], refused: list[int]) -> Digest | None:
        try:
            return digest_delivery(row, own_numbers=self._own_numbers, runs_for=self._runs_for)
        except AnotherAgentError:
            refused.append(row.id)
            return None


def _forget_attempts(connection: Connection, delivery_id: int) -> None:
    """Note that what was counted ended no process."""
    is_it = inbox.c.delivery_id == delivery_id
    connection.execute(update(inbox).where(is_it).values(attempts=0))


def _first_of(
    waiting: Sequence[Row[Any]], is_suspect: Callable[[Row[Any]], bool]
) -> Sequence[Row[Any]]:
    """Choose the oldest, bounded in bytes, and no session twice: their order matters."""
    chosen: list[Row[Any]] = []
    sessions: set[str | None] = set()
    size = 0
    for each in waiting:
        if each.session_id in sessions or is_suspect(each):
            break
        sessions |= {each.session_id} - {None}
        chosen.append(each)
        size += each.body_bytes
        if size > CHUNK_BYTES:
            break
    return chosen


def _change(row: Row[Any], digest: Digest | None) -> Change:
    if digest is None:
        return Change("unparsed", row.session_id)
    return Change("ended" if digest.ends_call else "started", row.session_id)

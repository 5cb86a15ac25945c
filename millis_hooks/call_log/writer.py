"""The one thread that writes, and the group commit.

Deliveries that arrive while a commit is being synced share the next one: hundreds of deliveries
share a sync, and so does the work of processing and of handler runs. A commit that fails
acknowledges none of them. While nothing can be written, records of prefetches are kept in
memory.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import StorageError, StorageOutageError
from .database import Transactions
from .deliveries import Delivery, insert_deliveries
from .dialects import describe, is_locked, is_outage

logger = logging.getLogger("millis_hooks.call_log")

T = TypeVar("T")

#: How long records of prefetches may gather before they are written, in seconds.
LINGER_S = 0.05
#: How long it takes until records that could not be written are tried again, in seconds.
RETRY_S = 1.0
#: The same trouble is logged at most this often, in seconds.
LOG_EVERY_S = 10.0
#: How many records may wait in memory; more are dropped and counted.
MAX_RECORDS = 50_000
#: From here on it is a flood: the number that wait for one commit, or of gathered records.
FLOOD_WAITING = 16
FLOOD_RECORDS = 50
#: Bodies go into one transaction up to this many bytes, so that no commit takes long.
MAX_GROUP_BYTES = 16 * 1024 * 1024


class Write(Protocol):
    """Runs work in a transaction and returns its result once it is synced, as `Writer.run`."""

    def __call__(self, work: Callable[[Connection], T], /) -> T: ...


class _Store:
    """A delivery that is acknowledged once it is synced."""

    __slots__ = ("delivery", "future", "loop")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()


class _Job:
    """Work that runs inside the group's transaction."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # not to be cancelled: the thread settles it
        self.result: Any = None
        self.error: BaseException | None = None


class StorageObserver:
    """Told of commits, errors and losses; this one ignores them. Methods are called on any thread
    and must not wait."""

    def committed(self, deliveries: int, seconds: float) -> None:
        """Deliveries were written in one commit, which took `seconds`."""

    def write_failed(self) -> None:
        """A transaction of the writer failed."""

    def read_failed(self) -> None:
        """A reading statement failed."""

    def lost(self, records: int) -> None:
        """So many records of prefetches were not kept."""


class Writer:
    """Writes to the call log. Every method may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_stored: Callable[[], None] = lambda: None,
        observer: StorageObserver | None = None,
    ) -> None:
        """Call `on_stored` on the writing thread after each commit that stored deliveries."""
        self._transactions = Transactions(engine)
        self._on_stored = on_stored
        self.is_flooded = False
        self._observer = observer or StorageObserver()
        self._queue: SimpleQueue[_Store | _Job | None] = SimpleQueue()
        self._records: list[Delivery] = []
        self._kept: list[Delivery] = []  # could not be written yet; touched by the thread alone
        self._retry_at = 0.0
        self._trouble = _Trouble()
        self._dropped = 0
        self._lock = threading.Lock()  # nothing comes in between a check and what follows from it
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="millis-hooks-writer", daemon=True)

    @property
    def waiting(self) -> int:
        """How many wait for the next commit, about."""
        return self._queue.qsize()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what is waiting, then end. Whoever comes later gets a `StorageError`."""
        with self._lock:
            self._closing = True
            self._queue.put(None)
        self._thread.join()

    async def store(self, delivery: Delivery) -> None:
        """Return once the delivery is synced to disk; raise `StorageError` if it is not.

        That takes `BUSY_TIMEOUT_S` at most, where another program has the call log locked or the
        server of the database is gone.
        """
        store = _Store(delivery)
        self._put(store)
        await store.future

    def record(self, delivery: Delivery) -> None:
        """Write the delivery soon. Nobody waits, and a flood is dropped rather than kept."""
        with self._lock:
            if len(self._records) + len(self._kept) >= MAX_RECORDS:
                self._dropped += 1
                return
            self._records.append(delivery)
            if len(self._records) == 1:
                self._queue.put(None)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction and return its result once that is synced.

        What `work` raises is raised here, and undone alone. Raises `StorageOutageError` if nothing
        can be written now.
        """
        return self.submit(work).result()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        """Have `work` run as by `run`, and return at once."""
        job = _Job(work)
        self._put(job)
        return job.future

    def _put(self, item: _Store | _Job) -> None:
        with self._lock:
            if self._closing:
                raise StorageError("The call log is closed.")
            self._queue.put(item)

    def _run(self) -> None:
        self._write_all()
        if self._kept:
            self._commit([], [self._kept.pop(0)])
            self._write_all()
            self._note_lost(len(self._kept))
        self._transactions.close()

    def _write_all(self) -> None:
        """Write what comes, until it is closed and nothing is left."""
        while not (self._closing and self._queue.empty() and not self._records):
            group = self._gather()
            records = self._take_records()
            self.is_flooded = len(group) >= FLOOD_WAITING or len(records) >= FLOOD_RECORDS
            if group or records:
                self._commit(group, records)
            if self._kept and time.monotonic() >= self._retry_at:
                self._commit([], [self._kept.pop(0)])

    def _gather(self) -> list[_Store | _Job]:
        """Wait for an item, then take all that wait; linger a little for records alone."""
        try:
            first = self._queue.get(timeout=RETRY_S if self._kept else None)
            if first is None and not self._closing:
                first = self._queue.get(timeout=LINGER_S)
        except Empty:
            return []
        group = [first] if first is not None else []
        size = _body_bytes(first)
        while size <= MAX_GROUP_BYTES and not self._queue.empty():
            item = self._queue.get_nowait()
            if item is not None:
                group.append(item)
                size += _body_bytes(item)
        return group

    def _take_records(self) -> list[Delivery]:
        with self._lock:
            records, self._records = self._records, []
            dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.warning("%d records of requests dropped: too many at once", dropped)
            self._observer.lost(dropped)
        return records

    def _commit(self, group: Sequence[_Store | _Job], records: Sequence[Delivery]) -> None:
        stores = [item for item in group if isinstance(item, _Store)]
        jobs = [item for item in group if isinstance(item, _Job)]
        # Records first: they are of prefetches answered before, and who begins a session owns it.
        batch = [*records, *(store.delivery for store in stores)]
        begun, started = False, time.perf_counter()

        def write(connection: Connection) -> None:
            nonlocal begun
            begun = True
            if batch:
                insert_deliveries(connection, batch)
            for job in jobs:
                _attempt(connection, job, is_alone=len(jobs) == 1 and not batch)

        try:
            self._transactions.run(write, is_one_statement=not jobs)
        except _UndoneError:
            _settle(jobs[0])
        except Exception as error:
            is_vain = isinstance(error, StorageOutageError) or (is_locked(error) and not jobs)
            begun = begun and not is_vain
            if begun and len(group) + len(records) > 1:
                self._commit_apart(stores, jobs, records)
            elif begun:
                self._fail(group, records, error)
            else:
                # Who came meanwhile would wait as long again, and in vain.
                self._fail([*group, *self._drain()], [*records, *self._take_records()], error)
        else:
            _acknowledge(stores)
            for job in jobs:
                _settle(job)
            if batch:  # work may have written nothing
                self._observer.committed(len(batch), time.perf_counter() - started)
                self._trouble.end()
                self._take_back_kept()
                self._on_stored()

    def _commit_apart(
        self, stores: Sequence[_Store], jobs: Sequence[_Job], records: Sequence[Delivery]
    ) -> None:
        """One bad member must not fail the group: try what is stored without the work, else each
        alone."""
        if jobs:
            if stores or records:
                self._commit(stores, records)
            for job in jobs:
                self._commit([job], [])
        else:
            self._commit_each(stores, records)

    def _commit_each(self, stores: Sequence[_Store], records: Sequence[Delivery]) -> None:
        for store in stores:
            self._commit([store], [])
        for tried, record in enumerate(records, start=1):
            self._commit([], [record])
            if self._trouble.is_outage:
                self._keep(records[tried:])
                return

    def _fail(
        self, group: Sequence[_Store | _Job], records: Sequence[Delivery], error: Exception
    ) -> None:
        self._observer.write_failed()
        self._trouble.note(error)
        _refuse(group, error)
        if is_outage(error):
            self._keep(records)
        else:
            self._note_lost(len(records))

    def _keep(self, records: Sequence[Delivery]) -> None:
        """Have them tried again later, as many as memory may hold."""
        room = max(MAX_RECORDS - len(self._kept), 0)
        self._kept += records[:room]
        self._retry_at = time.monotonic() + RETRY_S
        self._note_lost(len(records[room:]))

    def _note_lost(self, records: int) -> None:
        if records:
            logger.warning("%d records of requests could not be written and are lost", records)
            self._observer.lost(records)

    def _drain(self) -> list[_Store | _Job]:
        """Take all who wait."""
        waiting = []
        with suppress(Empty):
            while True:
                waiting.append(self._queue.get_nowait())
        return [item for item in waiting if item is not None]

    def _take_back_kept(self) -> None:
        """Have what could not be written before written with the next commit."""
        if self._kept:
            with self._lock:
                self._records[:0] = self._kept
                self._kept = []
                self._queue.put(None)


class _Trouble:
    """Says in the log that nothing can be stored, and that it can again; not at every try."""

    def __init__(self) -> None:
        self.is_outage = False
        self._reason: str | None = None
        self._logged_at = 0.0

    def note(self, error: Exception) -> None:
        reason, now = describe(error), time.monotonic()
        if reason != self._reason or now >= self._logged_at + LOG_EVERY_S:
            logger.error("a write to the call log failed: %s", reason)
            self._logged_at = now
        self._reason, self.is_outage = reason, is_outage(error)

    def end(self) -> None:
        if self.is_outage:
            logger.info("deliveries are stored again")
        self._reason, self.is_outage = None, False


def _body_bytes(item: _Store | _Job | None) -> int:
    return len(item.delivery.body) if isinstance(item, _Store) else 0


class _UndoneError(Exception):
    """The only work of a transaction raised an error, which is not the transaction's."""


def _attempt(connection: Connection, job: _Job, *, is_alone: bool) -> None:
    """Do the work; what it raises undoes it alone. Work that is alone needs no savepoint."""
    job.error = None
    try:
        with nullcontext() if is_alone else connection.begin_nested():
            job.result = job.work(connection)
    except SQLAlchemyError:
        raise
    except BaseException as error:
        # They may hold a statement that is not finished, and that would fail the group's commit.
        traceback.clear_frames(error.__traceback__)
        job.error = error
        if is_alone:
            raise _UndoneError from error


def _settle(job: _Job) -> None:
    if job.error is not None:
        job.future.set_exception(job.error)
    else:
        job.future.set_result(job.result)


def _refuse(group: Sequence[_Store | _Job], error: Exception) -> None:
    kind = StorageOutageError if is_outage(error) else StorageError
    for item in group:
        failure = kind(f"The call log could not be written: {describe(error)}.")
        failure.__cause__ = error
        if isinstance(item, _Job):
            item.future.set_exception(failure)
        else:
            _call_soon(item.loop, _fail, item.future, failure)


def _acknowledge(stores: Sequence[_Store]) -> None:
    """Wake each waiting loop once, however many wait on it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for store in stores:
        by_loop.setdefault(store.loop, []).append(store.future)
    for loop, futures in by_loop.items():
        _call_soon(loop, _succeed, futures)


def _call_soon(loop: asyncio.AbstractEventLoop, *callback: Any) -> None:
    # The loop may have ended.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(*callback)


def _succeed(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def _fail(future: asyncio.Future[None], error: StorageError) -> None:
    if not future.done():
        future.set_exception(error)

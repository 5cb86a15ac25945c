"""Checks of the call log: its database, the schema, the clock, and the work that waits."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

from sqlalchemy import Connection, NullPool, and_, create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.database import connect, require_writable_folder, schema_version
from ..call_log.dialects import describe
from ..call_log.locks import FileHolder, Version, has_wal_reset_bug
from ..call_log.migrations import HEAD
from ..call_log.postgres import (
    CREATE_EXTENSION,
    CREATE_SEARCH_INDEX,
    PostgresDatabase,
    select_one,
)
from ..call_log.tables import (
    IS_OPEN,
    IS_UNPARSED,
    calls,
    deliveries,
    handler_runs,
    handlers,
    inbox,
)
from ..call_log.upkeep.retention import doubt_of_clock
from ..exceptions import ConfigError, StorageError
from ..runs.processes import processes_at_work
from ..settings import Settings
from . import CheckResult, bad, ok, warn

_RESTORE = (
    "Stop the service, move the file away together with its -wal and -shm, and put a backup in its "
    "place; `sqlite3 FILE .recover` may save what is newer."
)
_NO_RUNNER = warn(
    "runner", "no process runs handlers now", "Start the service: millis-hooks run app.py"
)
#: The newest calls whose numbers are compared, the fewest that say something, and the share of
#: them that one number has if it is the team's.
_NUMBERS_READ, _LEAST_CALLS, _NEARLY_ALL = 1_000, 10, 0.8
_SET_CLOCK = "Let the machine set its clock: timedatectl set-ntp true"
_TOLERATED = timedelta(seconds=5)
_WRONG = timedelta(seconds=60)
#: So many of the newest calls are compared with Millis' clock.
_NEWEST_CALLS = 20
_UNREAD_FOR = timedelta(minutes=1)
_PENDING_FOR = timedelta(minutes=10)
#: The first PostgreSQL that lets an ordinary user install pg_trgm.
_OLDEST_POSTGRESQL = 13
_BUSY_TIMEOUT_S = 5.0
_runs = handler_runs.c


def check_sqlite(version: Version) -> Iterator[CheckResult]:
    """Check the SQLite of this Python."""
    number = ".".join(map(str, version))
    if has_wal_reset_bug(version):
        yield ok(
            "SQLite",
            f"{number} has the WAL-reset bug, so the programs of millis_hooks write to the call "
            "log one at a time; other programs that write to it, like Litestream, do not wait",
            link="https://www.sqlite.org/wal.html#walresetbug",
        )
    else:
        yield ok("SQLite", f"{number}, without the WAL-reset bug")
    if not _can_search():
        what_to_do = "Use a Python whose SQLite is 3.34 or newer and was built with FTS5."
        yield bad("search", f"SQLite {number} has no FTS5 with trigrams", what_to_do)


def _can_search() -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='trigram')")
        except sqlite3.OperationalError:
            return False
    return True


def check_log_file(
    log: Path,
    settings: Settings,
    now: Callable[[], datetime],
    *,
    reads_all: bool,
) -> Iterator[CheckResult]:
    """Check a call log in a file, which is not changed."""
    if not log.exists():
        yield ok("call log", f"none yet; the service creates {log} when it starts")
        return
    try:
        require_writable_folder(log)
        version = schema_version(log, busy_timeout_s=_BUSY_TIMEOUT_S)
        with _read_only(log) as connection:
            yield ok("call log", str(log))
            yield from check_file(connection, log, reads_all=reads_all)
            yield check_schema(version)
            if version == HEAD:
                yield check_runner(Path(f"{log}-runner"))
                yield from check_content(connection, settings, now)
    except StorageError as error:
        yield bad("call log", str(error), "Until then no call is kept.")
    except SQLAlchemyError as error:
        yield bad("call log", f"{log} cannot be read: {describe(error)}", _RESTORE)


@contextmanager
def _read_only(log: Path) -> Iterator[Connection]:
    engine = create_engine(
        "sqlite://",
        creator=lambda: connect(log, busy_timeout_s=_BUSY_TIMEOUT_S, mode="ro"),
        poolclass=NullPool,
        hide_parameters=True,
    )
    with engine.connect() as connection:
        yield connection


def check_file(connection: Connection, file: Path, *, reads_all: bool) -> Iterator[CheckResult]:
    """Check the journal mode and, if `reads_all`, whether the whole file can be read.

    Reading takes seconds for each GB.
    """
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    if mode == "wal":
        yield ok("journal", "WAL")
    else:
        yield warn(
            "journal",
            f"{mode}, not WAL: another program has changed it",
            "Restart the service: it sets WAL when it starts.",
        )
    if reads_all:
        errors = list(connection.exec_driver_sql("PRAGMA quick_check(5)").scalars())
        if errors == ["ok"]:
            yield ok("integrity", "the whole file can be read")
        else:
            yield bad("integrity", f"{file} is damaged: {'; '.join(map(str, errors))}", _RESTORE)


def check_schema(version: str | None) -> CheckResult:
    """Compare the schema with the one that this program knows."""
    if version is None:
        return ok("schema", f"none yet; the service creates {HEAD} when it starts")
    if version > HEAD:
        return bad(
            "schema",
            f"{version} is of a newer millis_hooks; this one knows up to {HEAD}",
            "Install the millis_hooks that wrote it.",
        )
    if version < HEAD:
        return warn(
            "schema",
            f"{version} is of an older millis_hooks",
            f"Copy the files; the service upgrades them to {HEAD} when it starts.",
        )
    return ok("schema", version)


def check_runner(lock: Path) -> CheckResult:
    """Tell by its lock whether a process runs handlers."""
    return ok("runner", "a process runs handlers") if _is_held(lock) else _NO_RUNNER


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    holder = FileHolder(lock)
    try:
        return not holder.hold()
    except OSError:  # it belongs to another user
        return True
    finally:
        holder.let_go()


def check_content(
    connection: Connection, settings: Settings, now: Callable[[], datetime]
) -> Iterator[CheckResult]:
    """Check the clock, the work that waits and the numbers in a log of the current schema."""
    yield from check_clock(connection, now)
    yield from check_work(connection, now())
    yield from check_retention(connection, settings.retention_days, now())
    if not settings.own_numbers:
        yield from check_numbers(connection)


def check_numbers(connection: Connection) -> Iterator[CheckResult]:
    """Check whether one number is on one side of nearly all calls: it will be the team's own."""
    newest = (
        select(calls.c.from_phone, calls.c.to_phone)
        .where(calls.c.from_phone.is_not(None), calls.c.to_phone.is_not(None))
        .order_by(calls.c.received_at.desc())
        .limit(_NUMBERS_READ)
    )
    rows = connection.execute(newest).all()
    sides = Counter(chain.from_iterable({row.from_phone, row.to_phone} for row in rows))
    for number, count in sides.most_common(1):
        if len(rows) >= _LEAST_CALLS and count >= _NEARLY_ALL * len(rows):
            yield warn(
                "your number",
                f"{number} is on one side of {count / len(rows):.0%} of calls. Yours?",
                f"Then set MILLIS_HOOKS_OWN_NUMBERS={number}: pages name the customer alone.",
                page="calls",
                params={"number": number, "range": "all"},
            )


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def check_retention(connection: Connection, days: int, now: datetime) -> Iterator[CheckResult]:
    """Check whether retention refuses to remove calls because the clock may be wrong."""
    doubt = doubt_of_clock(connection, kept=timedelta(days=days), now=now) if days else None
    if doubt is not None:
        yield bad(
            "retention",
            f"nothing is removed, because the clock may be wrong: {doubt}",
            f"{_SET_CLOCK}. If it is right: millis-hooks prune --clock-is-right",
        )


def check_clock(connection: Connection, now: Callable[[], datetime]) -> Iterator[CheckResult]:
    """Compare this machine's clock with the newest delivery and with Millis' times."""
    newest = select(deliveries.c.received_at).order_by(deliveries.c.id.desc()).limit(1)
    received_at = connection.scalar(newest)
    if received_at is None:
        return
    yield compare_clock("the newest delivery", max(received_at - now(), timedelta()))
    times = (
        select(calls.c.started_at, calls.c.ended_at)
        .where(calls.c.delivery_id.is_not(None), calls.c.started_at.is_not(None))
        .order_by(calls.c.id.desc())
        .limit(_NEWEST_CALLS)
    )
    rows = connection.execute(times)
    ahead = max((started_at - ended_at for started_at, ended_at in rows), default=timedelta())
    if ahead > _WRONG:
        message = f"Millis began a call {_duration(ahead)} after its end was received"
        yield warn("clock", message, _SET_CLOCK)


def compare_clock(other: str, ahead: timedelta) -> CheckResult:
    """Judge by how much another clock is ahead of this machine's."""
    if abs(ahead) <= _TOLERATED:
        return ok("clock", f"agrees with {other}")
    side = "ahead of" if ahead > timedelta() else "behind"
    message = f"{other} is {_duration(abs(ahead))} {side} this machine's clock"
    return (bad if abs(ahead) > _WRONG else warn)("clock", message, _SET_CLOCK)


def _duration(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def check_work(connection: Connection, now: datetime) -> Iterator[CheckResult]:
    """Check the deliveries that wait to be read, and the runs that wait or failed."""
    yield _inbox(connection, now)
    yield _unparsed(connection)
    yield from _open_runs(connection, now)
    yield from _unknown_handlers(connection)


def _inbox(connection: Connection, now: datetime) -> CheckResult:
    waiting = select(func.count(), func.min(deliveries.c.received_at)).join(
        inbox, inbox.c.delivery_id == deliveries.c.id
    )
    count, oldest = connection.execute(waiting).one()
    message = f"{count:,} deliveries wait to be read"
    if oldest is None or now - oldest <= _UNREAD_FOR:
        return ok("inbox", message)
    return warn(
        "inbox",
        f"{message}, the oldest since {oldest:%Y-%m-%d %H:%M} UTC",
        "Start the service. If it runs, its log says why it does not read them.",
    )


def _unparsed(connection: Connection) -> CheckResult:
    count = connection.scalar(select(func.count()).select_from(deliveries).where(IS_UNPARSED))
    if not count:
        return ok("unparsed", "every delivery could be read")
    return warn(
        "unparsed",
        f"{_counted(count, 'delivery', 'deliveries')} could not be read; kept as received",
        "The deliveries say why.",
        command="After an upgrade: millis-hooks reparse --unparsed",
        page="deliveries",
        params={"outcome": "unparsed"},
    )


def _open_runs(connection: Connection, now: datetime) -> Iterator[CheckResult]:
    by_state = (
        select(_runs.state, func.count(), func.min(_runs.state_since))
        .where(IS_OPEN, _runs.is_latest)
        .group_by(_runs.state)
    )
    states = {state: (count, since) for state, count, since in connection.execute(by_state)}
    failed, _ = states.get("failed", (0, None))
    if failed:
        yield warn(
            "failed runs",
            f"{_counted(failed, 'run', 'runs')} gave up: the handlers failed at every attempt",
            "",
            command="See why: millis-hooks runs --status failed. "
            "Then: millis-hooks replay --status failed",
            page="calls",
            params={"handler": "failed", "range": "all", "source": "all"},
        )
    else:
        yield ok("failed runs", "none")
    pending, oldest = states.get("pending", (0, now))
    if now - oldest > _PENDING_FOR:
        yield warn(
            "pending runs",
            f"{pending:,}, the oldest since {oldest:%Y-%m-%d %H:%M} UTC",
            "Start the service. If it runs, its handlers are too slow or too few at a time: see "
            "MILLIS_HOOKS_HANDLER_CONCURRENCY.",
        )
    else:
        yield ok("pending runs", f"{pending:,}")


def _unknown_handlers(connection: Connection) -> Iterator[CheckResult]:
    registered = and_(handlers.c.hook == _runs.hook, handlers.c.name == _runs.handler)
    unknown = (
        select(_runs.handler, func.count())
        .select_from(handler_runs.outerjoin(handlers, registered))
        .where(IS_OPEN, _runs.is_latest, handlers.c.name.is_(None))
        .group_by(_runs.handler)
        .order_by(_runs.handler)
    )
    names = [f"{name} ({count:,})" for name, count in connection.execute(unknown)]
    if names:
        yield warn(
            "unknown handlers",
            f"runs are left of handlers that the application no longer has: {', '.join(names)}",
            "Restore the handlers under these names, or leave their runs.",
        )


def check_postgres(settings: Settings, now: Callable[[], datetime]) -> Iterator[CheckResult]:
    """Check the server, and the call log in it."""
    try:
        database = PostgresDatabase(settings.database_url)
    except (ConfigError, StorageError) as error:
        yield bad("call log", str(error), "Until then no call is kept.")
        return
    try:
        with database.reader.connect() as connection:
            yield ok("call log", f"in PostgreSQL, database {database.url.database}")
            yield from _check_server(connection, now)
            version = database.schema_version()
            yield check_schema(version)
            if version == HEAD:
                yield _search(connection)
                names = ", ".join(processes_at_work(connection))
                yield ok("runner", f"handlers run in {names}") if names else _NO_RUNNER
                yield from check_content(connection, settings, now)
    except SQLAlchemyError as error:
        yield bad(
            "call log", f"it cannot be read: {describe(error)}", "The server's log says more."
        )
    finally:
        database.close()


def _check_server(connection: Connection, now: Callable[[], datetime]) -> Iterator[CheckResult]:
    yield check_release(_setting(connection, "server_version"))
    if select_one(connection, "SELECT pg_is_in_recovery()"):
        yield bad(
            "role",
            "this server is a standby: nothing can be stored in it",
            "Let MILLIS_HOOKS_DATABASE_URL name the primary; "
            "?target_session_attrs=read-write chooses it among several hosts.",
        )
    yield check_durability(
        {name: _setting(connection, name) for name in ("fsync", "full_page_writes")},
        _setting(connection, "synchronous_commit"),
    )
    server_time: datetime = select_one(connection, "SELECT clock_timestamp()")
    yield compare_clock("the database server's", server_time - now())


def check_release(version: str) -> CheckResult:
    """Check the server's version, as `server_version` has it."""
    number = version.partition(" ")[0]
    if int(number.partition(".")[0]) < _OLDEST_POSTGRESQL:
        return bad("server", f"PostgreSQL {number}", "Use PostgreSQL 13 or newer.")
    return ok("server", f"PostgreSQL {number}")


def check_durability(settings: dict[str, str], synchronous_commit: str) -> CheckResult:
    """Check that acknowledged calls survive a power cut."""
    off = [name for name, value in settings.items() if value == "off"]
    if off:
        return bad(
            "durability",
            f"{' and '.join(off)} off: acknowledged calls are lost when the machine stops",
            "Set it on in postgresql.conf, and reload the server.",
        )
    if synchronous_commit == "off":
        return warn(
            "durability",
            "synchronous_commit is off by default; the service sets it on for itself",
            "Behind a pooler it cannot: ALTER ROLE <user> SET synchronous_commit = on",
        )
    return ok("durability", "commits are on disk when they are acknowledged")


def _search(connection: Connection) -> CheckResult:
    if select_one(connection, "SELECT to_regclass('ix_call_search_folded')") is None:
        return warn(
            "search",
            "there is no trigram index: a search reads every call",
            f"As its owner: {CREATE_EXTENSION}; {CREATE_SEARCH_INDEX}",
        )
    return ok("search", "by pg_trgm")


def _setting(connection: Connection, name: str) -> str:
    return str(select_one(connection, f"SELECT current_setting('{name}')"))

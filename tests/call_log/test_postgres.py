"""A call log in PostgreSQL, and what becomes of deliveries when its server has trouble."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, select, text
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.deliveries import insert_deliveries
from millis_hooks.call_log.migrations import migrate, open_database
from millis_hooks.call_log.postgres import PostgresDatabase
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.projection import digest_delivery
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.queries.call_list import list_calls
from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.call_log.sanitize import short_key
from millis_hooks.call_log.sessions import SessionReader
from millis_hooks.call_log.tables import calls, deliveries, handler_runs, inbox, keys
from millis_hooks.call_log.transfer.import_ import Importer
from millis_hooks.call_log.upkeep.removal import remove_sessions
from millis_hooks.call_log.writer import StorageObserver
from millis_hooks.cli.commands import app
from millis_hooks.exceptions import ConfigError, StorageOutageError
from millis_hooks.protocol.samples import end_of_call_body
from millis_hooks.settings import Settings
from support import postgres_server
from support.postgres_server import Server
from support.storage import NOW, ended, held, prefetched, rows, writing
from support.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be stopped."""
    try:
        own = Server()
    except postgres_server.NoServerError as error:
        pytest.skip(str(error))
    yield own
    own.remove()


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """A new database in it."""
    name = f"t{abs(hash(request.node.nodeid))}"
    admin = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return str(server.url.set(database=name))


@pytest.fixture
def log(url: str) -> Iterator[CallLog]:
    log = CallLog(url)
    yield log
    log.close()


class FailureCount(StorageObserver):
    def __init__(self) -> None:
        self.failures = 0

    def write_failed(self) -> None:
        self.failures += 1


def store(log: CallLog, *session_ids: str) -> None:
    async def together() -> None:
        await asyncio.gather(*(log.writer.store(ended(each)) for each in session_ids))

    asyncio.run(together())


def stored(log: CallLog) -> list[str | None]:
    return sorted(row.session_id for row in rows(log.database, deliveries))


def terminate_others(connection: Connection) -> None:
    connection.exec_driver_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def once(engine: Engine, name: str, then: Callable[[Connection], None]) -> None:
    """Do something the next time that an event happens."""

    happened: list[None] = []

    def happen(connection: Connection) -> None:
        if not happened:
            happened.append(None)
            then(connection)

    event.listen(engine, name, happen)


def end_session(connection: Connection) -> None:
    """Cut a session off, as a network does; the server is left to notice."""
    driver: Any = connection.connection.driver_connection
    driver.pgconn.finish()


def test_a_lost_connection_before_the_commit_is_repeated(log: CallLog) -> None:
    once(log.database.writer, "commit", end_session)
    log.writer.run(insert_one)
    assert stored(log) == ["-s1"]


def test_a_commit_whose_answer_is_lost_is_repeated_and_makes_one_call(url: str) -> None:
    def commit_and_lose(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute("COMMIT")
        driver.pgconn.finish()

    runs_for = lambda call: ["greet"]  # noqa: E731
    with closing(CallLog(url, runs_for=runs_for)) as log:
        once(log.database.writer, "commit", commit_and_lose)
        log.writer.run(insert_one)
        assert stored(log) == ["-s1", "-s1"]
        eventually(lambda: not rows(log.database, inbox))
        assert len(rows(log.database, calls)) == len(rows(log.database, handler_runs)) == 1


def test_a_statement_whose_answer_is_lost_is_repeated(log: CallLog) -> None:
    once(log.database.writer, "commit", end_session)  # the statement has committed itself
    store(log, "-s1", "-s2")
    assert set(stored(log)) == {"-s1", "-s2"}


def insert_one(connection: Connection) -> None:
    insert_deliveries(connection, [ended("-s1")])


def test_a_locked_table_is_waited_for_once_by_all_and_does_not_hinder_work(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0.2)
    observer = FailureCount()
    with closing(CallLog(url, observer=observer)) as log:

        async def together() -> tuple[list[BaseException | None], Future[str]]:
            with held(log.writer):
                stores = [asyncio.create_task(log.writer.store(ended(f"-s{n}"))) for n in range(3)]
                await asyncio.sleep(0)  # each has now joined the queue
                work = log.writer.submit(lambda connection: "done")
            return await asyncio.gather(*stores, return_exceptions=True), work

        with create_engine(url, poolclass=NullPool).begin() as other:
            other.exec_driver_sql("LOCK TABLE deliveries IN SHARE MODE")
            refusals, work = asyncio.run(together())
            assert work.result(30) == "done"
        assert [type(refusal) for refusal in refusals] == [StorageOutageError] * 3
        assert observer.failures == 1


def test_terminated_sessions_are_replaced(log: CallLog) -> None:
    store(log, "-s1")
    with log.database.writer.connect() as connection:
        terminate_others(connection)
    store(log, "-s2")
    assert stored(log) == ["-s1", "-s2"]
    eventually(lambda: Queries(log.database.reader).call("-s1"))


def test_where_a_pooler_changes_sessions_nothing_is_prepared_and_nothing_refused(
    log: CallLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        once(log.database.writer, "begin", forget_prepared)
        store(log, f"-s{number}")
    assert len(stored(log)) == 20
    assert caplog.text.count("a connection pooler was noticed") == 1


def forget_prepared(connection: Connection) -> None:
    """Leave the session as another one, behind the driver's back."""
    driver: Any = connection.connection.driver_connection
    driver.execute("DO 'BEGIN EXECUTE ''DEALLOCATE ALL''; END'", prepare=False)


def test_where_all_connections_are_taken_there_is_one_again_when_others_leave(
    log: CallLog, server: Server
) -> None:
    store(log, "-s1")
    others = create_engine(server.url, poolclass=NullPool)
    with ExitStack() as taken:
        first = taken.enter_context(others.connect())
        with suppress(OperationalError):
            while True:
                taken.enter_context(others.connect())
        terminate_sessions_of(log, first)
        with suppress(OperationalError):
            while True:
                taken.enter_context(others.connect())
        with ThreadPoolExecutor() as threads:
            storing = threads.submit(store, log, "-s2")
            taken.close()
            storing.result(30)
    assert stored(log) == ["-s1", "-s2"]


def terminate_sessions_of(log: CallLog, connection: Connection) -> None:
    connection.exec_driver_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
        (log.database.url.database,),
    )


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts_is_waited_for(
    log: CallLog, server: Server, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 60)  # a busy machine's
    store(log, "-s1")
    server.stop(mode)
    with ThreadPoolExecutor() as threads:
        storing = threads.submit(store, log, "-s2", "-s3")
        server.start()
        storing.result(30)
    assert stored(log) == ["-s1", "-s2", "-s3"]
    log.check()


def test_a_delivery_is_not_to_blame_for_a_session_that_ends_while_it_is_read(url: str) -> None:
    database = open_database(url)
    migrate(database)
    with closing(database), writing(database) as writer:
        asyncio.run(writer.store(ended()))
        processor = Processor(database, writer, runs_for=lambda call: [])
        once(database.writer, "begin", end_session)
        with pytest.raises(OperationalError):
            processor.process([1])
        assert processor.process([1]) == 1
        assert [row.session_id for row in rows(database, calls)] == ["-s1"]


def test_nothing_is_acknowledged_while_the_server_is_gone(
    log: CallLog, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0)
    server.stop()
    try:
        with pytest.raises(StorageOutageError, match="could not be written"):
            store(log, "-s1")
    finally:
        server.start()
    store(log, "-s2")
    assert stored(log) == ["-s2"]


def test_a_standby_is_waited_for_and_then_told_of(
    log: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0)

    def only_read(connection: Connection) -> None:
        connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

    once(log.database.writer, "begin", only_read)
    with pytest.raises(StorageOutageError, match="read-only transaction"):
        store(log, "-s1")


def test_two_that_open_a_new_database_at_once_make_one_schema(url: str) -> None:
    together = threading.Barrier(2)

    def open_it() -> CallLog:
        together.wait(10)
        return CallLog(url)

    with ThreadPoolExecutor() as threads:
        logs = [each.result(60) for each in [threads.submit(open_it), threads.submit(open_it)]]
    assert logs[0].key("k") == logs[1].key("k")
    for log in logs:
        log.close()


def test_two_that_process_the_same_inbox_make_each_call_once(url: str, log: CallLog) -> None:
    other = CallLog(url)
    store(log, *(f"-s{number}" for number in range(20)))
    store(other, *(f"-s{number}" for number in range(20)))
    eventually(lambda: len(rows(log.database, calls)) == 20)
    eventually(lambda: all(row.repeated for row in rows(log.database, calls)))
    other.close()


def test_what_another_process_is_at_is_left_to_it(url: str) -> None:
    CallLog(url).close()
    with closing(open_database(url)) as database, writing(database) as writer:
        writer.run(insert_one)
        processor = Processor(database, writer, runs_for=lambda _: [])
        with create_engine(url, poolclass=NullPool).begin() as other:
            other.execute(select(inbox).with_for_update())
            assert processor.process([1]) == 0
        assert rows(database, calls) == []
        assert processor.process([1]) == 1


def test_a_session_that_another_process_is_at_is_left_to_it(url: str) -> None:
    CallLog(url).close()
    with closing(open_database(url)) as database, writing(database) as writer:
        batch = [ended("-s1"), ended("-s2")]
        writer.run(lambda connection: insert_deliveries(connection, batch))
        processor = Processor(database, writer, runs_for=lambda _: [])
        with create_engine(url, poolclass=NullPool).begin() as other:
            SessionReader(partial(digest_delivery, own_numbers=frozenset()), lambda _: []).read(
                other, [1]
            )
            assert processor.process([1, 2]) == 1
            assert [row.session_id for row in rows(database, calls)] == ["-s2"]
        assert processor.process([1, 2]) == 1


def test_two_processes_share_an_inbox_in_any_order(url: str) -> None:
    CallLog(url).close()
    sessions = [f"-s{number}" for number in range(40)]
    batch = [*map(ended, sessions), *map(prefetched, reversed(sessions))]
    with closing(open_database(url)) as one, closing(open_database(url)) as two:
        with writing(one) as writer, writing(two) as other, ThreadPoolExecutor() as threads:
            processors = [
                Processor(database, each, runs_for=lambda _: ["note"])
                for database, each in ((one, writer), (two, other))
            ]
            writer.run(lambda connection: insert_deliveries(connection, batch))

            def empty(processor: Processor) -> None:
                while processor.process_chunk():
                    pass

            list(threads.map(empty, processors))
            empty(processors[0])
        assert {row.prefetch_outcome for row in rows(one, calls)} == {"fresh"}
        assert len(rows(one, calls)) == len(rows(one, handler_runs)) == 40


def test_what_comes_in_during_an_import_is_left_to_the_service(url: str) -> None:
    CallLog(url).close()

    def receive_one() -> None:
        with create_engine(url, poolclass=NullPool).begin() as service:
            insert_one(service)

    with closing(open_database(url)) as database, writing(database) as writer:
        importer = Importer(database, writer)
        importer.take(json.loads(end_of_call_body(session_id="-m1", started_at=NOW)), NOW)
        after_statement(database.writer, "max(deliveries.id)", receive_one)
        importer.flush()
        assert importer.tally.stored == 1
        (waiting,) = rows(database, inbox)
        (own,) = (row for row in rows(database, deliveries) if row.id == waiting.delivery_id)
        assert own.session_id == "-s1"


def test_what_comes_in_while_its_session_is_removed_is_still_processed(url: str) -> None:
    CallLog(url).close()

    def receive_one() -> None:
        with create_engine(url, poolclass=NullPool).begin() as service:
            insert_one(service)

    with closing(open_database(url)) as database:
        after_statement(database.writer, "inbox.delivery_id", receive_one)
        with database.writer.begin() as connection:
            remove_sessions(connection, ["-s1"])
        (waiting,) = rows(database, inbox)
        assert [row.id for row in rows(database, deliveries)] == [waiting.delivery_id]


def after_statement(engine: Engine, part: str, then: Callable[[], None]) -> None:
    """Do something once the next statement with this in it was carried out."""

    happened: list[None] = []

    def happen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if part in statement and not happened:
            happened.append(None)
            then()

    event.listen(engine, "after_cursor_execute", happen)


def test_an_absurdly_long_id_is_kept_and_found(log: CallLog) -> None:
    long = "".join(chr(0x4E00 + number % 5000) for number in range(10_000))
    store(log, long)
    found = select(deliveries.c.session_id).where(deliveries.c.session_id == long)
    with log.database.reader.connect() as connection:
        assert connection.scalars(found).all() == [short_key(long)]


def test_without_the_extension_calls_are_found_anyway(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    schema = "millis_hooks.call_log.postgres.CREATE_EXTENSION"
    monkeypatch.setattr(schema, "CREATE EXTENSION there_is_no_such_thing")
    log = CallLog(url)
    assert "pg_trgm is missing" in caplog.text
    store(log, "-s1")
    eventually(lambda: rows(log.database, calls))
    wanted = CallFilter(q="TABLE FOR TWO", range="all")
    assert len(Queries(log.database.reader).ask(list_calls, wanted, now=NOW).rows) == 1
    log.close()


def test_sessions_are_synchronous_whatever_the_default(url: str) -> None:
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        name = connection.engine.url.database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    database = open_database(url)
    with database.writer.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    database.close()


def test_a_reader_cannot_write_and_sees_one_state(log: CallLog) -> None:
    with log.database.reader.connect() as connection:
        before = connection.execute(keys.select()).all()
        log.key("another")
        assert connection.execute(keys.select()).all() == before
        assert connection.execute(text("SHOW transaction_read_only")).scalar() == "on"


def test_what_is_for_files_alone_says_so(log: CallLog) -> None:
    with pytest.raises(ConfigError, match="pg_dump"):
        _ = log.database.path


def test_a_server_that_is_not_there_is_reported_without_the_password() -> None:
    with pytest.raises(StorageOutageError, match="cannot be reached") as caught:
        PostgresDatabase("postgresql://somebody:hush-hush@127.0.0.1:1/calls")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgres://h/calls", "postgresql://u:p@h:5432/calls?sslmode=require"]
)
def test_the_setting_takes_urls_of_postgresql(url: str) -> None:
    assert Settings.load(database_url=url).database_url == url


@pytest.mark.parametrize("url", ["postgresql://h", "mysql://u:secret@h/calls", "sqlite://"])
def test_the_setting_takes_no_others(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="or a database of PostgreSQL") as caught:
        Settings.load(database_url=url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("command", [["backup", "copy.db"], ["vacuum"]])
def test_commands_for_files_alone_say_so(
    log: CallLog, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", str(log.database.url))
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, ConfigError) or "pg_dump" in result.output

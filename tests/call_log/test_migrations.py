from __future__ import annotations

import logging
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, inspect, text

from millis_hooks.call_log import migrations
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.migrations import HEAD, VERSION_TABLE, migrate, upgrade
from millis_hooks.call_log.search import matching_ids, terms_of
from millis_hooks.exceptions import StorageError
from support.databases import url_in
from support.storage import opened


def set_version(database: Database, version: str) -> None:
    with database.writer.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :v"), {"v": version})


def statements(database: Database) -> dict[str, str]:
    """The statement that made each thing in the database, by name; None of SQLite's own."""
    with database.reader.connect() as connection:
        found = connection.execute(text("SELECT name, sql FROM sqlite_master"))
        return {row.name: row.sql for row in found}


def prepare(url: str, ready: Barrier) -> None:
    database = Database(url)
    ready.wait(20)
    migrate(database)
    database.close()


def test_search_is_there_and_finds_parts_of_words(tmp_path: Path) -> None:
    with opened(tmp_path) as database, database.writer.begin() as connection:
        connection.execute(text("INSERT INTO call_search (rowid, folded) VALUES (7, 'tuesday')"))
        assert [row.id for row in connection.execute(matching_ids(terms_of("uesd")))] == [7]


def test_the_version_the_code_knows_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_new_log_has_the_newest_version_and_is_not_upgraded(tmp_path: Path) -> None:
    with opened(tmp_path) as database, database.writer.begin() as connection:
        before = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all()
        upgrade(connection)
        after = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).all()
        assert before == after == [(HEAD,)]


def test_a_new_log_and_one_that_is_up_to_date_open_without_alembic(tmp_path: Path) -> None:
    probe = (
        "import sys; from millis_hooks.call_log import CallLog; "
        f"[CallLog({url_in(tmp_path)!r}).close() for _ in range(2)]; "
        "print('alembic' in sys.modules)"
    )
    opened_twice = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert opened_twice.stdout == "False\n"


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        before = MetaData()
        before.reflect(database.reader)
        migrate(database)
        assert set(inspect(database.reader).get_table_names()) == set(before.tables)


def test_several_processes_may_prepare_one_log_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    ready = context.Barrier(2)
    arguments = (url_in(tmp_path), ready)
    processes = [context.Process(target=prepare, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    with opened(tmp_path) as database:
        assert inspect(database.reader).has_table("calls")


def test_a_log_written_by_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        set_version(database, "9999")
        with pytest.raises(StorageError, match=rf"has schema 9999, .* knows up to {HEAD}"):
            migrate(database)
        with database.reader.connect() as connection:
            version = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))
            assert version.scalar() == "9999"


@pytest.mark.parametrize("version", ["0001", "0100"])
def test_a_log_from_before_the_first_release_is_refused_with_the_way_out(
    tmp_path: Path, version: str
) -> None:
    with opened(tmp_path) as database:
        set_version(database, version)
        before = statements(database)
        with pytest.raises(StorageError, match=r"never released\. Run `millis-hooks export"):
            migrate(database)
        assert statements(database) == before


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of a later release, which has nothing in it yet, beside a log of this one."""
    with opened(tmp_path):
        pass
    scripts = tmp_path / "scripts"
    shutil.copytree(Path(migrations.__file__).parent, scripts)
    monkeypatch.setattr(migrations, "_SCRIPTS", scripts)
    monkeypatch.setattr(migrations, "HEAD", "0303")
    return scripts / "versions" / "0303_later.py"


SCRIPT = """
from alembic import op

revision, down_revision = "0303", "0302"


def upgrade():
    op.execute("CREATE TABLE later (id INTEGER PRIMARY KEY)")
    {more}
"""


def test_a_log_of_an_earlier_release_is_upgraded_once(later: Path, tmp_path: Path) -> None:
    later.write_text(SCRIPT.format(more=""))
    for _ in range(2):
        with opened(tmp_path) as database:
            assert inspect(database.reader).has_table("later")
            assert database.schema_version() == "0303"


def test_an_upgrade_that_fails_leaves_nothing_behind(later: Path, tmp_path: Path) -> None:
    later.write_text(SCRIPT.format(more='op.execute("DROP TABLE not_there")'))
    with closing(Database(url_in(tmp_path))) as database:
        before = statements(database)
        with pytest.raises(StorageError, match="not_there"):
            migrate(database)
        assert statements(database) == before
        assert database.schema_version() == "0302"


@pytest.fixture
def upgrader(
    later: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sqlite3.Connection]:
    """Another process that has an old log locked; nobody waits long for it."""
    later.write_text(SCRIPT.format(more=""))
    monkeypatch.setattr("millis_hooks.call_log.database.BUSY_TIMEOUT_S", 0.01)
    other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_long_upgrade_by_another_process_is_waited_for(
    tmp_path: Path,
    upgrader: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def finish(record: logging.LogRecord) -> bool:
        if upgrader.in_transaction:
            upgrader.execute("ROLLBACK")
        return True

    logger = logging.getLogger("millis_hooks.call_log")
    monkeypatch.setattr(logger, "filters", [finish])
    with opened(tmp_path) as database:
        assert "another process may be upgrading it; waiting" in caplog.text
        assert database.schema_version() == "0303"


def test_a_lock_that_stays_is_not_waited_for_for_ever(
    tmp_path: Path, upgrader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.call_log.migrations.UPGRADE_WAIT_S", 0)
    database = Database(url_in(tmp_path))
    with pytest.raises(StorageError, match="cannot be prepared: database is locked"):
        migrate(database)
    database.close()

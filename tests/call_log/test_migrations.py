from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, inspect, text

from millis_hooks.call_log import migrations
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.migrations import HEAD, VERSION_TABLE, migrate, upgrade
from millis_hooks.call_log.tables import metadata
from millis_hooks.exceptions import StorageError
from support.databases import url_in
from support.storage import opened

Schema = dict[str, object]


def set_version(database: Database, version: str) -> None:
    with database.writer.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :v"), {"v": version})


def schema_of(url: str) -> Schema:
    """What compare_metadata does not look at: conditions of indexes, and how ids count up."""
    engine = create_engine(url)
    with engine.connect() as connection:
        statements = connection.execute(text("SELECT name, sql FROM sqlite_master"))
        found = {name: sql for name, sql in statements if name in _watched()}
    engine.dispose()
    return {
        name: (" WHERE " + sql.partition(" WHERE ")[2], "AUTOINCREMENT" in sql)
        for name, sql in found.items()
        if sql
    }


def _watched() -> set[str]:
    tables = metadata.sorted_tables
    return {table.name for table in tables} | {
        str(index.name) for table in tables for index in table.indexes
    }


@contextmanager
def scripted(folder: Path) -> Iterator[Database]:
    """A database made by all scripts in turn, as one that was always upgraded."""
    database = Database(f"sqlite:///{folder / 'scripted.db'}")
    with database.writer.begin() as connection:
        upgrade(connection)
    yield database
    database.close()


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


def test_the_scripts_make_the_tables_the_code_uses(tmp_path: Path) -> None:
    with scripted(tmp_path) as database, database.reader.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "include_object": _ours}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def _ours(_item: object, name: str | None, type_: str, _reflected: bool, _other: object) -> bool:
    return type_ != "table" or not str(name).startswith("call_search")


def test_the_scripts_make_the_same_indexes_and_ids_as_the_tables(tmp_path: Path) -> None:
    plain = f"sqlite:///{tmp_path / 'plain.db'}"
    engine = create_engine(plain)
    metadata.create_all(engine)
    engine.dispose()
    with scripted(tmp_path) as database:
        assert schema_of(str(database.url)) == schema_of(plain)


def test_a_new_log_has_all_that_the_scripts_make(tmp_path: Path) -> None:
    with scripted(tmp_path) as database:
        upgraded = statements(database)
    with opened(tmp_path) as database:
        new = statements(database)
    assert new.keys() == upgraded.keys()
    apart = {name for name in new if name.startswith("call_search")}  # not among the tables
    assert apart
    assert {name: new[name] for name in apart} == {name: upgraded[name] for name in apart}


def test_search_is_there_and_finds_parts_of_words(tmp_path: Path) -> None:
    with opened(tmp_path) as database, database.writer.begin() as connection:
        connection.execute(text("INSERT INTO call_search (rowid, folded) VALUES (7, 'tuesday')"))
        found = connection.execute(text("SELECT rowid FROM call_search('\"uesd\"')"))
        assert found.scalar() == 7


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
        f"CallLog({url_in(tmp_path)!r}).close(); print('alembic' in sys.modules)"
    )
    opening = [sys.executable, "-c", probe]
    found = [subprocess.run(opening, capture_output=True, text=True).stdout for _ in range(2)]
    assert found == ["False\n", "False\n"]


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        before = MetaData()
        before.reflect(database.reader)
        migrate(database)
        assert set(inspect(database.reader).get_table_names()) == set(before.tables)


def test_several_processes_may_prepare_one_log_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(3)
    arguments = (url_in(tmp_path), ready)
    processes = [context.Process(target=prepare, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
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


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with opened(tmp_path) as database:
        set_version(database, "0002")
        before = statements(database)
        with pytest.raises(StorageError, match="redacted"):  # it is in the script's way
            migrate(database)
        assert statements(database) == before

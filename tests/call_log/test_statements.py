from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.exc import IntegrityError

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.statements import Prepared, among, insert_rows, update_rows
from millis_hooks.call_log.tables import calls, cost_items
from support.storage import NOW, opened, rows

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


def call(session_id: str, **columns: object) -> dict[str, object]:
    known = {"session_id": session_id, "received_at": NOW, "repeated": False, "unhandled": False}
    return known | {"agent_id": None, "cost_total": None, "opted_out": None} | columns


def test_rows_are_inserted_as_their_columns_have_them(database: Database) -> None:
    new = [call("-s1", agent_id="x" * 900, cost_total=2), call("-ü", opted_out=True)]
    with database.writer.begin() as connection:
        insert_rows(connection, calls, new)
        insert_rows(connection, calls, [])
    first, second = rows(database, calls)
    assert (first.received_at, first.cost_total, first.opted_out) == (NOW, 2.0, None)
    assert len(first.agent_id) == 500
    assert (second.session_id, second.opted_out) == ("-ü", True)


def test_rows_are_changed_by_their_ids(database: Database) -> None:
    later = NOW + timedelta(hours=1)
    with database.writer.begin() as connection:
        insert_rows(connection, calls, [call("-s1"), call("-s2"), call("-s3")])
        changes = [{"received_at": later, "agent_id": f"a{id_}", "id": id_} for id_ in (1, 3)]
        update_rows(connection, calls, changes)
    found = [(row.agent_id, row.received_at) for row in rows(database, calls)]
    assert found == [("a1", later), (None, NOW), ("a3", later)]


def test_any_number_of_values_is_looked_for(database: Database) -> None:
    those = select(calls.c.session_id).where(among(calls.c.session_id, "sessions"))
    with database.writer.begin() as connection:
        insert_rows(connection, calls, [call(f"-s{number}") for number in range(3)])
        for sessions in ([], ["-s1"], [f"-s{number}" for number in range(1, 50_000)]):
            found = set(connection.scalars(those, {"sessions": sessions}))
            assert found == {"-s1", "-s2"}.intersection(sessions)
    assert rows(database, cost_items) == []


def test_a_prepared_statement_gives_rows_as_their_columns_have_them(database: Database) -> None:
    columns = (calls.c.session_id, calls.c.received_at, calls.c.opted_out)
    those = Prepared(select(*columns).where(among(calls.c.session_id, "sessions")))
    with database.writer.begin() as connection:
        insert_rows(connection, calls, [call("-s1", opted_out=True), call("-s2")])
        (row,) = those(connection, {"sessions": ["-s1", "-s3"]})
        assert row == ("-s1", NOW, True)
        assert (row.session_id, row.received_at, row.opted_out) == row
        assert list(those(connection, {"sessions": []})) == []


def test_what_a_prepared_statement_fails_on_is_an_error_of_sqlalchemy_and_undone(
    database: Database,
) -> None:
    rename = Prepared(update(calls).values(session_id=bindparam("new")))
    with database.writer.begin() as connection:
        insert_rows(connection, calls, [call("-s1"), call("-s2")])

    def change(connection: Connection) -> None:
        connection.execute(update(calls).values(agent_id="a"))
        rename(connection, {"new": "-same"})

    with pytest.raises(IntegrityError), database.writer.begin() as connection:
        change(connection)
    assert [(row.session_id, row.agent_id) for row in rows(database, calls)] == [
        ("-s1", None),
        ("-s2", None),
    ]

"""What is searched: in one form on both databases, made by this program."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ...search import searchable

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_BATCH = 500


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE call_search ALTER COLUMN folded DROP EXPRESSION")
        op.execute("ALTER TABLE call_search ALTER COLUMN folded SET NOT NULL")
        _fold("UPDATE call_search SET folded = :folded WHERE rowid = :rowid", "call_search")
        return
    op.execute("ALTER TABLE call_search RENAME TO old_call_search")
    op.execute(
        "CREATE VIRTUAL TABLE call_search USING fts5(text UNINDEXED, folded, tokenize='trigram')"
    )
    op.execute("INSERT INTO call_search (call_search, rank) VALUES ('automerge', 16)")
    _fold(
        "INSERT INTO call_search (rowid, text, folded) VALUES (:rowid, :text, :folded)",
        "old_call_search",
    )
    op.execute("DROP TABLE old_call_search")


def _fold(write: str, source: str) -> None:
    connection = op.get_bind()
    page = sa.text(
        f"SELECT rowid, text FROM {source} WHERE rowid > :last ORDER BY rowid LIMIT {_BATCH}"  # noqa: S608
    )
    last = -1
    while rows := connection.execute(page, {"last": last}).all():
        folded = [
            {"rowid": row.rowid, "text": row.text, "folded": searchable(row.text)} for row in rows
        ]
        connection.execute(sa.text(write), folded)
        last = rows[-1].rowid

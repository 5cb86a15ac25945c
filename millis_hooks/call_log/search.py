"""Finding calls by what was said, by number and by id, on SQLite's trigram index.

A search is a substring in any case, not words. The index starts at three characters; shorter
searches read every text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)

#: One row per call, under the call's id; `text` is its transcript, numbers and ids.
call_search = table("call_search", column("rowid"), column("text"))
CREATE_CALL_SEARCH = text("CREATE VIRTUAL TABLE call_search USING fts5(text, tokenize='trigram')")

MAX_QUERY_CHARS = 200
_INDEXED_FROM_CHARS = 3
_WORDS_BEFORE = 4
_CHARS_AFTER = 160
_OPEN, _CLOSE = "\x02", "\x03"
_PHONE_NUMBER = re.compile(r"\+?[\d\s().-]+")
_UNSEARCHABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A stretch of a call's text around what was searched for, on one line."""

    before: str
    hit: str
    after: str


def clean_query(text: str) -> str:
    """Return what is looked for: one line, bounded, and nothing a database would refuse."""
    return " ".join(_UNSEARCHABLE.sub(" ", text).split())[:MAX_QUERY_CHARS].strip()


def matching_ids(query: str) -> Select[tuple[int]]:
    """Select the ids of the calls that hold `query`, as `clean_query` returned it."""
    ids = select(call_search.c.rowid.label("id"))
    if len(query) < _INDEXED_FROM_CHARS:
        return ids.where(call_search.c.text.contains(query, autoescape=True))
    return ids.where(_matches(query))


def excerpts(connection: Connection, query: str, call_ids: Sequence[int]) -> dict[int, Excerpt]:
    """Return the text around the first hit, by call id; nothing for searches under the index."""
    if len(query) < _INDEXED_FROM_CHARS or not call_ids:
        return {}
    text = func.highlight(literal_column("call_search"), 0, _OPEN, _CLOSE)
    found = connection.execute(
        select(call_search.c.rowid, text).where(_matches(query), call_search.c.rowid.in_(call_ids))
    )
    return {call_id: _excerpt(marked) for call_id, marked in found}


def _matches(query: str) -> ColumnElement[bool]:
    phrases = [query]
    digits = re.sub(r"\D", "", query)
    if _PHONE_NUMBER.fullmatch(query) and len(digits) >= _INDEXED_FROM_CHARS:
        phrases.append(digits)  # as people write numbers; stored ones have no spaces
    # A quoted string is the one form in which FTS5 reads no operators.
    quoted = (phrase.replace('"', '""') for phrase in phrases)
    return call_search.c.text.op("MATCH", is_comparison=True)(
        " OR ".join(f'"{phrase}"' for phrase in quoted)
    )


def _excerpt(marked: str) -> Excerpt:
    before, _, rest = marked.partition(_OPEN)
    hit, _, after = rest.partition(_CLOSE)
    after = after.replace(_OPEN, "").replace(_CLOSE, "")
    said_before, said_after = before.rpartition("\n")[2], after.partition("\n")[0]
    return Excerpt(_last_words(said_before), _one_line(hit), _one_line(said_after[:_CHARS_AFTER]))


def _last_words(text: str) -> str:
    # The last piece touches the hit: it is empty, or the beginning of the word that was hit.
    pieces = _one_line(text).lstrip().split(" ")
    kept = " ".join(pieces[-_WORDS_BEFORE - 1 :])
    return f"…{kept}" if len(pieces) > _WORDS_BEFORE + 1 else kept


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)

"""Finding calls by what was said, by number and by id, on an index of trigrams.

A search is a substring in any case, not words. The index starts at three characters; shorter
searches read every text. SQLite has the index in FTS5, PostgreSQL in pg_trgm.

pg_trgm does not know where in a text a trigram is, so all texts that have those of a search are
read. It also leaves out what is between words, so nearly every text has those of a usual phrase.
On PostgreSQL a text is therefore searched in another form: in lower case, which is quicker to read,
and with a letter for each space, which makes trigrams of the ends and beginnings of words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    column,
    exists,
    func,
    literal_column,
    or_,
    select,
    table,
    text,
)

from .dialects import Either

#: One row per call, under the call's id; `text` is its transcript, numbers and ids.
call_search = table("call_search", column("rowid"), column("text", Text))
#: PostgreSQL's form of `text`, and the letter it has for a space: one that no language writes.
FOLDED, LETTER_FOR_SPACE = "folded", "\u01c0"
CREATE_CALL_SEARCH = text("CREATE VIRTUAL TABLE call_search USING fts5(text, tokenize='trigram')")
#: Lets the index have more parts before it merges them, which in a long log writes a third less.
MERGE_SELDOM = text("INSERT INTO call_search (call_search, rank) VALUES ('automerge', 16)")

MAX_QUERY_CHARS = 200
_INDEXED_FROM_CHARS = 3
_WORDS_BEFORE = 4
_CHARS_AFTER = 160
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
    """Select the ids of the calls that hold `query`, as `clean_query` returned it.

    Where the index answers, the newest come first.
    """
    ids = select(call_search.c.rowid.label("id"))
    match = index_match(query)
    if match is None:
        return ids.where(_contains(query))
    return ids.where(match).order_by(call_search.c.rowid.desc())


def holds(query: str, call_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Say that the call of this id holds `query`."""
    match = index_match(query)
    found = _contains(query) if match is None else match
    return exists(
        select(1).where(call_search.c.rowid == call_id, found).correlate_except(call_search)
    )


def index_match(query: str) -> ColumnElement[bool] | None:
    """Say it of a row of the index; None for searches that are too short for it."""
    return _matches(query) if len(query) >= _INDEXED_FROM_CHARS else None


def _contains(query: str) -> ColumnElement[bool]:
    held = call_search.c.text.contains(query, autoescape=True)
    return Either(sqlite=held, postgresql=_is_in_folded(query))


def _is_in_folded(phrase: str) -> ColumnElement[bool]:
    literally = re.sub("([%_/])", r"/\1", phrase)
    folded = func.replace(func.lower(f"%{literally}%"), " ", LETTER_FOR_SPACE)
    return literal_column(f"{call_search.name}.{FOLDED}", Text).like(folded, escape="/")


def excerpts(connection: Connection, query: str, call_ids: Sequence[int]) -> dict[int, Excerpt]:
    """Return the text around the first hit, by call id."""
    if not query or not call_ids:
        return {}
    texts = select(call_search.c.rowid, call_search.c.text).where(call_search.c.rowid.in_(call_ids))
    sought = re.compile("|".join(re.escape(_folded(phrase)) for phrase in _phrases(query)))
    found = {id_: _excerpt(text, sought) for id_, text in connection.execute(texts)}
    return {id_: excerpt for id_, excerpt in found.items() if excerpt is not None}


def _matches(query: str) -> ColumnElement[bool]:
    # A quoted string is the one form in which FTS5 reads no operators.
    quoted = (phrase.replace('"', '""') for phrase in _phrases(query))
    held = call_search.c.text
    match = held.op("MATCH", is_comparison=True)(" OR ".join(f'"{phrase}"' for phrase in quoted))
    like = or_(*map(_is_in_folded, _phrases(query)))
    return Either(sqlite=match, postgresql=like)


def _phrases(query: str) -> list[str]:
    digits = re.sub(r"\D", "", query)
    if _PHONE_NUMBER.fullmatch(query) and len(digits) >= _INDEXED_FROM_CHARS and digits != query:
        return [query, digits]  # as people write numbers; stored ones have no spaces
    return [query]


def _folded(text: str) -> str:
    """Fold case as the index does: character by character, so that places stay the same."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(low if len(low := each.lower()) == 1 else each for each in text)


def _excerpt(text: str, sought: re.Pattern[str]) -> Excerpt | None:
    hit = sought.search(_folded(text))
    if hit is None:
        return None
    said_before = text[: hit.start()].rpartition("\n")[2]
    said_after = text[hit.end() :].partition("\n")[0][:_CHARS_AFTER]
    return Excerpt(
        _last_words(said_before), _one_line(text[hit.start() : hit.end()]), _one_line(said_after)
    )


def _last_words(text: str) -> str:
    # The last piece touches the hit: it is empty, or the beginning of the word that was hit.
    pieces = _one_line(text).lstrip().split(" ")
    kept = " ".join(pieces[-_WORDS_BEFORE - 1 :])
    return f"…{kept}" if len(pieces) > _WORDS_BEFORE + 1 else kept


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)

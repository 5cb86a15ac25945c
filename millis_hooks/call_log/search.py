"""Finds calls by their text, by number and by id, on an index of trigrams.

A search is a substring, not a list of words. Texts and searches are folded by the same function on
every database: lower case without accents, one blank for any white space, one kind of quotes,
apostrophes, dashes and digits, no width forms. Signs that are letters of their own stay, such as
the vowels of Thai and Hindi and the voicing of Japanese. The digits of all numbers follow each
text, so a number is found in any spelling.

The index starts at three characters; shorter searches read every text. SQLite has it in FTS5,
PostgreSQL in pg_trgm. Neither knows where in a text a trigram is, so every text is read that has
those of the search.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
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

#: Stands for a blank: one that no language writes. PostgreSQL's trigrams leave out what is between
#: words, so with a blank nearly every text would have those of a usual phrase.
BLANK = "\u01c0"

_ALIKE: Mapping[str, str] = {
    **dict.fromkeys("‘’‚‛′´ʹʻʼˈ", "'"),
    **dict.fromkeys("“”„‟″«»〝〞〟", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    # Not seen: soft hyphens, joins, directions, variants.
    **dict.fromkeys("\u00ad\u034f\u061c\u180e\ufeff\u0640", ""),
    **dict.fromkeys(map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F))), ""),
    **dict.fromkeys(map(chr, (*range(0x2060, 0x2070), *range(0xFE00, 0xFE10))), ""),
    **dict(zip("ıłŁøØđĐðÐħĦ", "ilLoOdDdDhH", strict=True)),
    **{"æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "þ": "th", "Þ": "th", BLANK: " "},
}
_ALIKE_PATTERN = re.compile(f"[{''.join(map(re.escape, _ALIKE))}]")
#: Accents of Latin, Greek and Cyrillic; the points of Hebrew and the vowels of Arabic.
_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670]+"
)
_OTHER_DIGITS = re.compile(r"[^\D0-9]")


def fold(text: str) -> str:
    """Return the form of a text, or of a search, by which they are compared."""
    small = text.lower() if text.isascii() else _fold_letters(text)
    return BLANK.join(small.replace("`", "'").split())


def _fold_letters(text: str) -> str:
    alike = _ALIKE_PATTERN.sub(lambda sign: _ALIKE[sign[0]], text)
    letters = _MARKS.sub("", unicodedata.normalize("NFKD", alike))
    small = unicodedata.normalize("NFC", letters).casefold()
    return _OTHER_DIGITS.sub(lambda digit: str(unicodedata.decimal(digit[0])), small)


def stretch_of(text: str, start: int, end: int) -> tuple[int, int]:
    """Return where in a text stands what is from `start` to `end` in its folded form."""
    first, last = _place_of(text, start), _place_of(text, end)
    return first, first + len(text[first:last].rstrip())


def _place_of(text: str, folded_place: int) -> int:
    """Return how much of a text comes before a place of its folded form.

    Line by line: the folded form has a blank for what is between two lines that are not blank.
    """
    place, left = 0, folded_place
    for line in text.splitlines(keepends=True):
        chars = len(fold(line))
        if left < chars:
            prefixes = range(len(line) + 1)
            return place + bisect_right(prefixes, left, key=lambda n: len(fold(line[:n]))) - 1
        place += len(line)
        left -= chars + (1 if chars else 0)
        if left < 0:
            break
    return place


#: One row per call, under the call's id; `text` is its transcript, numbers and ids, and `folded`
#: what is searched of it.
call_search = table(
    "call_search", column("rowid", BigInteger), column("text", Text), column("folded", Text)
)
#: It knows which texts have a trigram, not where: a third of the work, and a fifth of the room. So
#: the texts that have all of those of a search are looked through.
CREATE_CALL_SEARCH = text(
    "CREATE VIRTUAL TABLE call_search USING "
    "fts5(text UNINDEXED, folded, tokenize='trigram', detail=none)"
)
#: What FTS5 matches, by the name of its table: all that is indexed of a row.
_INDEXED: ColumnElement[str] = literal_column("call_search.call_search", Text)
#: So many trigrams of two words, and of one, are looked up, evenly spread. To look up all of them
#: takes longer than to read the few texts more.
_MOST_TRIGRAMS = 5
#: Lets the index have more parts before it merges them, which in a long log writes a third less.
MERGE_SELDOM = text("INSERT INTO call_search (call_search, rank) VALUES ('automerge', 16)")

MAX_QUERY_CHARS = 200
_INDEXED_FROM_CHARS = 3
_WORDS_BEFORE = 4
_CHARS_AFTER = 160
_PHONE_NUMBER = re.compile(rf"\+?[\d{BLANK}().,/-]+")
#: A number in a text, written with something between its digits.
_SPACED_NUMBER = re.compile(rf"\d(?:[{BLANK}().,/-]{{1,3}}\d|\d){{6,19}}")
_MOST_NUMBERS = 100
_UNSEARCHABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A stretch of a call's text around what was searched for, on one line."""

    before: str
    hit: str
    after: str


def clean_query(text: str) -> str:
    """Return what is looked for: one line, bounded, and nothing a database would refuse.

    Empty where nothing is left to look for.
    """
    query = " ".join(_UNSEARCHABLE.sub(" ", text).split())[:MAX_QUERY_CHARS].strip()
    return query if fold(query).strip(BLANK) else ""


def search_row(call_id: int, text: str) -> dict[str, object]:
    """Return the row of `call_search` for a call and its text."""
    return {"rowid": call_id, "text": text, "folded": searchable(text)}


def searchable(text: str) -> str:
    """Return what is searched of a text: its folded form, and the digits of the numbers in it."""
    folded = fold(text)
    numbers = islice(_SPACED_NUMBER.findall(folded), _MOST_NUMBERS)
    digits = (_digits(number) for number in numbers if not number.isdigit())
    return BLANK.join((folded, *dict.fromkeys(digits)))


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
    phrases = _phrases(query)
    return _matches(phrases) if min(map(len, phrases)) >= _INDEXED_FROM_CHARS else None


def _contains(query: str) -> ColumnElement[bool]:
    return or_(*map(_is_in_folded, _phrases(query)))


def _is_in_folded(phrase: str) -> ColumnElement[bool]:
    return call_search.c.folded.contains(phrase, autoescape=True)


def excerpts(connection: Connection, query: str, call_ids: Sequence[int]) -> dict[int, Excerpt]:
    """Return the text around the first hit, by call id."""
    if not query or not call_ids:
        return {}
    texts = select(call_search.c.rowid, call_search.c.text).where(call_search.c.rowid.in_(call_ids))
    sought = re.compile("|".join(map(_pattern, _phrases(query))))
    found = {id_: _excerpt(text, sought) for id_, text in connection.execute(texts)}
    return {id_: excerpt for id_, excerpt in found.items() if excerpt is not None}


def _matches(phrases: Sequence[str]) -> ColumnElement[bool]:
    has_trigrams = _INDEXED.op("MATCH", is_comparison=True)(" OR ".join(map(_trigrams, phrases)))
    held = or_(*(func.instr(call_search.c.folded, phrase) > 0 for phrase in phrases))
    return Either(sqlite=and_(has_trigrams, held), postgresql=or_(*map(_is_in_folded, phrases)))


def _trigrams(phrase: str) -> str:
    """Return a search of FTS5 for the trigrams of a phrase. A quoted string is the one form in
    which it reads no operators."""
    places = range(len(phrase) - _INDEXED_FROM_CHARS + 1)
    trigrams = dict.fromkeys(phrase[place : place + _INDEXED_FROM_CHARS] for place in places)
    # The end of one word and the beginning of another are seldom side by side.
    of_two_words = [trigram for trigram in trigrams if trigram[1] == BLANK]
    of_one_word = [trigram for trigram in trigrams if trigram[1] != BLANK]
    chosen = [*_spread(of_two_words), *_spread(of_one_word)]
    quoted = (trigram.replace('"', '""') for trigram in chosen)
    return "(" + " AND ".join(f'"{trigram}"' for trigram in quoted) + ")"


def _spread(trigrams: Sequence[str]) -> Sequence[str]:
    return trigrams[:: ceil(len(trigrams) / _MOST_TRIGRAMS) or 1]


def _phrases(query: str) -> list[str]:
    """Return what to look for, the folded query first; of a number also its digits alone."""
    folded = fold(query)
    digits = _digits(folded)
    if _PHONE_NUMBER.fullmatch(folded) and len(digits) >= _INDEXED_FROM_CHARS and digits != folded:
        return [folded, digits]
    return [folded]


def _digits(number: str) -> str:
    """Return the digits as they are stored: (0) is for who calls from within the country, and 00
    stands for the plus sign."""
    return re.sub(r"^00|\D", "", number.replace("(0)", ""))


def _pattern(phrase: str) -> str:
    if phrase.isdigit() and len(phrase) > _INDEXED_FROM_CHARS:
        return rf"[{BLANK}().,/-]{{0,3}}".join(phrase)
    return re.escape(phrase)


def _excerpt(text: str, sought: re.Pattern[str]) -> Excerpt | None:
    hit = sought.search(fold(text))
    if hit is None:
        return None
    start, end = stretch_of(text, *hit.span())
    said_before = text[:start].rpartition("\n")[2]
    said_after = text[end:].partition("\n")[0][:_CHARS_AFTER]
    return Excerpt(_last_words(said_before), _one_line(text[start:end]), _one_line(said_after))


def _last_words(text: str) -> str:
    # The last piece touches the hit: it is empty, or the beginning of the word that was hit.
    pieces = _one_line(text).lstrip().split(" ")
    kept = " ".join(pieces[-_WORDS_BEFORE - 1 :])
    return f"…{kept}" if len(pieces) > _WORDS_BEFORE + 1 else kept


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)

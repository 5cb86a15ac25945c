"""Finds calls by words, phrases and parts of numbers, on an index of trigrams.

A search is a list of terms, all of which a call has to hold: words in any order, phrases in double
quotes, numbers in any spelling. A term is found inside of words, too. Texts and searches are folded
by the same function on every database: lower case without accents, one blank for any white space,
one kind of quotes, apostrophes, dashes and digits, no width forms. Signs that are letters of their
own stay, such as the vowels of Thai and Hindi and the voicing of Japanese. The digits of all
numbers follow each text, so a number is found in any spelling.

The text of a call consists of items: its transcript, numbers, ids, values of metadata, error,
functions and providers. Each is folded separately, so no phrase reaches from one into another.

The index starts at three characters; shorter searches read every text. SQLite has it in FTS5,
PostgreSQL in pg_trgm. Neither knows where in a text a trigram is, so every text is read that has
those of the search.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, groupby, islice
from math import ceil
from typing import NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
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
from .sanitize import clean_text

#: Stands for a blank: a capital, which no folded text has. PostgreSQL's trigrams leave out what is
#: between words, so with a blank nearly every text would have those of a usual phrase.
BLANK = "Q"

_ALIKE: Mapping[str, str] = {
    **dict.fromkeys("‘’‚‛′´ʹʻʼˈ", "'"),
    **dict.fromkeys("“”„‟″«»〝〞〟", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
    # Not seen: soft hyphens, joins, directions, variants.
    **dict.fromkeys("\u00ad\u034f\u061c\u180e\ufeff\u0640", ""),
    **dict.fromkeys(map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F))), ""),
    **dict.fromkeys(map(chr, (*range(0x2060, 0x2070), *range(0xFE00, 0xFE10))), ""),
    **dict(zip("ıłŁøØđĐðÐħĦ", "ilLoOdDdDhH", strict=True)),
    **{"æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "þ": "th", "Þ": "th"},
    **{"…": "...", "\u00a0": " ", "\u202f": " "},
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
    if alike.isascii():
        return alike.lower()
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
            if line.isascii() and len(line.rstrip()) == chars:  # each sign is still one sign
                return place + left
            prefixes = range(len(line) + 1)
            return place + bisect_right(prefixes, left, key=lambda n: len(fold(line[:n]))) - 1
        place += len(line)
        left -= chars + (1 if chars else 0)
        if left < 0:
            break
    return place


class Field(StrEnum):
    """What an item of a call's text is, by the sign it begins with.

    Signs are capitals, which no folded text has, and another one than `BLANK`.
    """

    TRANSCRIPT = "T"
    METADATA = "M"
    ERROR = "E"
    NUMBER = "N"
    FUNCTION = "F"
    PROVIDER = "P"
    ID = "I"
    AGENT = "A"


#: One row per call, under the call's id: its folded items, each on a line of its own, after a line
#: with its sign. How they were written stands in its deliveries.
call_search = table("call_search", column("rowid", BigInteger), column("folded", Text))
#: It knows which texts have a trigram, not where: a third of the work, and a fifth of the room. So
#: the texts that have all of those of a search are looked through.
CREATE_CALL_SEARCH = text(
    "CREATE VIRTUAL TABLE call_search USING fts5("
    "folded, tokenize='trigram case_sensitive 1', detail=none, columnsize=0)"
)
#: What FTS5 matches, by the name of its table: all that is indexed of a row.
_INDEXED: ColumnElement[str] = literal_column("call_search.call_search", Text)
#: So many trigrams of two words, and of one, are looked up of a phrase, evenly spread. To look up
#: all of them takes longer than to read the few texts more.
_MOST_TRIGRAMS = 5
#: Of several terms the longest are looked up: others leave out few texts more.
_MOST_INDEXED_TERMS = 4
#: Lets the index have more parts before it merges them, which in a long log writes a third less.
MERGE_SELDOM = text("INSERT INTO call_search (call_search, rank) VALUES ('automerge', 16)")

MAX_QUERY_CHARS = 200
_INDEXED_FROM_CHARS = 3
_WORDS_BEFORE = 4
_CHARS_AFTER = 160
#: The most characters of a call that can be searched.
_SEARCHED_CHARS = 200_000
#: Most that is shown of a call: where its terms were found.
_MOST_EXCERPTS = 3
#: A phrase in quotes, or a word; a quote without another is ignored.
_TERM = re.compile(r'"([^"]*)"|([^\s"]+)')
_PHONE_NUMBER = re.compile(rf"\+?[\d{BLANK}().,/-]+")
#: Digits that several words have together if they are one number, and not several.
_DIGITS_OF_A_NUMBER = 7
#: A number in a text, written with something between its digits.
_SPACED_NUMBER = re.compile(rf"\d(?:[{BLANK}().,/-]{{1,3}}\d|\d){{6,19}}")
_MOST_NUMBERS = 100
#: Stands between texts that are folded together: no text of a call has it, once it is stored.
_APART = "\0"
_UNSEARCHABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]+")

#: Folded phrases of which one has to be there.
Term: TypeAlias = Sequence[str]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A stretch of a call's text around what was searched for, on one line.

    `field` is what it is of: transcript, metadata, error, number, function, provider, id or agent;
    `name` is the key of metadata.
    """

    before: str
    hit: str
    after: str
    field: str = "transcript"
    name: str = ""


def clean_query(text: str) -> str:
    """Return what is looked for: one line, bounded, and nothing a database would refuse.

    Empty where nothing is left to look for.
    """
    query = " ".join(_UNSEARCHABLE.sub(" ", text[: 10 * MAX_QUERY_CHARS]).split())
    query = query[:MAX_QUERY_CHARS].strip()
    return query if terms_of(query) else ""


class Item(NamedTuple):
    """What can be searched of a call, as it was written; `name` is the key of metadata."""

    field: Field
    text: str
    name: str = ""


def searchable(items: Iterable[Item]) -> str:
    """Return what is searched of the items of a call: the row of `call_search`."""
    fields, texts, left = list[str](), list[str](), _SEARCHED_CHARS
    for each in items:
        fields.append(each.field)
        texts.append(each.text[:left])
        left -= len(each.text)
        if left <= 0:
            break
    lines = ["", *chain.from_iterable(zip(fields, _folded(texts), strict=True)), ""]
    return clean_text("\n".join(lines), max_chars=_SEARCHED_CHARS) or ""


def _folded(texts: Sequence[str]) -> list[str]:
    """Return the folded form of each text, and the digits of the numbers in it.

    All are folded at once, which takes a third of the time.
    """
    folded = [each.strip(BLANK) for each in fold(_APART.join(texts)).split(_APART)]
    if len(folded) > len(texts):  # that sign is in a text
        folded = list(map(fold, texts))
    if all(map(str.isdigit, _SPACED_NUMBER.findall(_APART.join(folded)))):
        return folded
    return list(map(_with_digits, folded))


def _with_digits(folded: str) -> str:
    """Add the digits of the numbers that are written with something between them."""
    numbers = islice(_SPACED_NUMBER.findall(folded), _MOST_NUMBERS)
    digits = (_digits(number) for number in numbers if not number.isdigit())
    return BLANK.join((folded, *dict.fromkeys(digits)))


def terms_of(query: str) -> list[Term]:
    """Return the terms of a search, each once, without punctuation that stands alone."""
    parts = list(_parts_of(query))
    meant = [part for part in parts if not _is_punctuation(part)]
    return [_phrases(part) for part in dict.fromkeys(meant or parts)]


def whole_item(field: Field, text: str) -> list[Term]:
    """Return the terms that find the calls with exactly this item, but for case and accents."""
    return [[f"\n{field}\n{_folded([text[:MAX_QUERY_CHARS]])[0]}\n"]]


def _parts_of(query: str) -> Iterator[str]:
    """Yield folded phrases and words. Words that are one number together are a phrase."""
    marked = ((phrase, word) for phrase, word in _TERM.findall(_with_one_quote(query)))
    for kind, group in groupby(marked, key=_kind):
        parts = [part for each in group if (part := fold(each[0] or each[1]).strip(BLANK))]
        together = BLANK.join(parts)
        is_number = kind == "number" and len(_digits(together)) >= _DIGITS_OF_A_NUMBER
        yield from [together] if is_number else map(_alone, parts) if kind == "number" else parts


def _with_one_quote(query: str) -> str:
    return re.sub("[“”„‟″«»〝〞〟＂]", '"', query)


def _kind(part: tuple[str, str]) -> str:
    phrase, word = part
    if phrase or not word:
        return "phrase"
    folded = fold(word)
    return "number" if _PHONE_NUMBER.fullmatch(folded) and _digits(folded) else "word"


def _alone(number: str) -> str:
    """Return a number that is a part of a longer one, or a number of another kind, as 24/7."""
    return number.strip("()") if number.strip("()+").isdigit() else number


def _is_punctuation(part: str) -> bool:
    return all(unicodedata.category(sign).startswith(("P", "Z")) for sign in part)


def matching_ids(terms: Sequence[Term]) -> Select[tuple[int]]:
    """Select the ids of the calls that hold all terms.

    Where the index answers, the newest come first.
    """
    ids = select(call_search.c.rowid.label("id"))
    match = index_match(terms)
    if match is None:
        return ids.where(_hold(terms))
    return ids.where(match).order_by(call_search.c.rowid.desc())


def holds(terms: Sequence[Term], call_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Say that the call of this id holds all terms."""
    of_call = select(1).where(call_search.c.rowid == call_id, _hold(terms))
    return exists(of_call.correlate_except(call_search))


def index_match(terms: Sequence[Term]) -> ColumnElement[bool] | None:
    """Say it of a row of the index; None for searches that are too short for it."""
    indexed = [term for term in terms if min(map(len, term)) >= _INDEXED_FROM_CHARS]
    if not indexed:
        return None
    longest = sorted(indexed, key=lambda term: -len(term[0]))[:_MOST_INDEXED_TERMS]
    trigrams = " AND ".join(
        f"({' OR '.join(_trigrams(phrase, len(longest)) for phrase in term)})" for term in longest
    )
    has_trigrams = _INDEXED.op("MATCH", is_comparison=True)(trigrams)
    return Either(sqlite=and_(has_trigrams, _hold(terms)), postgresql=_hold(terms))


def _hold(terms: Sequence[Term]) -> ColumnElement[bool]:
    return and_(*(or_(*map(_is_in_folded, term)) for term in terms))


def _is_in_folded(phrase: str) -> ColumnElement[bool]:
    folded = call_search.c.folded
    return Either(
        sqlite=func.instr(folded, phrase) > 0,
        postgresql=folded.contains(phrase, autoescape=True),
    )


def excerpts(query: str, calls: Mapping[str, Sequence[Item]]) -> dict[str, tuple[Excerpt, ...]]:
    """Return the text around what was found in each of the calls: the terms side by side as they
    were searched for, or the first hit of each, of an item once."""
    patterns = _patterns(query)
    ways = [[_together(patterns)], list(map(re.compile, patterns))]
    return {
        session_id: next(filter(None, (tuple(_excerpts(items, sought)) for sought in ways)), ())
        for session_id, items in calls.items()
    }


def transcript_excerpts(
    query: str, transcripts: Mapping[str, str]
) -> dict[str, tuple[Excerpt, ...]]:
    """Return what `excerpts` returns of the calls where that is in the transcript: it comes first
    where the terms stand side by side."""
    together = _together(_patterns(query))
    items = {key: [Item(Field.TRANSCRIPT, text)] for key, text in transcripts.items()}
    around = {key: tuple(_excerpts(each, [together])) for key, each in items.items()}
    return {key: each for key, each in around.items() if each}


def _patterns(query: str) -> list[str]:
    return ["|".join(map(_pattern, term)) for term in terms_of(query)]


def _together(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile(BLANK.join(f"(?:{pattern})" for pattern in patterns))


def _excerpts(items: Sequence[Item], sought: Sequence[re.Pattern[str]]) -> Iterator[Excerpt]:
    order = list(Field)
    clean = (each._replace(text=clean_text(each.text) or "") for each in items)
    items = sorted(clean, key=lambda each: order.index(each.field))
    folded = [fold(each.text) for each in items]
    hits: dict[int, tuple[int, int]] = {}
    for pattern in sought:
        for place, value in enumerate(folded):
            if hit := pattern.search(value):
                hits.setdefault(place, hit.span())
                break
    # The longest comes last: a list has a line for all of them.
    found = [(items[place], span) for place, span in sorted(hits.items())]
    found.sort(key=lambda each: each[0].field == Field.TRANSCRIPT)
    for item, span in found[:_MOST_EXCERPTS]:
        yield _excerpt(item, span)


def _trigrams(phrase: str, terms: int) -> str:
    """Return a search of FTS5 for the trigrams of a phrase that is one of so many. A quoted string
    is the one form in which it reads no operators."""
    places = range(len(phrase) - _INDEXED_FROM_CHARS + 1)
    trigrams = dict.fromkeys(phrase[place : place + _INDEXED_FROM_CHARS] for place in places)
    # The end of one word and the beginning of another are rarely side by side.
    of_two_words = [trigram for trigram in trigrams if trigram[1] == BLANK]
    of_one_word = [trigram for trigram in trigrams if trigram[1] != BLANK]
    most = ceil(_MOST_TRIGRAMS / terms)
    chosen = [*_spread(of_two_words, most), *_spread(of_one_word, most)]
    quoted = (trigram.replace('"', '""') for trigram in chosen)
    return "(" + " AND ".join(f'"{trigram}"' for trigram in quoted) + ")"


def _spread(trigrams: Sequence[str], most: int) -> Sequence[str]:
    return trigrams[:: ceil(len(trigrams) / most) or 1]


def _phrases(folded: str) -> Term:
    """Return what to look for; of a number also its digits alone."""
    digits = _digits(folded) if _PHONE_NUMBER.fullmatch(folded) else ""
    if len(digits) < _INDEXED_FROM_CHARS:
        return [folded]
    # A national form begins with a zero that the international one does not have.
    is_national = digits.startswith("0") and len(digits) > _DIGITS_OF_A_NUMBER
    return list(dict.fromkeys([folded, digits, *([digits[1:]] if is_national else [])]))


def _digits(number: str) -> str:
    """Return the digits as they are stored: (0) is for who calls from within the country, and 00
    stands for the plus sign."""
    return re.sub(r"^00|\D", "", number.replace("(0)", ""))


def _pattern(phrase: str) -> str:
    if phrase.isdigit() and len(phrase) > _INDEXED_FROM_CHARS:
        return rf"[{BLANK}().,/-]{{0,3}}".join(phrase)
    return re.escape(phrase)


def _excerpt(item: Item, span: tuple[int, int]) -> Excerpt:
    text = item.text
    start, end = stretch_of(text, *span)
    said_before = text[:start].rpartition("\n")[2]
    said_after = text[end:].partition("\n")[0][:_CHARS_AFTER]
    hit = _one_line(text[start:end])
    field = item.field.name.lower()
    return Excerpt(_last_words(said_before), hit, _one_line(said_after), field, item.name)


def _last_words(text: str) -> str:
    # The last piece touches the hit: it is empty, or the beginning of the word that was hit.
    pieces = _one_line(text).lstrip().split(" ")
    kept = " ".join(pieces[-_WORDS_BEFORE - 1 :])
    return f"…{kept}" if len(pieces) > _WORDS_BEFORE + 1 else kept


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)

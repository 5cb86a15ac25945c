"""The form in which texts are searched: what a person does not tell apart is the same in it.

Texts and searches go through the same function, on every database: small letters without accents,
one blank for any white space, one kind of quotes, apostrophes, dashes and digits, no width forms.
Signs that are letters of their own, as the vowels of Thai and Hindi and the voicing of Japanese,
stay.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping

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

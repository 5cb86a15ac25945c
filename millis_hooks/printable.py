"""Text that a terminal shows and does not obey."""

from __future__ import annotations

import re

#: Control characters, what turns the direction of writing, and halves of surrogate pairs.
_OBEYED = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, *, one_line: bool = False) -> str:
    """Return text that a terminal shows and does not obey; what it would obey is written out."""
    if text.isprintable():  # as nearly all is, and quicker to see
        return text
    shown = _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return shown.replace("\n", "\\n") if one_line else shown

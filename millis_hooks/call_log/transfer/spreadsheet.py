"""Calls as CSV, fit for programs and safe in spreadsheets.

RFC 4180: commas, quotes where they are needed, CRLF; in UTF-8, with a row of names first. Times are
ISO 8601 in UTC, booleans `true` and `false`, and what is not known is empty.

A spreadsheet takes a cell that begins with = + - @ for a formula, whoever wrote it. So a text that
begins with one of these (blanks and control characters aside), with a tab or with a line break gets
an apostrophe in front, which spreadsheets take for "this is text". Two kinds of text are left as
they are, because programs look them up and no formula can be written in them: phone numbers (`+`
and digits) and ids (`-` and then letters, digits, `-` and `_`). `-Ox1demo` stays, `-1+1|cmd` does
not, nor does `-A1-B2`, which names cells.
A text that begins with an apostrophe gets one more, so a program that takes one away wherever
there is one has what the call log has.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, BinaryIO

from sqlalchemy import Column

_MAY_BE_FORMULA = re.compile(r"['\t\r\n]|[\s\x00-\x20\x7f-\xa0\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]")
#: Of an id that reads as cells or numbers taken from one another, as `-A1-B2`, a sum is made.
_IS_NONE = re.compile(r"\+[0-9•]{1,20}|(?!(?:-[A-Za-z]{0,3}[0-9]{1,7})+\Z)-[-A-Za-z0-9_]{1,254}")


def guarded(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula."""
    if _MAY_BE_FORMULA.match(text) and not _IS_NONE.fullmatch(text):
        return f"'{text}"
    return text


def cell(value: object) -> object:
    """Return a value as it goes into a cell."""
    match value:
        case str():
            return guarded(value)
        case bool():
            return str(value).lower()
        case datetime():
            return value.isoformat()
    return value


class CsvRows:
    """Writes rows of CSV."""

    def __init__(self, to: BinaryIO, columns: Sequence[Column[Any]]) -> None:
        self._text = io.TextIOWrapper(to, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text)
        self._rows.writerow([column.name for column in columns])

    def write(self, values: Iterable[object]) -> None:
        self._rows.writerow(map(cell, values))

    def close(self) -> None:
        self._text.detach()

    def abandon(self) -> None:
        self._text.detach()

"""Finds the line of a TOML file on which a value stands, for messages about it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str | int, ...]

_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_NAMES = rf"({_NAME}(?:\s*\.\s*{_NAME})*)"
_HEADER = re.compile(rf"\s*(\[\[?)\s*{_NAMES}\s*\]\]?\s*(#.*)?")
_KEY = re.compile(rf"\s*{_NAMES}\s*=")
_QUOTES = ('"""', "'''")


def line_of(source: str, path: Sequence[str | int]) -> int:
    """Return the line, from 1, of the value at `path`, or of the nearest that holds it."""
    lines = _lines_by_path(source)
    wanted = tuple(path)
    while wanted and wanted not in lines:
        wanted = wanted[:-1]
    return lines.get(wanted, 1)


def _lines_by_path(source: str) -> dict[Path, int]:
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    open_quote: str | None = None
    for number, line in enumerate(source.splitlines(), start=1):
        if open_quote is not None:
            open_quote = None if open_quote in line else open_quote
        elif header := _HEADER.fullmatch(line):
            table = _table(header[1] == "[[", _names(header[2]), counts)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_names(key[1])), number)
            open_quote = _left_open(line)
    return lines


def _table(is_array: bool, names: Path, counts: dict[Path, int]) -> Path:
    """Return the path of a table; one of an array ends with its number there."""
    if is_array:
        counts[names] = counts.get(names, -1) + 1
    path: Path = ()
    seen: Path = ()
    for name in names:
        path, seen = (*path, name), (*seen, name)
        if seen in counts:
            path = (*path, counts[seen])
    return path


def _names(text: str) -> Path:
    """Split a dotted key; quotes may hold dots."""
    try:
        value: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return (text,)
    names: list[str] = []
    while isinstance(value, dict):
        name, value = next(iter(value.items()))
        names.append(name)
    return tuple(names)


def _left_open(line: str) -> str | None:
    """Return the quotes of a text of several lines that begins on this one."""
    return next((quotes for quotes in _QUOTES if line.count(quotes) % 2), None)

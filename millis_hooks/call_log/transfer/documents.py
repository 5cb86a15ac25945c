"""Files of JSON, value after value: one on each line, or a whole file that is one value.

Millis' API answers with one value, which may be spread over many lines: `{"histories": [...]}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

#: What is read into memory at once, in bytes: a line, or a file that is one value.
MAX_BYTES = 256 * 1024 * 1024

#: A first line like these is only the beginning of a value.
_BEGINNINGS = (b"[", b"{", b"[{")


class Document(NamedTuple):
    """The bytes of a value, and the line of the file on which it begins.

    `size` is how many bytes of the file it took; `text` is None where that is too many
    to be read at once.
    """

    line: int
    text: bytes | None
    size: int


def read_documents(file: BinaryIO, *, max_bytes: int = MAX_BYTES) -> Iterator[Document]:
    """Read a file value by value; blank lines count, and hold none."""
    number = 0
    while line := file.readline(max_bytes):
        number += 1
        if number == 1 and line.strip() in _BEGINNINGS:
            text = line + file.read(max_bytes)
            yield Document(number, text if len(text) <= max_bytes else None, len(text))
            return
        if len(line) == max_bytes and not line.endswith(b"\n"):
            yield Document(number, None, len(line) + _skip_line(file, max_bytes))
        elif line.strip():
            yield Document(number, line, len(line))


def _skip_line(file: BinaryIO, max_bytes: int) -> int:
    """Read to the end of the line, and return how many bytes that were."""
    size = 0
    while more := file.readline(max_bytes):
        size += len(more)
        if more.endswith(b"\n"):
            break
    return size

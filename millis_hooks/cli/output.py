"""The standard output as every command writes it: in any encoding, and with an end in words.

What the encoding lacks is replaced. Where the output cannot be written, because the disk is full or
the output was closed, that is an error of the command; a reader that has gone, as in `| head`, is
not.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class OutputError(Exception):
    """The output cannot be written: no command can do anything about that."""


class _Descriptor(io.FileIO):
    """A file descriptor that says in our words why it cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"The output cannot be written: {error.strerror}.") from error


@contextmanager
def writable_output() -> Iterator[None]:
    """Set up the standard output for one command, and see that all of it is written.

    Ends the process with status 2 where it cannot be.
    """
    _occupy_closed_descriptors()
    usual = sys.stdout
    if _is_a_file(usual):
        sys.stdout = _tolerant(usual)
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError as error:
        print(f"Error: {error}", file=sys.stderr)
        _leave(status=2)
    except BrokenPipeError:
        _leave(status=1)


def _occupy_closed_descriptors() -> None:
    """Keep a file of ours from becoming the standard output of a process that was given none."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open to the end
    if sys.stdout is None:
        sys.stdout = _Closed()


def _is_a_file(stream: Any) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    except OSError:
        return False


def _tolerant(usual: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(usual.fileno(), "wb", closefd=False)),
        encoding=usual.encoding,
        errors="replace",
        line_buffering=usual.isatty(),
    )


class _Closed(io.StringIO):
    """Stands for an output that was closed before the command began."""

    def write(self, text: str) -> int:
        if text:
            raise OutputError("The output cannot be written: it is closed.")
        return 0


def _leave(*, status: int) -> NoReturn:
    """End without a last try to write what is still held, of which Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(status)

"""Writing a file that is there once it is complete, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..private_files import make_private
from .terminal import fail


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Yield a file, for its owner only, that gets its name at the end and in one step.

    One that has the name already is only replaced with `force`. Ends the command where the file
    cannot be written.
    """
    _require_free(path, force=force)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        make_private(part, must_be_new=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _require_free(path, force=force)
        part.replace(path)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}.")
    finally:
        part.unlink(missing_ok=True)


def _require_free(path: Path, *, force: bool) -> None:
    if path.exists() and not path.is_file():
        fail(f"{path} is no file. Give no FILE, or -, to write to the standard output.")
    if path.exists() and not force:
        fail(f"{path} exists. Add --force to replace it.")

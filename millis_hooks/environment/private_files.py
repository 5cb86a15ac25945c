"""Files that only their owner may read and write, whatever the umask is."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger("millis_hooks")

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private(path: Path, *, must_be_new: bool = False) -> os.stat_result:
    """Make the file unless it is there, and take from others what rights they have to it.

    Says so in the log, and also where it is another user's file and stays as it is. Raises
    `OSError` if it cannot be opened for writing, or is there although it `must_be_new`.
    """
    file = os.open(path, os.O_CREAT | os.O_RDWR | (os.O_EXCL if must_be_new else 0), 0o600)
    try:
        _tighten(file, path)
        return os.fstat(file)
    finally:
        os.close(file)


def keep_private(path: Path) -> None:
    """Do the same to a file that may be there; never makes one."""
    if path.is_file():
        _tighten(path, path)


def is_private(path: Path) -> bool:
    """Tell whether only its owner may read a file that exists."""
    return os.name != "posix" or not path.stat().st_mode & _OTHERS


def _tighten(file: int | Path, path: Path) -> None:
    found = os.stat(file)  # noqa: PTH116 - a descriptor, where there is one
    if os.name != "posix" or not stat.S_ISREG(found.st_mode) or not found.st_mode & _OTHERS:
        return
    mode = stat.S_IMODE(found.st_mode)
    try:
        os.chmod(file, mode & ~_OTHERS)  # noqa: PTH101
    except OSError:
        logger.warning("others may read %s (mode %04o); it belongs to another user", path, mode)
    else:
        logger.warning("others could read %s (mode %04o); now only its owner can", path, mode)

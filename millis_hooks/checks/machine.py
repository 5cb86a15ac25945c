"""The checks of an installation, in the order of the report, and those of its disk."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from sqlalchemy import make_url

from ..call_log.database import is_file
from ..settings import Settings
from . import CheckResult, bad, ok, warn
from .configuration import check_settings
from .database import check_log_file, check_postgres, check_sqlite

_MB, _GB = 10**6, 10**9
#: With less free space the next hours are not safe.
_SCARCE_BYTES = 100 * _MB
_COMFORTABLE_BYTES = _GB
#: Every acknowledgement waits for a sync, however many share it.
_SLOW_SYNC_MS = 50.0
_SYNCS = 9
_MOUNTS = Path("/proc/mounts")
#: File systems on which several processes cannot share the memory that WAL mode needs.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "fuse.sshfs"}
#: File systems that do not outlive the machine or the container.
_TEMPORARY = {"tmpfs": "in memory", "ramfs": "in memory", "overlay": "inside the container"}


def check_installation(
    settings: Settings,
    now: Callable[[], datetime],
    *,
    reads_all: bool = True,
    measures: bool = True,
) -> Iterator[CheckResult]:
    """Run the checks of this machine.

    `now` is called for each comparison of clocks: the checks before it may take minutes. Without
    `reads_all` the call log is not read to its end, which takes seconds for each GB; without
    `measures` the disk's speed is not measured.
    """
    yield from check_settings(settings)
    url, days = settings.database_url, settings.retention_days
    if not is_file(url):
        yield from check_postgres(
            url, now, kept_days=days, has_own_numbers=bool(settings.own_numbers)
        )
        return
    log = Path(str(make_url(url).database)).resolve()
    yield from check_disk(log, measures=measures)
    yield from check_sqlite(sqlite3.sqlite_version_info)
    if log.parent.is_dir():
        yield from check_log_file(
            log,
            now,
            reads_all=reads_all,
            kept_days=days,
            has_own_numbers=bool(settings.own_numbers),
        )


def check_disk(log: Path, *, measures: bool = True) -> Iterator[CheckResult]:
    """Check the folder of the call log, and its files if there are any."""
    folder = log.parent
    if not folder.is_dir():
        advice = "Create the folder, or correct MILLIS_HOOKS_DATABASE_URL."
        yield bad("folder", f"there is no folder {folder}", advice)
        return
    yield from check_file_system(folder, _MOUNTS.read_text() if _MOUNTS.is_file() else "")
    log_bytes = sum(file.stat().st_size for file in _files(log))
    yield check_free_space(shutil.disk_usage(folder).free, log_bytes)
    yield from check_permissions(log)
    if measures:
        yield check_sync(folder)


def check_file_system(folder: Path, mounts: str) -> Iterator[CheckResult]:
    """Warn of a disk that loses calls; `mounts` is the text of `/proc/mounts`."""
    fields = (line.split(" ") for line in mounts.splitlines())
    above = [(path, kind) for _, path, kind, *_ in fields if folder.is_relative_to(path)]
    _, kind = max(reversed(above), key=lambda mount: len(mount[0]), default=("", ""))
    if kind in _REMOTE:
        advice = "SQLite needs a disk of this machine: move the call log to one."
        yield bad("file system", f"{folder} is on another machine ({kind})", advice)
    if kind in _TEMPORARY:
        yield warn(
            "file system",
            f"{folder} is {_TEMPORARY[kind]} ({kind}), and lost with it",
            "Move the call log to a disk; in a container, to a mounted volume.",
        )


def check_free_space(free_bytes: int, log_bytes: int) -> CheckResult:
    """Compare the free space with the size of the call log."""
    message = f"{_size(free_bytes)} free, the call log takes {_size(log_bytes)}"
    if free_bytes < _SCARCE_BYTES:
        return bad(
            "room",
            message,
            "Free space now: on a full disk no call is kept. `millis-hooks prune` removes old "
            "calls, and `millis-hooks vacuum` gives their space back.",
        )
    if free_bytes < max(_COMFORTABLE_BYTES, log_bytes):
        return warn(
            "room",
            message,
            "Free space, or keep calls for fewer days: a backup on this disk or a vacuum needs as "
            "much as the call log takes.",
        )
    return ok("room", message)


def check_permissions(log: Path) -> Iterator[CheckResult]:
    """Check who can read the files, and whether this user can write them."""
    files = _files(log)
    closed = [str(path) for path in (log.parent, *files) if not os.access(path, os.W_OK)]
    readable = [str(file) for file in files if stat.S_IMODE(file.stat().st_mode) & 0o077]
    if closed:
        yield bad(
            "rights",
            f"{', '.join(closed)} cannot be written by this user",
            f"Let the service's user own {log.parent}: chown -R <user> {log.parent}",
        )
    elif readable and os.name == "posix":
        yield warn(
            "rights",
            "other users of this machine can read the call log",
            f"Run: chmod 600 {' '.join(readable)}",
        )
    elif files:
        yield ok("rights", "only its owner can read the call log")


def check_sync(
    folder: Path,
    *,
    sync: Callable[[int], None] = os.fsync,
    clock: Callable[[], float] = time.perf_counter,
) -> CheckResult:
    """Measure how long a sync takes in the folder of the call log."""
    try:
        median_ms = statistics.median(_sync_ms(folder, sync, clock))
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror}"
        return bad("sync", message, "Make the disk writable: no call is kept on it.")
    message = f"{median_ms:.1f} ms, which every acknowledgement waits for"
    if median_ms > _SLOW_SYNC_MS:
        return warn("sync", message, "Move the call log to a faster disk, an SSD of this machine.")
    return ok("sync", message)


def _sync_ms(
    folder: Path, sync: Callable[[int], None], clock: Callable[[], float]
) -> Iterator[float]:
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_SYNCS):
            file.write(b"." * 4096)
            file.flush()
            began = clock()
            sync(file.fileno())
            yield (clock() - began) * 1000


def _files(log: Path) -> list[Path]:
    """Return the files of the call log that exist."""
    files = (log, Path(f"{log}-wal"), Path(f"{log}-shm"))
    return [file for file in files if file.exists()]


def _size(size_bytes: int) -> str:
    if size_bytes >= _GB:
        return f"{size_bytes / _GB:.1f} GB"
    return f"{size_bytes / _MB:.1f} MB" if size_bytes >= _MB else f"{size_bytes / 1000:.0f} kB"

"""Checks of the disk that the call log is on: its kind, its room, its rights and its speed.

Checks of the clock: against what was stored last, against Millis', and against the service's.
"""

from __future__ import annotations

import os
import shutil
import stat
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, select

from ..call_log.tables import calls, deliveries
from ..call_log.upkeep.retention import doubt_of_clock
from . import Finding, bad, ok, warn

_TOLERATED = timedelta(seconds=5)
_ABSURD = timedelta(seconds=60)
_SET_IT = "Have the machine set its clock by itself: timedatectl set-ntp true"
#: Calls that are looked at for Millis' clock.
_NEWEST_CALLS = 20


def examine_clock(connection: Connection, now: Callable[[], datetime]) -> Iterator[Finding]:
    """Compare the clock with the newest rows of the call log."""
    newest = select(deliveries.c.received_at).order_by(deliveries.c.id.desc()).limit(1)
    received_at = connection.scalar(newest)
    if received_at is None:
        return
    yield judge(received_at - now(), "the newest delivery", only_ahead=True)
    ahead = _millis_ahead(connection)
    if ahead is not None and ahead > _ABSURD:
        yield warn("clock", f"Millis began a call {_words(ahead)} after we saw it end", _SET_IT)


def _millis_ahead(connection: Connection) -> timedelta | None:
    """Return by how much the beginning of a call came after its end, at most."""
    ended = select(calls.c.started_at, calls.c.ended_at).where(
        calls.c.delivery_id.is_not(None), calls.c.started_at.is_not(None)
    )
    newest = ended.order_by(calls.c.id.desc()).limit(_NEWEST_CALLS)
    apart = [started_at - ended_at for started_at, ended_at in connection.execute(newest)]
    return max(apart, default=None)


def judge(ahead: timedelta, what: str, *, only_ahead: bool = False) -> Finding:
    """Say how far `what` is ahead of our clock; behind is natural for what was stored."""
    apart = ahead if only_ahead else abs(ahead)
    if apart <= _TOLERATED:
        return ok("clock", f"agrees with {what}")
    side = "ahead of" if ahead > timedelta() else "behind"
    found = f"{what} is {_words(abs(ahead))} {side} this machine's clock"
    return (bad if apart > _ABSURD else warn)("clock", found, _SET_IT)


def _words(apart: timedelta) -> str:
    seconds = apart.total_seconds()
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def examine_retention(connection: Connection, days: int, now: datetime) -> Iterator[Finding]:
    """Tell where nothing is removed because the clock may be wrong."""
    doubt = doubt_of_clock(connection, kept=timedelta(days=days), now=now) if days else None
    if doubt is not None:
        yield bad(
            "retention",
            f"nothing is removed, because the clock may be wrong: {doubt}",
            f"{_SET_IT}. If it is right: millis-hooks prune --clock-is-right",
        )


_MB, _GB = 10**6, 10**9
#: With less room than this the next hours are not safe.
_SCARCE_BYTES = 100 * _MB
_COMFORTABLE_BYTES = _GB
#: Every acknowledgement waits for a sync, however many share it.
_SLOW_SYNC_MS = 50.0
_SYNCS = 9
#: File systems on which several processes cannot share the memory that WAL mode needs.
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.s3fs"}
)
_MOUNTS = Path("/proc/mounts")


def examine_disk(log: Path, *, measures: bool = True) -> Iterator[Finding]:
    """Look at the folder of the call log, and at its files if there are any."""
    folder = log.parent
    if not folder.is_dir():
        advice = "Make the folder, or correct MILLIS_HOOKS_DATABASE_URL."
        yield bad("folder", f"there is no folder {folder}", advice)
        return
    yield from examine_file_system(folder, _mounts())
    yield examine_room(shutil.disk_usage(folder).free, sum(map(_size, _files(log))))
    yield from examine_rights(log)
    if measures:
        yield examine_sync(folder)


def examine_file_system(folder: Path, mounts: str) -> Iterator[Finding]:
    """Tell what the folder is on; `mounts` is written as in `/proc/mounts`."""
    kind = _kind_of(folder, mounts)
    if kind in _REMOTE:
        yield bad(
            "file system",
            f"{folder} is on another machine ({kind})",
            "SQLite needs a disk of this machine: move the call log to one.",
        )
    elif kind in {"tmpfs", "ramfs"}:
        yield warn(
            "file system",
            f"{folder} is in memory ({kind}), and gone when the machine restarts",
            "Move the call log to a disk.",
        )
    elif kind == "overlay":
        yield warn(
            "file system",
            f"{folder} is inside the container, and gone with it",
            "Mount a volume, and have MILLIS_HOOKS_DATABASE_URL name a file on it.",
        )
    elif kind is not None:
        yield ok("file system", f"{kind}, of this machine")


def _kind_of(folder: Path, mounts: str) -> str | None:
    best, kind = 0, None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if folder.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), fields[2]
    return kind


def _mounts() -> str:
    try:
        return _MOUNTS.read_text(errors="replace")
    except OSError:  # other systems have no such file
        return ""


def examine_room(free_bytes: int, log_bytes: int) -> Finding:
    """Compare what is free with what the call log takes."""
    found = f"{_size_in_words(free_bytes)} free, the call log takes {_size_in_words(log_bytes)}"
    if free_bytes < _SCARCE_BYTES:
        return bad(
            "room",
            found,
            "Make room now: on a full disk no call is kept. `millis-hooks prune` removes old calls "
            "and `millis-hooks vacuum` gives their room back.",
        )
    if free_bytes < max(_COMFORTABLE_BYTES, log_bytes):
        return warn(
            "room",
            found,
            "Make room, or keep calls for fewer days: a backup on this disk or a vacuum needs as "
            "much as the call log takes.",
        )
    return ok("room", found)


def examine_rights(log: Path) -> Iterator[Finding]:
    """Tell who may read the files, and whether we may write them."""
    files = _files(log)
    closed = [str(path) for path in (log.parent, *files) if not os.access(path, os.W_OK)]
    if closed:
        yield bad(
            "rights",
            f"{', '.join(closed)} cannot be written by this user",
            f"Let the service's user write {log.parent} and all that is in it: "
            f"chown -R <user> {log.parent}",
        )
        return
    readable = [file for file in files if stat.S_IMODE(file.stat().st_mode) & 0o077]
    if readable and os.name == "posix":
        names = " ".join(str(file) for file in readable)
        yield warn(
            "rights", "others on this machine may read the call log", f"Run: chmod 600 {names}"
        )
    elif files:
        yield ok("rights", "only its owner may read the call log")


def examine_sync(
    folder: Path,
    *,
    sync: Callable[[int], None] = os.fsync,
    clock: Callable[[], float] = time.perf_counter,
) -> Finding:
    """Measure how long a sync takes, in the folder of the call log."""
    try:
        took_ms = statistics.median(_sync_ms(folder, sync, clock))
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}"
        return bad("sync", found, "Make the disk writable: no call is kept on it.")
    found = f"{took_ms:.1f} ms, which every acknowledgement waits for"
    if took_ms > _SLOW_SYNC_MS:
        return warn("sync", found, "Move the call log to a quicker disk, an SSD of this machine.")
    return ok("sync", found)


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
    """Return those of the call log's files that there are."""
    files = (log, Path(f"{log}-wal"), Path(f"{log}-shm"))
    return [file for file in files if file.exists()]


def _size(file: Path) -> int:
    return file.stat().st_size


def _size_in_words(size_bytes: int) -> str:
    if size_bytes >= _GB:
        return f"{size_bytes / _GB:.1f} GB"
    return f"{size_bytes / _MB:.1f} MB" if size_bytes >= _MB else f"{size_bytes / 1000:.0f} kB"

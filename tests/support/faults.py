"""Storage that really fails: system calls with errors, a disk that is full, damaged files."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Loaded into a process ahead of the C library: while the file $FAULT holds "write 28" or "sync 5",
#: writing to or syncing a database fails with that error number.
_FAILING_CALLS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd, const char *kind) {
    char link[64], name[4096], found[16] = "";
    int number = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return 0;
    name[length] = 0;
    if (!strstr(name, ".db")) return 0;
    FILE *file = fopen(getenv("FAULT"), "r");
    if (!file) return 0;
    int fields = fscanf(file, "%15s %d", found, &number);
    fclose(file);
    if (fields != 2 || strcmp(found, kind)) return 0;
    errno = number;
    return 1;
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    return fails(fd, "write") ? -1 : REAL(pwrite)(fd, bytes, count, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return fails(fd, "write") ? -1 : REAL(pwrite64)(fd, bytes, count, at);
}
ssize_t write(int fd, const void *bytes, size_t count) {
    return fails(fd, "write") ? -1 : REAL(write)(fd, bytes, count);
}
int fdatasync(int fd) { return fails(fd, "sync") ? -1 : REAL(fdatasync)(fd); }
int fsync(int fd) { return fails(fd, "sync") ? -1 : REAL(fsync)(fd); }
"""


class Fault:
    """What goes wrong, from now on, in processes that were started with it around."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def begin(self, kind: str, error_number: int) -> None:
        """Have every `write` or `sync` of a database fail."""
        complete = self._file.with_suffix(".new")
        complete.write_text(f"{kind} {error_number}")
        complete.rename(self._file)

    def end(self) -> None:
        self._file.unlink()


def failing_calls(folder: Path) -> Path:
    """Build the library; skips the test where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, to have system calls fail")
    source, library = folder / "faults.c", folder / "faults.so"
    source.write_text(_FAILING_CALLS)
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


@contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """A disk of its own, in memory; skips the test where none may be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on the disk; return the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"." * 4096)
        except OSError:
            return ballast


@contextmanager
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Another program has the file for itself."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield other
    finally:
        other.close()


def damage(file: Path, *, from_byte: int = 0) -> bytes:
    """Overwrite the file from a byte on, in place, and return what it held."""
    held = file.read_bytes()
    overwrite(file, held[:from_byte] + b"\xa5" * (len(held) - from_byte))
    return held


def overwrite(file: Path, content: bytes) -> None:
    """Put other bytes into the same file."""
    with file.open("r+b") as opened:
        opened.write(content)

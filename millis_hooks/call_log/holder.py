"""One process at a time holds a lock that the operating system takes back when it dies, however it
dies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..private_files import make_private

if TYPE_CHECKING:
    from filelock import FileLock


class FileHolder:
    """Tries to be the one process that holds a file."""

    def __init__(self, path: Path) -> None:
        """`path` is the lock file; it is made when needed, and stays."""
        self._path = path
        self._lock: FileLock | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process is the one."""
        return self._lock is not None and self._lock.is_locked

    def hold(self) -> bool:
        """Become the one if nobody is; never waits. Raises OSError if the file cannot be made."""
        from filelock import FileLock, Timeout

        make_private(self._path)
        if self._lock is None:
            # A lock of another kind would outlive a process that is killed.
            self._lock = FileLock(
                self._path,
                mode=0o600,
                thread_local=False,
                fallback_to_soft=False,
                preserve_lock_file=True,
            )
        if not self._lock.is_locked:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
        return True

    def let_go(self) -> None:
        """Leave the place to another process."""
        if self._lock is not None:
            self._lock.release()

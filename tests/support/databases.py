"""Which database a test is run on: a SQLite file, or one of a PostgreSQL server."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import pytest

from millis_hooks.call_log import CallLog
from support import postgres_server

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")

_kind: Kind = "sqlite"
_made: dict[Path, str] = {}


def url_in(folder: Path) -> str:
    """Return the URL of the call log that belongs to a folder."""
    if _kind == "sqlite":
        return f"sqlite:///{folder / 'log.db'}"
    if folder not in _made:
        _made[folder] = postgres_server.emptied_database(len(_made))
    return _made[folder]


def made_in(folder: Path) -> str:
    """Return the same URL; the call log is there, and empty at first."""
    file = folder / "log.db"
    if _kind == "sqlite" and not file.exists():
        shutil.copy(empty_file(), file)
    return url_in(folder)


@cache
def empty_file() -> Path:
    """Return an empty call log to copy: the schema is made once, for it takes its time."""
    folder = Path(tempfile.mkdtemp(prefix="millis-empty-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = folder / "log.db"
    CallLog(f"sqlite:///{file}").close()
    return file


def use(folder: Path, url: str) -> None:
    """Have the call log of a folder be the one at this URL."""
    _made[folder] = url


def current() -> Kind:
    """Return what this test is run on."""
    return _kind


@contextmanager
def on(kind: Kind) -> Iterator[None]:
    """Run tests on this kind of database; skip them if there is none."""
    global _kind
    if kind == "postgresql":
        try:
            postgres_server.require()
        except postgres_server.NoServerError as error:
            pytest.skip(str(error))
    _kind = kind
    try:
        yield
    finally:
        _kind = "sqlite"


@contextmanager
def freed() -> Iterator[None]:
    """Free the call logs that are made within, for others to begin with."""
    before = dict(_made)
    try:
        yield
    finally:
        _made.clear()
        _made.update(before)

"""Which database a test is run on: a SQLite file, or one of a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import postgres_server
import pytest

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


def use(folder: Path, url: str) -> None:
    """Have the call log of a folder be the one at this URL."""
    _made[folder] = url


def current() -> Kind:
    """Return what this test is run on."""
    return _kind


@contextmanager
def on(kind: Kind) -> Iterator[None]:
    """Run a test on this kind of database; skip it if there is none."""
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
        _made.clear()

"""`new`: a folder with an application that runs, its tests, and secrets of its own."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from ..exceptions import ConfigError
from ..private_files import make_private

#: What is copied as it is, each under its name without `.txt`, which keeps it from being imported,
#: collected or obeyed as the package's own.
_FILES = Path(__file__).with_name("starter")

_NEXT = """Made {folder}. Next:
  cd {folder}
  millis-hooks dev app.py
  pytest"""


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
) -> None:
    """Write a starter application: handlers, tests, and a .env with fresh secrets."""
    try:
        _require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for template in sorted(_FILES.glob("*.txt")):
            content = template.read_text(encoding="utf-8")
            written = folder / template.name.removesuffix(".txt")
            written.touch(0o644)  # with any umask, nobody else may change the code
            written.write_text(content, encoding="utf-8")
        _write_secrets(folder / ".env")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error
    typer.echo(_NEXT.format(folder=folder))


def _require_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a folder that is not there yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty, and nothing in it is overwritten. Name another.")


def _write_secrets(file: Path) -> None:
    """Write settings that nobody but the owner of the file may read."""
    lines = (
        f"MILLIS_HOOKS_SECRETS={secrets.token_hex(32)}\n"
        f"MILLIS_HOOKS_DASHBOARD_PASSWORD={secrets.token_urlsafe(12)}\n"
    )
    make_private(file, must_be_new=True)
    file.write_text(lines)

"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ..environment.sources import cleaned
from ..exceptions import ConfigError

_MAX_CHARS = 10_000
#: How an option takes a secret without it being visible in `ps` and in the shell's history.
SECRET_SOURCES = "- asks or reads a line, env:NAME a variable, file:PATH a file"

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Only print what would be done.")
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Secret: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"The service's secret; {SECRET_SOURCES}. By default from the settings.",
        metavar="-|env:|file:",
    ),
]
Target: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="Your application: app.py, app.py:name, package.module or package.module:name. By "
        "default app.py, if it is in this folder.",
    ),
]


def read_time(text: str) -> datetime:
    """Return the date or time of an option as aware UTC; without a zone it is taken as UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a date. Write it as 2026-11-01 or 2026-11-01T14:00."
        ) from None


def read_pair(text: str) -> tuple[str, str]:
    """Return key and value of KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE.")
    return key, value


def one_of(values: Collection[str]) -> Callable[[str], str]:
    """Return the parser of an option that takes one of these values."""

    def read(text: str) -> str:
        if text not in values:
            raise typer.BadParameter(f"{text!r} is unknown. Known: {', '.join(values)}.")
        return text

    return read


def read_secret(option: str, text: str | None) -> str | None:
    """Return the secret that an option names (see `SECRET_SOURCES`), or the text itself.

    Raises `ConfigError` if there is nothing to read.
    """
    if text is None:
        return None
    kind, colon, name = text.partition(":")
    if text == "-":
        secret = cleaned(_ask(option))
    elif colon and kind == "env":
        secret = cleaned(os.environ.get(name, ""))
    elif colon and kind == "file":
        secret = cleaned(_read_file(option, Path(name)))
    else:
        return text
    if not isinstance(secret, str):
        raise ConfigError(f"{option} {text}: nothing is there.")
    return secret


def _ask(option: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(option.lstrip("-").capitalize(), hide_input=True, err=True))
    return sys.stdin.readline(_MAX_CHARS)


def _read_file(option: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{option} {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {file}: it is not text in UTF-8.") from None

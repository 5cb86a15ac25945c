"""Secrets that options take without their standing in the arguments, which `ps` and the shell's
history show: `-` reads a line of the standard input, `env:NAME` a variable, `file:PATH` a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from ..exceptions import ConfigError

#: What the help of such an option says.
WAYS = "- asks or reads a line, env:NAME a variable, file:PATH a file"
_MAX_CHARS = 10_000


def given_secret(option: str, text: str | None) -> str | None:
    """Return the secret that an option was given, in whichever way; None without one.

    Raises `ConfigError` where there is none to be read.
    """
    from ..setting_sources import cleaned

    if text is None:
        return None
    kind, colon, name = text.partition(":")
    if text == "-":
        found = _ask(option)
    elif colon and kind == "env":
        found = os.environ.get(name, "")
    elif colon and kind == "file":
        found = _read(option, Path(name))
    else:
        return text

    secret = cleaned(found)
    if not isinstance(secret, str):
        raise ConfigError(f"{option} {text}: nothing is there.")
    return secret


def _ask(option: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(option.lstrip("-").capitalize(), hide_input=True, err=True))
    return sys.stdin.readline(_MAX_CHARS)


def _read(option: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{option} {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {file}: it is not text in UTF-8.") from None

"""Where settings come from: arguments, the environment and `.env`, each value cleaned once; also
their values in words, with secrets hidden.

White space and invisible characters at the ends of a value go, and an empty value is none, as in
`NAME=` or `${NAME:-}` of a compose file. A name that looks like a setting and is not one is
refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from ..exceptions import ConfigError
from .addresses import without_password
from .private_files import is_private

ENV_PREFIX = "MILLIS_HOOKS_"
ENV_FILE = Path(".env")

#: The tests of this project look for a server here.
_NOT_OURS = frozenset({"MILLIS_HOOKS_TEST_POSTGRES_URL"})
_ENDS = re.compile(r"\A[\s\x00\ufeff\u200b-\u200f\u2060]+|[\s\x00\ufeff\u200b-\u200f\u2060]+\Z")
_ADDRESS = r"[0-9a-fA-F.:\[\]]+"
#: What Kubernetes sets for each service, by the end of the name: a service named `millis-hooks`
#: or `millis-hooks-worker` gives names with our prefix.
#: Source: kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINKS = {
    r"(|.+_)SERVICE_HOST": rf"({_ADDRESS}|None)",
    r"(|.+_)SERVICE_PORT(_.+)?": r"\d+",
    r"(|.+_)PORT(_\d+_(TCP|UDP|SCTP))?": rf"(tcp|udp|sctp)://{_ADDRESS}:\d+",
    r"(|.+_)PORT_\d+_(TCP|UDP|SCTP)_PROTO": r"tcp|udp|sctp",
    r"(|.+_)PORT_\d+_(TCP|UDP|SCTP)_PORT": r"\d+",
    r"(|.+_)PORT_\d+_(TCP|UDP|SCTP)_ADDR": _ADDRESS,
}
#: What is taken for a setting and is an option of `run`.
_OPTIONS = {"HOST": "--host", "PORT": "--port", "LOG_LEVEL": "--log-level"}


@dataclass(frozen=True, slots=True)
class Given:
    """The value of a setting, and `written`: the name it was given under."""

    value: object
    written: str
    is_in_file: bool = False

    @property
    def place(self) -> str:
        """What an error calls it."""
        return f"{self.written} in {ENV_FILE}" if self.is_in_file else self.written

    @property
    def source(self) -> str:
        """Where it came from: `.env`, `environment`, or `code` for an argument."""
        if self.is_in_file:
            return str(ENV_FILE)
        return "environment" if self.written.startswith(ENV_PREFIX) else "code"


def read_sources(known: Collection[str], arguments: Mapping[str, object]) -> dict[str, Given]:
    """Return what was given for each of the `known` settings; an argument wins over the
    environment, and that over `.env`. An argument may be a `Given` of its own.

    Raises `ConfigError` for names that are not settings, and for a `.env` that cannot be read.
    """
    file = _read_file()
    unknown = [
        *(_unknown_argument(name, known) for name in arguments if name not in known),
        *_unknown_variables(os.environ, known, ""),
        *_unknown_variables(file, known, f" in {ENV_FILE}"),
    ]
    if unknown:
        raise ConfigError("\n".join(unknown))
    found: dict[str, Given] = {}
    for name in known:
        variable = ENV_PREFIX + name.upper()
        given = arguments.get(name)
        for one in (
            given if isinstance(given, Given) else Given(given, name),
            Given(os.environ.get(variable), variable),
            Given(file.get(variable), variable, is_in_file=True),
        ):
            value = cleaned(one.value)
            if name not in found and value is not None:
                found[name] = Given(value, one.written, one.is_in_file)
    return found


def is_in_use_and_public(given: Iterable[Given]) -> bool:
    """Tell whether a value came from `.env`, and others than its owner may read that file."""
    return any(one.is_in_file for one in given) and ENV_FILE.is_file() and not is_private(ENV_FILE)


def cleaned(value: object) -> object:
    """Return a value without what surrounds it; None for an empty text."""
    if isinstance(value, SecretStr):
        text = cleaned(value.get_secret_value())
        return SecretStr(text) if isinstance(text, str) else None
    return (_ENDS.sub("", value) or None) if isinstance(value, str) else value


def _read_file() -> Mapping[str, str | None]:
    """Return what is in `.env`; importing what reads it takes time, and most have none."""
    if not ENV_FILE.is_file():
        return {}
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = ENV_FILE.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{ENV_FILE.resolve()} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{ENV_FILE.resolve()} is not UTF-8. Save it in that encoding.") from None
    for line in parse_stream(StringIO(text)):
        is_lost = line.error or (line.key and line.value is None)
        if is_lost and ENV_PREFIX in line.original.string.upper():
            raise ConfigError(
                f"{ENV_FILE.resolve()}, line {line.original.line}, cannot be read. "
                f"Write {ENV_PREFIX}<NAME>=<value>."
            )
    return dotenv_values(stream=StringIO(text))


def _unknown_argument(name: str, known: Collection[str]) -> str:
    folded = re.sub(r"\W", "_", name.casefold()).removeprefix(ENV_PREFIX.casefold())
    if near := get_close_matches(folded, known, n=1):
        return f"Unknown setting {name!r}. Did you mean {near[0]!r}?"
    return f"Unknown setting {name!r}. Known settings: {', '.join(known)}."


def _unknown_variables(
    variables: Mapping[str, str | None], known: Collection[str], place: str
) -> Iterator[str]:
    names = [ENV_PREFIX + name.upper() for name in known]
    for name in sorted(variables.keys() - names - _NOT_OURS):
        spelt = re.sub(r"\W", "_", name.upper())
        near = get_close_matches(spelt, names, n=1, cutoff=0.94) if "MILLIS" in spelt else []
        if ENV_PREFIX in name and not _is_service_link(name, variables[name] or ""):
            near = near or _near(spelt, names)
            yield f"{name}{place} is not a setting. {_hint(name, near)}"
        elif near:
            yield f"{name}{place} is not a setting. {_hint(name, near)}"


def _near(spelt: str, names: Collection[str]) -> list[str]:
    """Return the likeliest by what follows the prefix, which all of them have."""
    tails = [name.removeprefix(ENV_PREFIX) for name in names]
    found = get_close_matches(spelt.removeprefix(ENV_PREFIX), tails, n=1)
    return [ENV_PREFIX + tail for tail in found]


def _is_service_link(name: str, value: str) -> bool:
    own = name.removeprefix(ENV_PREFIX)
    return own != name and any(
        re.fullmatch(pattern, own) and re.fullmatch(form, value)
        for pattern, form in _SERVICE_LINKS.items()
    )


def _hint(name: str, near: Collection[str]) -> str:
    if option := _OPTIONS.get(name.removeprefix(ENV_PREFIX)):
        return f"Give `millis-hooks run` the option {option} instead."
    if near:
        return f"Did you mean {', '.join(near)}?"
    return "The page Settings of the documentation lists all there are."


#: Characters of a wrong value that an error shows.
_SHOWN_CHARS = 100


def quoted(field: FieldInfo, value: object) -> str:
    """Return the value as it stands in an error, unless it is secret."""
    if "Secret" in str(field.annotation):
        return ""
    text = without_password(repr(value))
    return f" (found: {text if len(text) <= _SHOWN_CHARS else f'{text[:_SHOWN_CHARS]}…'})"


def as_text(field: FieldInfo, value: object) -> str:
    """Return a value as text; of a secret only that it is set."""
    if value is None or value in ((), frozenset(), {}):
        return ""
    if "Secret" in str(field.annotation):
        count = len(value) if isinstance(value, tuple | dict) else 1
        return "set" if count == 1 else f"{count} set"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, frozenset):
        return ",".join(sorted(value))
    return json.dumps(value) if isinstance(value, dict) else without_password(str(value))


def expected(field: FieldInfo) -> str:
    """Say what fits a field."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return "1 or 0, or true or false"
    if kind in (int, float):
        number = "a whole number" if kind is int else "a number"
        return f"{number} {' and '.join(_bounds(field))}"
    return "text, or several with commas between them" if get_origin(kind) else "text"


def _bounds(field: FieldInfo) -> Iterator[str]:
    for bound in field.metadata:
        for name, words in (("gt", "above"), ("ge", "from"), ("le", "up to")):
            if hasattr(bound, name):
                yield f"{words} {getattr(bound, name):,}"

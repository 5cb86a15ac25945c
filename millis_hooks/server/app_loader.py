"""Loads the application that a command names: `app.py`, `app.py:hooks` or `package.module:hooks`.

Importing it runs the team's own code: an error names their file and line, without our frames.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..app import MillisHooks
from ..exceptions import ConfigError, MillisHooksError
from ..masking.error_report import explained

#: The application of a command that names none, as `new` writes it.
APP_FILE = "app.py"


@dataclass(frozen=True, slots=True)
class Target:
    """An imported application; `directory` is where its import begins."""

    module: str
    attribute: str
    directory: Path
    app: Any

    @property
    def import_string(self) -> str:
        """The name by which another process imports it, given the same `sys.path`."""
        return f"{self.module}:{self.attribute}"

    @property
    def hooks(self) -> MillisHooks | None:
        """The application if it is ours, or else ours that is mounted in it."""
        return self._mounted[1]

    @property
    def mounted_at(self) -> str:
        """The path in front of `hooks`: empty unless it is mounted."""
        return self._mounted[0]

    def require_hooks(self) -> MillisHooks:
        """Return `hooks`; raises `ConfigError` if there is none."""
        if self.hooks is None:
            name = self.import_string
            raise ConfigError(f"{name} is not a MillisHooks, and none is mounted in it.")
        return self.hooks

    @property
    def _mounted(self) -> tuple[str, MillisHooks | None]:
        if isinstance(self.app, MillisHooks):
            return "", self.app
        for route in getattr(self.app, "routes", ()):
            if isinstance(getattr(route, "app", None), MillisHooks):
                return route.path, route.app
        return "", None


def load_target(text: str) -> Target:
    """Import what `text` names; its folder, or the working directory, goes first on `sys.path`.

    Without an attribute it is the only `MillisHooks` of the module. Raises `ConfigError` if
    something is missing, and any error of this package that importing the module raises.
    """
    place, attribute = _split(text)
    is_file = place.endswith(".py") or "/" in place
    directory, name = _locate(Path(place)) if is_file else (Path.cwd(), place)
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    module = _import(name, place, directory)
    if is_file:
        _require_same_file(module, Path(place))
    attribute = attribute or _only_instance(module, place)
    return Target(name, attribute, directory, _attribute_of(module, attribute, place))


def target_at_hand(name: str | None) -> Target | None:
    """Import the application that a command names, or else app.py if it uses this package.

    None if there is neither. Raises `ConfigError` if it cannot be imported.
    """
    if name is None and b"millis_hooks" not in _bytes_of(Path(APP_FILE)):
        return None
    return load_target(name or APP_FILE)


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _split(text: str) -> tuple[str, str]:
    place, colon, attribute = text.rpartition(":")
    # The colon of a Windows drive is followed by a path.
    return (place, attribute) if colon and "\\" not in attribute else (text, "")


def _locate(file: Path) -> tuple[Path, str]:
    """Return where the import of `file` begins, and the name it has from there."""
    if not file.is_file():
        hint = " It is a folder; name the file in it." if file.is_dir() else ""
        raise ConfigError(f"There is no file {file}.{hint}")
    if file.suffix != ".py":
        raise ConfigError(f"{file} is not a Python file.")
    file = file.resolve()
    names = [] if file.stem == "__init__" else [file.stem]
    directory = file.parent
    while (directory / "__init__.py").is_file():
        names.append(directory.name)
        directory = directory.parent
    return directory, ".".join(reversed(names))


def _import(name: str, place: str, directory: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except MillisHooksError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"There is no module {error.name!r} in {Path.cwd()} or among the installed "
                "packages. Name a module (package.app) or a file (app.py)."
            ) from error
        raise ConfigError(explained(f"{place} could not be imported:", error, directory)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(explained(f"{place} could not be imported:", error, directory)) from error


def _require_same_file(module: ModuleType, file: Path) -> None:
    imported = getattr(module, "__file__", None)
    if imported is None or Path(imported).resolve() != file.resolve():
        raise ConfigError(
            f"{file} cannot be imported, because another module is named {module.__name__!r}: "
            f"{imported or 'a part of Python'}. Rename the file."
        )


def _only_instance(module: ModuleType, place: str) -> str:
    names = {
        id(value): name
        for name, value in reversed(vars(module).items())  # of two names the first is meant
        if isinstance(value, MillisHooks)
    }
    if len(names) == 1:
        return next(iter(names.values()))
    if not names:
        raise ConfigError(
            f"{place} has no MillisHooks. Write `hooks = MillisHooks()` in it, or name the "
            f"application to serve: {place}:app."
        )
    choices = " or ".join(f"{place}:{name}" for name in names.values())
    raise ConfigError(f"{place} has {len(names)} MillisHooks. Say which: {choices}.")


def _attribute_of(module: ModuleType, attribute: str, place: str) -> Any:
    value: Any = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise ConfigError(f"{place} has no {attribute!r}.")
        value = getattr(value, name)
    if not callable(value):
        kind = type(value).__name__
        raise ConfigError(f"{place}:{attribute} is not an application but of type {kind}.")
    return value

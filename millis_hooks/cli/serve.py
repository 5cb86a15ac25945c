"""`dev` and `run` serve the application that a target names; `worker` only calls its handlers.

`new`: a folder with an application that runs, its tests, and secrets of its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from ..app import MillisHooks
from ..environment.addresses import is_loopback
from ..environment.private_files import make_private
from ..exceptions import ConfigError
from ..observability.log_records import log_config
from ..server import Limits, serve
from ..server.app_loader import Target, load_target
from ..settings import Settings
from ..webhooks import is_webhook_path, webhook_url
from .terminal import print_error

_OPEN_TO_TUNNELS = (
    "             Its API is open to this machine and to tunnels of bytes (ssh -R, socat).\n"
    "             MILLIS_HOOKS_SANDBOX_KEY shuts tunnels out."
)
TargetName = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A file or module, app.py or package.app; :name after it if it has several.",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of them.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


def _require_free(host: str, port: int) -> None:
    """Raise `ConfigError` where nothing can listen, in words that say what to do."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise ConfigError(
            f"Nothing can listen on {host}, port {port}: {error.strerror}. Stop what uses the "
            "port, or choose others with --port and --host."
        ) from None


class LogLevel(StrEnum):
    """From which level on lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Generated:
    """What `dev` made because nobody had set it."""

    secret: str | None
    password: str | None

    def used_by(self, settings: Settings) -> Generated:
        """Leave out what an application does not use, because it is given its own in code."""
        password = settings.dashboard_password
        return Generated(
            self.secret if self.secret in settings.accepted_secrets("end_of_call") else None,
            self.password if password and password.get_secret_value() == self.password else None,
        )


def dev(
    target: TargetName,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    reload: Annotated[bool, typer.Option(help="Restart when a Python file changes.")] = True,
) -> None:
    """Serve on this machine while you write: reloads, and makes the secrets that are missing."""
    generated = _fill_in_secrets(host)
    found = load_target(target)
    if found.hooks is not None:
        found.hooks.settings.require_unreachable(host)
    _require_free(host, port)
    with _secret_file(generated) as file:
        serve(
            found.import_string if reload else found.app,
            host=host,
            port=port,
            limits=_limits(found),
            is_webhook=_webhooks_of(found),
            reload=reload,
            reload_dirs=[found.directory],
            log_config=_log_config(LogLevel.INFO, found),
            tell=print_error,
            announce=lambda: typer.echo(_welcome(found, generated, _address(host, port), file)),
        )


def run(
    target: TargetName,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    log_level: Annotated[
        LogLevel, typer.Option(help="Write lines from this level on.")
    ] = LogLevel.INFO,
) -> None:
    """Serve in production: settings are checked first, and nothing is made up."""
    found = load_target(target)
    if found.hooks is not None:
        found.hooks.settings.require_closed()
        found.hooks.settings.require_unreachable(host)
    _require_free(host, port)
    serve(
        found.app,
        host=host,
        port=port,
        limits=_limits_in_production(found),
        is_webhook=_webhooks_of(found),
        log_config=_log_config(log_level, found),
        announce=lambda: logging.getLogger("millis_hooks").info(
            "serving %s on %s", found.import_string, _address(host, port)
        ),
    )


def worker(
    target: TargetName,
    host: Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the probes; 0 is any that is free.")
    ] = 8001,
    log_level: Annotated[
        LogLevel, typer.Option(help="Write lines from this level on.")
    ] = LogLevel.INFO,
) -> None:
    """Call the handlers of calls that others receive, who run with MILLIS_HOOKS_RUN_HANDLERS=0.

    It answers /healthz, /readyz and /metrics, and nothing else.
    """
    os.environ["MILLIS_HOOKS_RUN_HANDLERS"] = "1"
    found = load_target(target)
    hooks = _hooks_of(found)
    _require_free(host, port)
    serve(
        hooks.probes,
        host=host,
        port=port,
        log_config=_log_config(log_level, found),
        announce=lambda: logging.getLogger("millis_hooks").info(
            "calling the handlers of %s", found.import_string
        ),
    )


def _hooks_of(target: Target) -> MillisHooks:
    hooks = target.hooks
    if hooks is None:
        raise ConfigError(f"{target.import_string} is no MillisHooks, and none is mounted in it.")
    hooks.settings.require_closed()
    if not hooks.settings.run_handlers:
        raise ConfigError(
            f"{target.import_string} is made with run_handlers=False, so that no worker can call "
            "its handlers. Leave it out, and give those that receive MILLIS_HOOKS_RUN_HANDLERS=0."
        )
    return hooks


def _log_config(level: LogLevel, target: Target) -> dict[str, Any]:
    return log_config(level, target.hooks.settings.log_format if target.hooks else "console")


def _fill_in_secrets(host: str) -> Generated:
    """Put into the environment what is missing in the settings, so that reloads keep it."""
    settings = Settings.load()
    is_closed, is_here = _is_closed(settings), is_loopback(host)
    if not is_closed and not is_here:
        raise ConfigError(
            f"Others can reach {host}, so `dev` wants secrets of your own there. Set one:\n"
            "  export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)"
        )
    if is_here or settings.exposed:
        os.environ["MILLIS_HOOKS_SANDBOX"] = os.environ.get("MILLIS_HOOKS_SANDBOX") or "1"
    secret = None if is_closed else secrets.token_hex(32)
    password = None if settings.dashboard_password else secrets.token_urlsafe(12)
    if secret is not None:
        os.environ["MILLIS_HOOKS_SECRETS"] = secret
    if password is not None:
        os.environ["MILLIS_HOOKS_DASHBOARD_PASSWORD"] = password
    return Generated(secret, password)


def _is_closed(settings: Settings) -> bool:
    try:
        settings.require_closed()
    except ConfigError:
        return False
    return True


def _limits(target: Target) -> Limits:
    """Let a body take as long in the server as the application lets it."""
    hooks = target.hooks
    return Limits(body_timeout_s=hooks.settings.body_timeout_s) if hooks else Limits()


def _limits_in_production(target: Target) -> Limits:
    """Who develops is not to wait for a stop."""
    hooks = target.hooks
    return replace(_limits(target), drain_s=hooks.settings.drain_s if hooks else 0)


def _webhooks_of(target: Target) -> Callable[[str], bool]:
    """Tell the server which paths are those that Millis calls."""
    prefix = target.hooks.settings.prefix if target.hooks else ""
    return partial(is_webhook_path, target.mounted_at + prefix)


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _welcome(target: Target, generated: Generated, address: str, file: Path | None) -> str:
    """Return what a person needs to know of a server that has just started."""
    hooks = target.hooks
    if hooks is None:
        return f"Serving {target.import_string} on {address}"
    generated = generated.used_by(hooks.settings)
    base = address + target.mounted_at
    end_of_call = webhook_url(hooks.settings, "end_of_call", base)
    lines = [
        f"Prefetch     GET  {webhook_url(hooks.settings, 'prefetch', base)}",
        f"End of call  POST {end_of_call}",
        f"Dashboard    {base}/calls",
        f"Setup        {base}/setup",
        *_sandbox(hooks.settings, base),
        _sign_in(generated),
        "",
        "Send a sample call:",
        f"  millis-hooks send end-of-call --url {end_of_call}{_secret_option(generated, file)}",
        *_how_to_keep(generated),
    ]
    return "\n".join(["", *lines, ""])


def _sandbox(settings: Settings, base: str) -> list[str]:
    lines = [f"Sandbox      {base}/sandbox"] if settings.sandbox else []
    # Who comes by a tunnel of bytes looks like this machine.
    return [*lines, _OPEN_TO_TUNNELS] if lines and settings.sandbox_key is None else lines


@contextmanager
def _secret_file(generated: Generated) -> Iterator[Path | None]:
    """Keep the secret that was made where only this user can read it, while it is good."""
    if generated.secret is None:
        yield None
        return
    with TemporaryDirectory(prefix="millis-hooks-") as folder:
        file = Path(folder) / "secret"
        make_private(file, must_be_new=True)
        file.write_text(generated.secret)
        yield file


def _secret_option(generated: Generated, file: Path | None) -> str:
    """Say where a secret is that `send` cannot find in the settings: never the secret itself."""
    return f" --secret file:{file}" if generated.secret and file is not None else ""


def _sign_in(generated: Generated) -> str:
    password = f" {generated.password}" if generated.password else " from your settings"
    return f"Sign in as   admin, password{password}"


def _how_to_keep(generated: Generated) -> list[str]:
    lines = [
        f"  {name}={value}"
        for name, value in (
            ("MILLIS_HOOKS_SECRETS", generated.secret),
            ("MILLIS_HOOKS_DASHBOARD_PASSWORD", generated.password),
        )
        if value is not None
    ]
    return ["", "Made for this run only. To keep them, write to .env:", *lines] if lines else []


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

"""`dev` and `run` serve an application, `worker` only runs its handlers, `new` writes a starter."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, TypeAlias

import typer

from ..environment.addresses import is_loopback
from ..environment.private_files import make_private
from ..exceptions import ConfigError
from ..observability.log_records import log_config
from ..server import Limits, serve
from ..server.app_loader import APP_FILE, Target, load_target
from ..settings import Settings
from ..version import requirement
from ..webhooks import is_webhook_path, webhook_url
from . import options
from .terminal import print_error

_logger = logging.getLogger("millis_hooks")
#: What `dev` prints once it serves.
_WELCOME = Path(__file__).with_name("welcome.txt")


LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
Host = Annotated[str, typer.Option(help="Address to listen on (0.0.0.0 for all).")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
Level = Annotated[LogLevel, typer.Option("--log-level", help="Lowest level of log lines.")]


def dev(
    target: options.Target = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    reload: Annotated[bool, typer.Option(help="Restart when a Python file changes.")] = True,
) -> None:
    """Serve while you develop. Reloads, and generates missing secrets."""
    generated = _generate_secrets(host)
    application = _target(target)
    if application.hooks is not None:
        application.hooks.settings.require_unreachable(host)
    _require_free_port(host, port)
    with _secret_file(generated) as file:
        serve(
            application.import_string if reload else application.app,
            host=host,
            port=port,
            limits=_limits(application, drains=False),
            is_webhook=_is_webhook(application),
            reload=reload,
            reload_dirs=[application.directory],
            log_config=_log_config("info", application),
            load=_load,
            tell=print_error,
            announce=lambda: typer.echo(
                _welcome(application, generated, _address(host, port), file)
            ),
        )


def run(
    target: options.Target = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    log_level: Level = "info",
) -> None:
    """Serve in production. Checks the settings and never generates secrets."""
    application = _target(target)
    if application.hooks is not None:
        application.hooks.settings.require_closed()
        application.hooks.settings.require_unreachable(host)
    _require_free_port(host, port)
    serve(
        application.app,
        host=host,
        port=port,
        limits=_limits(application, drains=True),
        is_webhook=_is_webhook(application),
        log_config=_log_config(log_level, application),
        announce=lambda: _logger.info(
            "serving %s on %s", application.import_string, _address(host, port)
        ),
    )


def worker(
    target: options.Target = None,
    host: Host = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the probes; 0 selects a free one.")
    ] = 8001,
    log_level: Level = "info",
) -> None:
    """Run end-of-call handlers for services with MILLIS_HOOKS_RUN_HANDLERS=0.

    It answers /healthz, /readyz and /metrics, and nothing else.
    """
    os.environ["MILLIS_HOOKS_RUN_HANDLERS"] = "1"
    application = _target(target)
    name, hooks = application.import_string, application.require_hooks()
    hooks.settings.require_closed()
    if not hooks.settings.run_handlers:
        raise ConfigError(
            f"{name} is created with run_handlers=False, so that no worker can call its handlers. "
            "Leave that out, and set MILLIS_HOOKS_RUN_HANDLERS=0 for those that receive."
        )
    _require_free_port(host, port)
    serve(
        hooks.probes,
        host=host,
        port=port,
        log_config=_log_config(log_level, application),
        announce=lambda: _logger.info("calling the handlers of %s", name),
    )


def _load(import_string: str) -> Any:
    return load_target(import_string).app


def _target(name: str | None) -> Target:
    """Import the application to serve. Raises `ConfigError`."""
    if name is None and not Path(APP_FILE).is_file():
        raise ConfigError(
            f"There is no {APP_FILE} in {Path.cwd()}. Name your application: a file (shop.py) or a "
            "module (package.shop)."
        )
    return load_target(name or APP_FILE)


def _require_free_port(host: str, port: int) -> None:
    """Raise `ConfigError` if nothing can listen there."""
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


def _log_config(level: LogLevel, application: Target) -> dict[str, Any]:
    hooks = application.hooks
    return log_config(level, hooks.settings.log_format if hooks else "console")


def _limits(application: Target, *, drains: bool) -> Limits:
    """Return the limits that the settings give; in development a stop does not wait."""
    if application.hooks is None:
        return Limits()
    settings = application.hooks.settings
    return Limits(body_timeout_s=settings.body_timeout_s, drain_s=settings.drain_s if drains else 0)


def _is_webhook(application: Target) -> Callable[[str], bool]:
    """Return a function that tells whether a path is one that Millis calls."""
    if application.hooks is None:
        return partial(is_webhook_path, [application.mounted_at])
    settings = application.hooks.settings
    places = (application.mounted_at, settings.public_path)  # a proxy may leave the latter in
    return partial(is_webhook_path, [place + settings.prefix for place in dict.fromkeys(places)])


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class _Generated:
    """What `dev` has generated because the settings lack it."""

    secret: str | None
    password: str | None

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that have it."""
        values = {
            "MILLIS_HOOKS_SECRETS": self.secret,
            "MILLIS_HOOKS_DASHBOARD_PASSWORD": self.password,
        }
        return {name: value for name, value in values.items() if value is not None}

    def used_by(self, settings: Settings) -> _Generated:
        """Leave out what an application does not use because its code sets its own."""
        password = settings.dashboard_password
        return _Generated(
            self.secret if self.secret in settings.accepted_secrets("end_of_call") else None,
            self.password if password and password.get_secret_value() == self.password else None,
        )


def _generate_secrets(host: str) -> _Generated:
    """Put what the settings lack into the environment, so that reloads keep it."""
    settings = Settings.load()
    is_closed, is_local = _is_closed(settings), is_loopback(host)
    if not is_closed and not is_local:
        raise ConfigError(
            f"Other machines can reach {host}, so `dev` needs your own secrets there. Set one:\n"
            "  export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)"
        )
    if is_local or settings.exposed:
        os.environ["MILLIS_HOOKS_SANDBOX"] = os.environ.get("MILLIS_HOOKS_SANDBOX") or "1"
    secret = None if is_closed else secrets.token_hex(32)
    password = None if settings.dashboard_password else secrets.token_urlsafe(12)
    generated = _Generated(secret, password)
    os.environ.update(generated.variables)
    return generated


def _is_closed(settings: Settings) -> bool:
    try:
        settings.require_closed()
    except ConfigError:
        return False
    return True


@contextmanager
def _secret_file(generated: _Generated) -> Iterator[Path | None]:
    """Keep the generated secret in a file that only this user can read, while it is valid."""
    if generated.secret is None:
        yield None
        return
    with TemporaryDirectory(prefix="millis-hooks-") as folder:
        file = Path(folder) / "secret"
        make_private(file, must_be_new=True)
        file.write_text(generated.secret)
        yield file


def _welcome(
    application: Target, generated: _Generated, address: str, secret_file: Path | None
) -> str:
    """Return the addresses, the sign-in and a command to try, for a server that has started."""
    hooks = application.hooks
    if hooks is None:
        return f"Serving {application.import_string} on {address}"
    from jinja2 import Template  # only `dev` needs it

    base = address + application.mounted_at
    text = _WELCOME.read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, lstrip_blocks=True)
    welcome: str = template.render(
        base=base,
        prefetch=webhook_url(hooks.settings, "prefetch", base),
        end_of_call=webhook_url(hooks.settings, "end_of_call", base),
        settings=hooks.settings,
        generated=generated.used_by(hooks.settings),
        secret_file=secret_file,
    )
    return welcome


#: Templates of the starter; `.txt` keeps tools from taking them for the package's own files.
_STARTER = Path(__file__).with_name("starter")


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create.")],
) -> None:
    """Create an application with handlers, tests, and a .env with new secrets."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Name a folder that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty. Name a folder that does not exist yet.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        make_private(folder / ".env", must_be_new=True)
        values = {
            "NAME": _project_name(folder.resolve().name),
            "REQUIREMENT": requirement(),
            "SECRET": secrets.token_hex(32),
            "PASSWORD": secrets.token_urlsafe(12),
        }
        for template in sorted(_STARTER.glob("*.txt")):
            file = folder / template.name.removesuffix(".txt")
            file.touch(0o644)  # with any umask, other users cannot change the code
            text = Template(template.read_text(encoding="utf-8")).substitute(values)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error
    steps = (f"cd {folder}", "millis-hooks dev app.py", "pip install pytest && pytest")
    typer.echo("\n  ".join((f"Created {folder}. Next:", *steps)))


def _project_name(folder: str) -> str:
    """Return a name that packaging tools take: letters and digits of ASCII, joined by hyphens."""
    plain = (letter if letter.isascii() and letter.isalnum() else " " for letter in folder.lower())
    return "-".join("".join(plain).split()) or "app"

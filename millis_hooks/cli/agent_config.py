"""`config`: the part of an agent's configuration that makes Millis send its webhooks here."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ..agent_config import agent_config, warnings_about
from ..exceptions import ConfigError
from ..webhooks import service_url
from .terminal import note

if TYPE_CHECKING:
    from ..settings import Settings


class Form(StrEnum):
    """How Millis takes a webhook."""

    OBJECT = "object"
    STRING = "string"


def config(
    target: Annotated[
        str | None,
        typer.Argument(help="app.py or module:attribute, where settings are given in code."),
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="The public address: https://hooks.example.com")],
    form: Annotated[
        Form,
        typer.Option("--as", help="object: address and headers; string: the secret in the path."),
    ] = Form.OBJECT,
    agent_id: Annotated[
        str | None, typer.Option(help="Use the secret of this agent, if it has its own.")
    ] = None,
) -> None:
    """Print the agent configuration that makes Millis send its webhooks here, as JSON."""
    settings, mounted_at = _settings(target)
    settings.require_closed()
    base = service_url(settings, url) + mounted_at
    if form is Form.STRING and not settings.secret_in_path:
        raise ConfigError(
            "A webhook that is only an address carries its secret in the path, which is switched "
            "off. Switch it on for the service:\n  export MILLIS_HOOKS_SECRET_IN_PATH=1"
        )
    webhooks = agent_config(settings, base, form=form.value, agent_id=agent_id)
    typer.echo(json.dumps(webhooks, indent=2))
    _warn(base, form)


def _settings(target: str | None) -> tuple[Settings, str]:
    """Return the settings, and the path that the application is mounted at."""
    from ..settings import Settings
    from ..target import load_target

    if target is None:
        return Settings.load(), ""
    found = load_target(target)
    if found.hooks is None:
        raise ConfigError(f"{target} has no MillisHooks to take the settings from.")
    return found.hooks.settings, found.mounted_at


def _warn(url: str, form: Form) -> None:
    if form is Form.STRING:
        note("Note: paths end up in the logs of every proxy on the way. Prefer --as object.")
    for warning in warnings_about(url):
        note(f"Note: {warning}")

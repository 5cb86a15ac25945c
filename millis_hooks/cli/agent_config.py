"""`config`: the part of an agent's configuration that makes Millis send its webhooks here."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from ..exceptions import ConfigError
from .terminal import note
from .webhooks import is_loopback, require_web_url, secret_for, secret_header, webhook_url

if TYPE_CHECKING:
    from ..settings import Hook, Settings

#: The agent's keys for the two webhooks. Source: `AgentConfig` in Millis' OpenAPI file.
_KEYS: dict[str, Hook] = {
    "extra_prompt_webhook": "prefetch",
    "session_data_webhook": "end_of_call",
}


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
    require_web_url(url)
    base = url.rstrip("/") + mounted_at
    if form is Form.STRING and not settings.secret_in_path:
        raise ConfigError(
            "A webhook that is only an address carries its secret in the path, which is switched "
            "off. Switch it on for the service:\n  export MILLIS_HOOKS_SECRET_IN_PATH=1"
        )
    make = _as_object if form is Form.OBJECT else _as_string
    webhooks = {key: make(settings, hook, base, agent_id) for key, hook in _KEYS.items()}
    typer.echo(json.dumps(webhooks, indent=2))
    _warn(url, form)


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


def _as_object(settings: Settings, hook: Hook, base: str, agent_id: str | None) -> dict[str, Any]:
    headers = secret_header(settings, _secret(settings, hook, agent_id))
    return {"url": webhook_url(settings, hook, base)} | ({"headers": headers} if headers else {})


def _as_string(settings: Settings, hook: Hook, base: str, agent_id: str | None) -> str:
    return webhook_url(settings, hook, base, secret=_secret(settings, hook, agent_id))


def _secret(settings: Settings, hook: Hook, agent_id: str | None) -> str | None:
    secret = secret_for(settings, hook, agent_id)
    if secret is None and not settings.insecure:
        raise ConfigError("Every secret belongs to one agent. Say which with --agent-id.")
    return secret


def _warn(url: str, form: Form) -> None:
    address = urlsplit(url)
    if form is Form.STRING:
        note("Note: paths end up in the logs of every proxy on the way. Prefer --as object.")
    if is_loopback(address.hostname):
        note(f"Note: Millis cannot reach {address.hostname}; use the address of a tunnel.")
    elif address.scheme != "https":
        note("Note: over http, the secret and the calls can be read on the way. Use https.")

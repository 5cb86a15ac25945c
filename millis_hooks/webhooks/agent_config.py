"""The part of an agent's configuration that makes Millis send its webhooks here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from ..environment.addresses import is_loopback
from ..exceptions import ConfigError
from ..protocol.reading import Json
from . import secret_for, secret_header, webhook_url

if TYPE_CHECKING:
    from ..settings import Hook, Settings

#: How Millis takes a webhook: an object of address and headers, or a string, the address alone.
Form: TypeAlias = Literal["object", "string"]
#: Chooses the secret that a webhook is configured with.
SecretFor: TypeAlias = "Callable[[Settings, Hook, str | None], str | None]"

#: The agent's keys for the two webhooks. Source: `AgentConfig` in Millis' OpenAPI file.
KEYS: dict[str, Hook] = {
    "extra_prompt_webhook": "prefetch",
    "session_data_webhook": "end_of_call",
}


def agent_config(
    settings: Settings,
    base: str,
    *,
    form: Form = "object",
    agent_id: str | None = None,
    choose: SecretFor = secret_for,
    tools: Iterable[Mapping[str, Json]] = (),
) -> dict[str, Any]:
    """Return what is to be merged into an agent's configuration, for a service at `base`.

    `tools` are the entries of functions, without address and header: those of `Router.tools`, or of
    `stored_tools`. Raises `ConfigError` where every secret belongs to an agent and none was named.
    """
    make = _as_object if form == "object" else _as_string
    config: dict[str, Any] = {
        key: make(settings, hook, base, _secret(settings, hook, agent_id, choose))
        for key, hook in KEYS.items()
    }
    entries = list(tools)
    if entries:
        webhook = make(settings, "function", base, _secret(settings, "function", agent_id, choose))
        config["tools"] = [_tool(entry, webhook) for entry in entries]
    return config


def _tool(entry: Mapping[str, Json], webhook: dict[str, Any] | str) -> dict[str, Any]:
    """Return an entry with its address, and its header: `tools` has the singular."""
    url, headers = (webhook, None) if isinstance(webhook, str) else _parts(webhook)
    address: dict[str, Any] = {"webhook": f"{url}/{entry['name']}"}
    return {**entry, **address} | ({"header": headers} if headers else {})


def _parts(webhook: dict[str, Any]) -> tuple[str, dict[str, str] | None]:
    return webhook["url"], webhook.get("headers")


def warnings_about(url: str) -> Iterator[str]:
    """Say why Millis cannot use an address, or should not."""
    address = urlsplit(url)
    if is_loopback(address.hostname):
        yield f"Millis cannot reach {address.hostname}; use the address of a tunnel."
    elif address.scheme != "https":
        yield "Over http, the secret and the calls can be read on the way. Use https."


def _secret(settings: Settings, hook: Hook, agent_id: str | None, choose: SecretFor) -> str | None:
    secret = choose(settings, hook, agent_id)
    if secret is None and not settings.insecure:
        raise ConfigError("Every secret belongs to one agent. Say which with --agent-id.")
    return secret


def _as_object(settings: Settings, hook: Hook, base: str, secret: str | None) -> dict[str, Any]:
    headers = secret_header(settings, secret)
    return {"url": webhook_url(settings, hook, base)} | ({"headers": headers} if headers else {})


def _as_string(settings: Settings, hook: Hook, base: str, secret: str | None) -> str:
    return webhook_url(settings, hook, base, secret=secret)

"""Where the two webhooks are, and what a request to them carries."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from .exceptions import ConfigError

if TYPE_CHECKING:
    from .settings import Hook, Settings

_PATHS: dict[Hook, str] = {"prefetch": "prefetch", "end_of_call": "end-of-call"}

_NAMES = frozenset(_PATHS.values())


def webhook_url(settings: Settings, hook: Hook, base: str, *, secret: str | None = None) -> str:
    """Return the address of a webhook below `base`; with `secret` it is part of the path."""
    parts = [base.rstrip("/") + settings.prefix, _PATHS[hook]]
    if secret is not None:
        parts.insert(1, quote(secret, safe=""))
    return "/".join(parts)


def is_webhook_path(base: str, path: str) -> bool:
    """Tell whether `path` is a webhook's below `base`: what follows may begin with a secret."""
    if not path.startswith(f"{base}/"):
        return False
    return not _NAMES.isdisjoint(path[len(base) + 1 :].split("/", 2)[:2])


def given_url(settings: Settings, hook: Hook, url: str) -> str:
    """Return `url` if it is the webhook's own address, else the webhook's address below it."""
    require_web_url(url)
    name = _PATHS[hook]
    return url if url.rstrip("/").endswith(f"/{name}") else webhook_url(settings, hook, url)


def secret_header(settings: Settings, secret: str | None) -> dict[str, str]:
    """Return the header that carries the secret; none without a secret."""
    if secret is None:
        return {}
    is_bearer = settings.secret_header.lower() == "authorization"
    return {settings.secret_header: f"Bearer {secret}" if is_bearer else secret}


def secret_for(settings: Settings, hook: Hook, agent_id: str | None = None) -> str | None:
    """Choose among the accepted secrets: this agent's own, one for every agent, or none."""
    accepted = settings.accepted_secrets(hook)
    for owner in (agent_id, None):
        for secret, bound_to in accepted.items():
            if bound_to == owner:
                return secret
    return None


def require_web_url(url: str) -> None:
    """Raise `ConfigError` unless `url` is one a webhook can be sent to."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{url!r} is no web address. Write it as https://hooks.example.com.")

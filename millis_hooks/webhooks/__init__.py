"""Where the webhooks are, and what a request to them carries."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from ..environment.addresses import service_address, web_address, without_password
from ..exceptions import ConfigError
from ..protocol.test_marks import Purpose, mark_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..settings import Hook, Settings

_PATHS: dict[Hook, str] = {
    "prefetch": "prefetch",
    "end_of_call": "end-of-call",
    "function": "functions",
}

_NAMES = frozenset(_PATHS.values())
#: The end of a function's address.
_FUNCTION = re.compile(r"/functions/[^/]*\Z")


def webhook_url(settings: Settings, hook: Hook, base: str, *, secret: str | None = None) -> str:
    """Return the address of a webhook below `base`; with `secret` it is part of the path."""
    parts = [base.rstrip("/") + settings.prefix, _PATHS[hook]]
    if secret is not None:
        parts.insert(1, quote(secret, safe=""))
    return "/".join(parts)


def is_webhook_path(bases: Iterable[str], path: str) -> bool:
    """Tell whether `path` is a webhook's below one of `bases`; a secret may come between."""
    return any(
        path.startswith(f"{base}/")
        and not _NAMES.isdisjoint(path[len(base) + 1 :].split("/", 2)[:2])
        for base in bases
    )


def given_url(settings: Settings, hook: Hook, url: str) -> str:
    """Return `url` if it is the webhook's own address, else the webhook's address below it.

    Raises `ConfigError`.
    """
    if url.rstrip("/").endswith(f"/{_PATHS[hook]}"):
        return _checked(web_address, url)
    return webhook_url(settings, hook, service_url(settings, url))


def service_url(settings: Settings, url: str) -> str:
    """Return the address of the service from what `--url` was given: that address, or the whole
    one of a webhook. Raises `ConfigError`."""
    return _checked(lambda text: service_address(text, settings.prefix), url)


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


def secret_in(settings: Settings, url: str, headers: Iterable[tuple[str, str]]) -> str | None:
    """Return the secret that a request to a webhook brings, read as the webhook reads it: from its
    path, else from the header."""
    path = _FUNCTION.sub("/functions", urlsplit(url).path.rstrip("/"))
    before, _, secret = path.rpartition("/")[0].rpartition("/")
    if f"/{secret}" != settings.prefix and before.endswith(settings.prefix):
        return unquote(secret)
    name = settings.secret_header.lower()
    values = [value for key, value in headers if key.lower() == name]
    if name == "authorization":
        values = [value[7:] for value in values if value[:7].lower() == "bearer "]
    return values[0].strip() if values else None


@dataclass(frozen=True, slots=True)
class Marker:
    """Makes the mark of what is sent for one purpose, by the secret in each request."""

    settings: Settings
    purpose: Purpose

    def __call__(
        self, session_id: str | None, url: str, headers: Iterable[tuple[str, str]]
    ) -> dict[str, str]:
        """Return the header that marks a request about this session."""
        return mark_header(secret_in(self.settings, url, headers), session_id, self.purpose)


def _checked(check: Callable[[str], str], url: str) -> str:
    try:
        return check(url.strip())
    except ValueError as error:
        raise ConfigError(f"--url {without_password(repr(url))}: {error}.") from None

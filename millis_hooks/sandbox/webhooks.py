"""A webhook as an agent's configuration names it: an address, or one with headers."""

from __future__ import annotations

from typing import NamedTuple

from ..wire import Json


class Webhook(NamedTuple):
    """Where to send to, and the configured headers."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()


def webhook_of(value: Json) -> Webhook | None:
    """Read `string | {url, headers?} | null`, Millis' `WebhookConfig`; None where there is none."""
    if isinstance(value, str):
        return Webhook(value) if value else None
    if not isinstance(value, dict) or not isinstance(value.get("url"), str) or not value["url"]:
        return None
    return Webhook(str(value["url"]), headers_of(value.get("headers")))


def headers_of(value: Json) -> tuple[tuple[str, str], ...]:
    """Read an object of headers; what is no text is left out."""
    if not isinstance(value, dict):
        return ()
    return tuple((name, text) for name, text in value.items() if isinstance(text, str))

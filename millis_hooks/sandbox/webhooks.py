"""A webhook as an agent's configuration names it: an address, or one with headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..wire import Json

#: Where an agent's configuration has the two webhooks.
PREFETCH, END_OF_CALL = "extra_prompt_webhook", "session_data_webhook"


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


def webhook_of_tool(tool: Mapping[str, Json]) -> Webhook | None:
    """Read the webhook of a function, Millis' `Function`; None where it has none."""
    address = tool.get("webhook")
    if not isinstance(address, str) or not address:
        return None
    return Webhook(address, headers_of(tool.get("header")))


def headers_of(value: Json) -> tuple[tuple[str, str], ...]:
    """Read an object of headers; what is no text is left out."""
    if not isinstance(value, dict):
        return ()
    return tuple((name, text) for name, text in value.items() if isinstance(text, str))

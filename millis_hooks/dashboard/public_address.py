"""Which address Millis is to call: the one that was typed in, else that of the settings, else the
one the browser has used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ..agent_config import warnings_about
from ..loopback import is_link_local, is_loopback
from ..settings import Settings
from ..web_address import web_address
from .pages import Asked

_MAX_CHARS = 500
#: Where the browser does not say how it reached us.
_EXAMPLE = "https://hooks.example.com"


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """The address and what to know about it.

    `is_ours` says that nobody could have put it into a link: it is not what was typed in, or the
    same as would have been without. `refused` is what was typed in and is no address.
    """

    url: str
    origin: Literal["typed", "settings", "browser"]
    is_ours: bool
    refused: str | None
    warning: str | None
    tunnel: str | None

    @property
    def host(self) -> str:
        """The host and, where it is not the usual one, the port."""
        return urlsplit(self.url).netloc


def public_address(settings: Settings, asked: Asked) -> PublicAddress:
    """Choose the address that the page is about."""
    typed = asked.query.get("url", "").strip().rstrip("/")
    configured = (settings.public_url or "").rstrip("/")
    own = asked.address if _is_usable(asked.address) else _EXAMPLE
    known = configured or own
    is_typed = bool(typed) and _is_usable(typed) and typed != known
    url = typed if is_typed else known
    return PublicAddress(
        url=url,
        origin="typed" if is_typed else "settings" if configured else "browser",
        is_ours=url in (configured, own),
        refused=typed[:_MAX_CHARS] if typed and not _is_usable(typed) else None,
        warning=next(warnings_about(url), None),
        tunnel=_tunnel(url, own),
    )


def _is_usable(url: str) -> bool:
    """Whether it can be the beginning of a webhook's address."""
    try:
        return not is_link_local(urlsplit(web_address(url)).hostname or "")
    except ValueError:
        return False


def _tunnel(url: str, own: str) -> str | None:
    """Return a command that makes this service reachable, if it is not."""
    if not is_loopback(urlsplit(url).hostname):
        return None
    port = urlsplit(own).port
    return f"cloudflared tunnel --url http://localhost{f':{port}' if port else ''}"

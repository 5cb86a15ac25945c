"""Whether a form comes from a page of ours, and what to say where it does not."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

_PORTS = {"http": 80, "https": 443}
_SHOWN_CHARS = 200


def refusal_of(headers: Headers, scheme: str, public_url: str | None) -> str | None:
    """Return why a form is not taken, None if it comes from one of our pages or from no page.

    Browsers say `Sec-Fetch-Site` over HTTPS and on this machine, and `Origin` with every form.
    Both are compared by what they mean: default ports and the case of letters are no difference.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return None if site in ("same-origin", "none") else _CROSS_SITE.format(_shown(site))
    sources = headers.getlist("origin") or [_origin_in(headers.get("referer", ""))]
    ours = {_normal(url) for url in _own(headers, scheme, public_url)} - {None}
    foreign = next((each for each in sources if each and _normal(each) not in ours), None)
    if foreign is None:
        return None
    return _FOREIGN.format(
        foreign=_shown(foreign), ours=" and ".join(_own(headers, scheme, public_url))
    )


_CROSS_SITE = (
    "This form was sent from another site: the browser says Sec-Fetch-Site: {}. "
    "Open the page itself, and send the form from there."
)
_FOREIGN = (
    "This form was sent from {foreign}, and this site is {ours}. If {foreign} is where you open "
    "this site, set MILLIS_HOOKS_PUBLIC_URL to it, or have the proxy pass on Host and "
    "X-Forwarded-Proto as they came."
)


def _own(headers: Headers, scheme: str, public_url: str | None) -> Iterator[str]:
    yield _shown(f"{scheme}://{headers.get('host', '')}")
    if public_url:
        yield public_url


def _origin_in(referer: str) -> str:
    """Return the origin that an address begins with; an address that has none as it is."""
    with suppress(ValueError):
        parts = urlsplit(referer)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else referer
    return referer


def _normal(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port; None where there is no host."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, _normal_host(parts.hostname), port


def _normal_host(host: str) -> str:
    with suppress(ValueError):
        return ipaddress.ip_address(host).compressed
    with suppress(UnicodeError):
        return host.encode("idna").decode().lower().rstrip(".")
    return host.lower()


def _shown(text: str) -> str:
    printable = "".join(each if each.isprintable() else "\ufffd" for each in text)
    return printable[:_SHOWN_CHARS]

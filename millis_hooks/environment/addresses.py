"""Addresses: how one that is typed in or set must look, and which ones mean this machine, a network
card, or one subscriber.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

_MAX_CHARS = 500
_SUCH_AS = "such as https://hooks.example.com"
_REFUSED = {"?": "no query (?)", "#": "no fragment (#)", "@": "no user name or password (@)"}
_HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.?|(?=[^:]*:)[0-9a-f:.]+")
_PATH = re.compile(r"[^\s<>\"'\\^`{|}]*")


def web_address(text: str) -> str:
    """Return the address without a slash at its end, its scheme and host in small letters.

    Raises `ValueError`, which says what was expected and quotes nothing, for what is not
    `http(s)://host[:port][/path]`.
    """
    if not re.match(r"https?://", text, re.IGNORECASE):
        raise ValueError(f"expected an address that begins with https:// or http://, {_SUCH_AS}")
    for sign, expected in _REFUSED.items():
        if sign in text:
            raise ValueError(f"expected an address with {expected} in it, {_SUCH_AS}")
    try:
        parts = urlsplit(text)
        is_usable = parts.port != 0 and _HOST.fullmatch(parts.hostname or "") is not None
    except ValueError:
        is_usable = False
    if not is_usable or parts.netloc.endswith(":"):
        raise ValueError(f"expected an address with a host, and a port from 1 to 65535, {_SUCH_AS}")
    if len(text) > _MAX_CHARS or not text.isprintable() or not _PATH.fullmatch(parts.path):
        raise ValueError(f"expected an address without spaces, quotes and brackets, {_SUCH_AS}")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def service_address(text: str, prefix: str) -> str:
    """Return the address of a service whose webhooks are below `prefix`, also from the whole
    address of one of them. Raises `ValueError` as `web_address` does."""
    address = web_address(text)
    start = address.index("/", len("https://")) if address.count("/") > 2 else len(address)
    host, path = address[:start], address[start:]
    if not path.endswith(("/prefetch", "/end-of-call")):
        return address
    webhook = re.fullmatch(rf"(.*?){re.escape(prefix)}(/[^/]{{16,}})?/(prefetch|end-of-call)", path)
    if webhook is None:
        raise ValueError(
            f"expected the address of the service, or of a webhook of it, which is below "
            f"{prefix or '/'}"
        )
    return host + webhook[1]


def without_password(text: str) -> str:
    """Return a text without the passwords of addresses in it."""
    hidden = re.sub(r"(://[^/:@\s]{0,200}:)\S{0,500}@", r"\1•@", text)
    # Where no host is named, the password stands where a port belongs.
    hidden = re.sub(r"(://[^/:@\s]{0,200}:)(?!\d{1,5}[/?'\"]|•)[^/\s]{1,500}", r"\1•", hidden)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1•", hidden)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Behind these are IPv4 addresses, in the last four bytes. https://www.rfc-editor.org/rfc/rfc6052
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
#: Where clouds tell machines their secrets, beside the link-local addresses.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192"))
)


def is_loopback(host: str | None) -> bool:
    """Tell whether only this machine can reach `host`."""
    address = _address_of(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_elsewhere(host: str | None) -> bool:
    """Tell whether `host` is certain to be an address that others can reach: no name is."""
    address = _address_of(host)
    return address is not None and not address.is_loopback


def network_of(client: str) -> str:
    """Return the network of a client: one subscriber has a whole /64 of IPv6 addresses."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if isinstance(address, ipaddress.IPv4Address):
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed, 64), strict=False))


def _address_of(host: str | None) -> _Address | None:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_link_local(host: str) -> bool:
    """Tell whether `host` is spelled as an address of the network card alone: 169.254.169.254,
    0xa9fea9fe, [::ffff:a9fe:a9fe]. Asks nobody.
    """
    address = _spelled(host)
    return address is not None and _leads_to_card(address)


def leads_to_link_local(host: str) -> bool:
    """Tell whether `host` is such an address or a name of one. Blocks while DNS is asked."""
    return is_link_local(host) or any(map(_leads_to_card, _resolved(host)))


def _spelled(host: str) -> _Address | None:
    host = host.strip("[]").rstrip(".").partition("%")[0]
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    with suppress(OSError, ValueError):  # also 2852039166, 0xa9.254.0250.1
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def _resolved(host: str) -> Iterator[_Address]:
    with suppress(OSError, ValueError):  # the request will say what is wrong with the name
        for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            yield ipaddress.ip_address(str(address[0]).partition("%")[0])


def _leads_to_card(address: _Address) -> bool:
    inner = _inner(address)
    return (
        address.is_link_local
        or address in _METADATA
        or (inner is not None and _leads_to_card(inner))
    )


def _inner(address: _Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour

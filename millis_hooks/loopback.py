"""Addresses: whom they stand for, and which mean a machine or its network card, however spelled."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import suppress

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
    """Return whom an address stands for: one subscriber has a whole /64 of IPv6 addresses."""
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

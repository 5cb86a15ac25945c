"""What only this machine can reach."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Tell whether only this machine can reach `host`."""
    address = _address_of(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_elsewhere(host: str | None) -> bool:
    """Tell whether `host` is certain to be an address that others can reach: no name is."""
    address = _address_of(host)
    return address is not None and not address.is_loopback


def _address_of(host: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address

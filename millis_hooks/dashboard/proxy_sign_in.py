"""Operators that a proxy has signed in: it names them in a header."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

from starlette.requests import Request

from ..operators import Operator, Role
from ..operators.accounts import clean_name
from ..settings import PEER, Settings


class UntrustedError(Exception):
    """A request names an operator, and may not."""


class ProxySignIn:
    """Reads the operator of a request from the headers of a trusted proxy."""

    def __init__(self, settings: Settings) -> None:
        self._header = settings.sign_in_header
        self._role_header = settings.sign_in_role_header
        self._role: Role = settings.sign_in_role
        self._proxies = settings.sign_in_proxies

    def operator(self, request: Request) -> Operator | None:
        """Return the operator, None where the request names none.

        Raises `UntrustedError` if the request did not come from a trusted proxy, and for a name or
        role that cannot be one.
        """
        if self._header is None:
            return None
        name, role = self._value(request, self._header), None
        if self._role_header is not None:
            role = self._value(request, self._role_header)
        if not name and not role:
            return None
        self._require_trusted(request)
        if not name:
            raise UntrustedError(f"The request has a role, and no name in {self._header}.")
        return Operator(self._name(name), self._role_of(role), confirmed_at=datetime.now(UTC))

    def _value(self, request: Request, header: str) -> str | None:
        values = request.headers.getlist(header)
        if len(values) > 1:
            raise UntrustedError(f"The request has the header {header} {len(values)} times.")
        return values[0].strip() if values else None

    def _require_trusted(self, request: Request) -> None:
        peer = _peer(request)
        try:
            address = ipaddress.ip_address(peer)
            address = getattr(address, "ipv4_mapped", None) or address
            is_trusted = any(address in network for network in self._proxies)
        except ValueError:
            is_trusted = False
        if not is_trusted:
            raise UntrustedError(
                f"The request names an operator in {self._header}, and comes from "
                f"{peer or 'an unknown address'}, which MILLIS_HOOKS_SIGN_IN_PROXIES does not list."
            )

    def _name(self, text: str) -> str:
        name = clean_name(text)
        if name is None:
            raise UntrustedError(
                f"What is in {self._header} is not a name: up to 64 letters, digits and . _ @ + -."
            )
        return name

    def _role_of(self, text: str | None) -> Role:
        if not text:
            return self._role
        if text not in ("view", "operate"):
            raise UntrustedError(f"What is in {self._role_header} is not a role: view or operate.")
        return "view" if text == "view" else "operate"


def _peer(request: Request) -> str:
    """Return the address the request came from, before a server believes a proxy about another."""
    peer = request.scope.get("extensions", {}).get(PEER)
    return str(peer or (request.client.host if request.client else ""))

"""Who may deliver: the secret in a header, or in the path where Millis takes only a URL.

Millis signs nothing; the static headers of its webhook configuration are all there is to check
(https://docs.millis.ai/core-concepts/webhooks). Everything is compared as bytes, and always
against every accepted secret, so that timing tells nothing about which one came close.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest

from .exceptions import AuthenticationError
from .settings import Hook, Settings


@dataclass(frozen=True, slots=True)
class Grant:
    """What a secret allows: deliveries of one agent, or of any when `agent_id` is None."""

    agent_id: str | None = None

    def require_agent(self, agent_id: str | None) -> None:
        """Raise `AuthenticationError` if the delivery is another agent's."""
        if self.agent_id is not None and agent_id != self.agent_id:
            raise AuthenticationError("The secret belongs to another agent.")


_ANY_AGENT = Grant()


class Gate:
    """Checks the deliveries of one webhook."""

    def __init__(self, settings: Settings, hook: Hook) -> None:
        self._header = settings.secret_header.lower().encode()
        self._is_bearer = self._header == b"authorization"
        self._open = settings.insecure
        self._accepted = [
            (secret.encode(), _ANY_AGENT if agent_id is None else Grant(agent_id))
            for secret, agent_id in settings.accepted_secrets(hook).items()
        ]

    def admit(
        self, headers: Iterable[tuple[bytes, bytes]], *, path_secret: bytes | None = None
    ) -> Grant:
        """Return what the delivery may do, or raise `AuthenticationError` with the reason."""
        offered = [path_secret] if path_secret is not None else self._offered(headers)
        for candidate in offered:
            grants = [
                grant for secret, grant in self._accepted if compare_digest(candidate, secret)
            ]
            if grants:
                return grants[0]
        if self._open:
            return _ANY_AGENT
        raise AuthenticationError(
            "The secret is not one of those accepted."
            if offered
            else f"No secret in the {self._header.decode()} header."
        )

    def _offered(self, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        values = [value for name, value in headers if name == self._header]
        if not self._is_bearer:
            return values
        return [value[7:].strip() for value in values if value[:7].lower() == b"bearer "]

"""How an application tells its server that the peer of a request brought a secret: by a function in
the `extensions` of the request's scope. Such a connection is kept longer, and closed last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BROUGHT_SECRET = "millis_hooks.brought_secret"


def tell_of_secret(scope: Mapping[str, Any]) -> None:
    """Tell the server that this request carried an accepted secret; other servers are not told."""
    tell = scope.get("extensions", {}).get(BROUGHT_SECRET)
    if tell is not None:
        tell()

"""Tells browsers that signed in as a name before from those that never did.

A browser keeps a random id, signed for one name. It lets nobody in: it says whose wrong passwords
are counted. See "device cookies",
https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies
"""

from __future__ import annotations

import hashlib
import secrets

from itsdangerous import BadSignature, Signer

#: How long a browser stays known after it signed in.
KNOWN_FOR_S = 365 * 24 * 3600


def make(key: bytes, name: str) -> str:
    """Return what a browser is to keep that signed in as `name`; `key` is a secret of ours
    that changes with the password: else who knew an old one could have many such."""
    return _signer(key, name).sign(secrets.token_urlsafe(16)).decode()


def id_of(key: bytes, name: str | None, cookie: str | None) -> str | None:
    """Return the browser's id, None if it never signed in as `name`."""
    if not name or not cookie:
        return None
    try:
        return _signer(key, name).unsign(cookie.encode("utf-8", "replace")).decode()
    except BadSignature:
        return None


def _signer(key: bytes, name: str) -> Signer:
    return Signer(key, salt=f"millis_hooks.browser.{name}", digest_method=hashlib.sha256)

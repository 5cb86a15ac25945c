"""One rule for every address that is typed in or set: the service's, or that of Millis' API."""

from __future__ import annotations

import re
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

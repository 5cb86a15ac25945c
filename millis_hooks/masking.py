"""The one masking policy: what may not reach a page, a log line or a traceback.

Secrets are found by the name of their key and by their shape; phone numbers are shortened. It errs
on the side of masking too much, and it masks a copy: the call log keeps the bytes as they came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from pydantic import JsonValue

#: What stands where a secret was.
MASK = "••••••••"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: How a word in the name of a secret ends: `accesstoken` as well as `access_token`.
_SECRET_ENDINGS = (
    "apikey", "auth", "authorization", "bearer", "cookie", "credential", "credentials",
    "passphrase", "passwd", "password", "pwd", "secret", "secrets", "signature", "token",
)  # fmt: skip
#: Names that speak of a secret and hold none.
_ABOUT = frozenset({"count", "limit", "type", "url", "usage"})
#: Keys that are no secret: what they name is public, or only a name.
_OPEN_KEYS = frozenset({"public", "identifier", "idempotency"})
#: Custom headers exist to carry a secret (`webhook.headers`, `tools[].header`).
_HEADERS = frozenset({"header", "headers"})

#: Secrets that can be told by how they begin, anywhere in a text.
_SHAPES = re.compile(
    r"""
      \beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?                    # a JSON web token
    | \b(?:sk|pk|rk|whsec|ghp|gho|glpat|xox[a-z])[-_][\w-]{8,}  # keys of well-known services
    | \bAKIA[A-Z0-9]{12,}
    """,
    re.VERBOSE,
)
_BEARER = re.compile(r"\b(bearer\s{1,3})(?=\S{0,60}\d|\S{20})[\w.~+/=-]{6,}", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""
    (?P<key>
        (?:(?:api|access|private)[_-]?key|authorization|credentials?|passphrase
          |passw(?:or)?d|secrets?|signature|token)
        (?:[_-][\w-]{0,20})?(?:\\?["'])?\s{0,3}[=:]\s{0,3}(?:\\?(?P<quote>["']))?(?:(?:bearer|basic)\s{1,3})?
    )
    (?P<value>(?(quote)(?:(?!\\?(?P=quote)).)+|[^\s"'&;})\]]+))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_USERINFO = re.compile(r"(://[^\s/:@]{0,100}:)[^\s/@]{1,200}(?=@)")
#: Long and random, as a whole value; a slug (`support-agent-v2-for-the-weekend`) is not.
_RANDOM = re.compile(
    r"(?=.*\d)(?:(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9_+/=-]{32,512}|(?=.*[a-z])[a-z0-9]{32,512})"
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_PHONE = re.compile(
    r"""
      (?:\+|%2B)(?:\d{7,15}(?!\d)|\d(?:[ ().-]{0,2}\d){6,14})     # international
    | (?<![\w.+-])\d{10,15}(?!\w|\.\d)                            # bare digits
    | (?<![\w.+-])\(?\d{3}\)?[ .-]{1,2}\d{3}[ .-]\d{4}(?!\w)      # as written in North America
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Masked:
    """A JSON value with its secrets replaced, and how many there were."""

    value: JsonValue
    count: int


def mask_secrets(value: JsonValue) -> Masked:
    """Return a copy of a JSON value in which every secret reads `MASK`.

    Below a key that names a secret, and below `header` and `headers`, every text and number is
    one; `true`, `false`, `null` and empty text say only whether something is set, and stay.
    """
    root: list[JsonValue] = [value]
    count = 0
    # A stack of our own: the nesting of a payload is for its sender to choose.
    todo: list[tuple[list[JsonValue] | dict[str, JsonValue], int | str, bool]] = [(root, 0, False)]
    while todo:
        holder, place, secret = todo.pop()
        item = holder[place]  # type: ignore[index]
        if isinstance(item, dict):
            item = dict(item)
            todo.extend((item, key, secret or is_secret_name(key)) for key in item)
        elif isinstance(item, list):
            item = list(item)
            todo.extend((item, index, secret) for index in range(len(item)))
        else:
            item, found = _mask_leaf(item, secret=secret)
            count += found
        holder[place] = item  # type: ignore[index]
    return Masked(root[0], count)


def is_secret_name(name: str) -> bool:
    """Tell whether a key of this name usually holds a secret."""
    words = [word.lower() for word in _WORD.findall(name[:200])]
    if not words or words[-1] in _ABOUT:
        return False
    if words[-1] == "key":
        return _OPEN_KEYS.isdisjoint(words)
    return any(word in _HEADERS or word.endswith(_SECRET_ENDINGS) for word in words)


def mask_text(text: str) -> str:
    """Return a log line or a traceback without its secrets and with its phone numbers shortened."""
    masked, _ = _mask_secrets_in(text)
    return _PHONE.sub(lambda match: mask_phone(unquote(match[0])), masked)


def mask_phone(phone: str) -> str:
    """Return a phone number with its middle hidden: `+14155550134` reads `+1415•••••34`.

    Of a short number only the last two digits show; what is no number at all is hidden whole.
    """
    digits = "".join(filter(str.isdigit, phone))
    if len(digits) < 4:
        return MASK if phone else ""
    plus = "+" if phone.lstrip().startswith("+") else ""
    head = digits[:4] if len(digits) >= 8 else ""
    hidden = len(digits) - len(head) - 2
    return f"{plus}{head}{'•' * hidden}{digits[-2:]}"


def _mask_leaf(item: JsonValue, *, secret: bool) -> tuple[JsonValue, int]:
    if item is None or isinstance(item, bool) or item == "":
        return item, 0
    if secret:
        return MASK, 1
    if not isinstance(item, str):
        return item, 0
    if _RANDOM.fullmatch(item) and not _UUID.fullmatch(item):
        return MASK, 1
    return _mask_secrets_in(item)


def _mask_secrets_in(text: str) -> tuple[str, int]:
    text, shapes = _SHAPES.subn(MASK, text)
    text, passwords = _USERINFO.subn(rf"\1{MASK}", text)
    text, bearers = _BEARER.subn(rf"\1{MASK}", text)
    assigned = sum(match["value"] != MASK for match in _ASSIGNED.finditer(text))
    masked = _ASSIGNED.sub(rf"\g<key>{MASK}", text)
    return masked, shapes + passwords + bearers + assigned

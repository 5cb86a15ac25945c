"""Makes values from the wire fit for a column of any database.

Databases refuse values that JSON allows: NUL, lone surrogates, NaN, absurd figures and times.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import blake2b

#: No figure of a call is larger, and PostgreSQL refuses sums that are too large to be a number.
_MAX_FIGURE = 10**12
_MAX_CHARS = 1_000_000
#: Of four bytes each they still fit into an index of PostgreSQL, with what else is in it.
MAX_KEY_CHARS = 500
_KEY_HASH_BYTES = 16
_METADATA_CHARS = 200


def clean_text(text: str | None, *, max_chars: int = _MAX_CHARS) -> str | None:
    """Cut to `max_chars` and replace what no text column takes."""
    if text is None:
        return None
    if len(text) > max_chars:
        text = text[:max_chars]
    if text.isascii():
        return text.replace("\0", "�")
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def clean_id(text: str | None) -> str | None:
    """Return an id, or what else is looked up by, as a column has it; see `short_key`."""
    cleaned = clean_text(text)
    return None if cleaned is None else short_key(cleaned)


def short_key(text: str) -> str:
    """Return the text, or of an absurdly long one its beginning and a hash; it stays so if done
    again."""
    if len(text) <= MAX_KEY_CHARS:
        return text
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=_KEY_HASH_BYTES).hexdigest()
    return f"{text[: MAX_KEY_CHARS - len(digest) - 1]}~{digest}"


def metadata_text(value: object) -> str:
    """Return a key or a value as it is kept to find calls by: short; JSON if it is not text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clean_text(text, max_chars=_METADATA_CHARS) or ""


def clean_int(number: int | None) -> int | None:
    """Return the number if a call can have such a figure."""
    return number if number is not None and abs(number) <= _MAX_FIGURE else None


def clean_float(number: float | None) -> float | None:
    """Return the number if a call can have such a figure: never NaN or infinite."""
    return number if number is not None and abs(number) <= _MAX_FIGURE else None


def clean_time(moment: datetime | None) -> datetime | None:
    """Return the time if a telephone call can have happened then."""
    if moment is None or not 2000 <= moment.astimezone(UTC).year < 2200:
        return None
    return moment

"""One rule for every password and secret: how long it is, and that it cannot be guessed.

It holds for the passwords of operators, and for the secrets, keys and tokens of the settings. Most
stand alone, without a second factor, so the rule is that of NIST SP 800-63B for such passwords,
one character longer: https://pages.nist.gov/800-63-4/sp800-63b.html#passwordver
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import pairwise

MIN_CHARS = 16

#: A text with fewer independent parts than this can be guessed. A word of `_WORDS` is one part,
#: whatever its length, and so is a repeated character; a sequence, such as `12345` or `qwert`, is
#: at most three.
_MIN_PARTS, _SEQUENCE_PARTS = 10, 3
_ROWS = (
    "0123456789", "1234567890", "abcdefghijklmnopqrstuvwxyz",
    "qwertzuiop", "azertyuiop", "qwertyuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm",
)  # fmt: skip
_COLUMNS = ("1qaz", "2wsx", "3edc", "4rfv", "5tgb", "6yhn", "7ujm", "1q2w", "3e4r", "5t6y", "7u8i")
_WORDS = (
    *_COLUMNS,
    "qaz", "wsx", "edc", "rfv", "tgb", "9o0p",
    "correcthorsebatterystaple", "thequickbrownfox", "trustno1", "letmein", "iloveyou",
    "administrator", "admin", "root", "user", "guest", "operator", "owner", "master", "super",
    "password", "passwort", "passwd", "passphrase", "pass", "secret", "private", "public", "token",
    "key", "login", "welcome", "credential", "default", "example", "sample", "dummy", "test",
    "temp", "demo", "hello", "world", "monkey", "dragon", "football", "baseball", "sunshine",
    "princess", "shadow", "superman", "batman", "starwars", "whatever", "access", "hunter2",
    "millis", "hooks", "webhook", "hook", "voice", "agent", "dashboard", "prefetch", "sandbox",
    "session", "metrics", "service", "server", "client", "database", "postgres", "sqlite", "local",
    "host", "production", "development", "staging", "bearer", "authorization", "foobar",
    "this", "that", "only", "my",
)  # fmt: skip
_PLAIN = str.maketrans("@$!013457", "asioleast")
#: What documents and examples put where a secret belongs.
_PLACEHOLDERS = re.compile(
    r"^(please[\W_]*)?(replace|insert|change|put|paste|enter|fill|set|add|use|todo|fixme|tbd)"
    r"([\W_]|me|it|this|that|in|your|here|$)"
    r"|^(my|the|an?|some)?[\W_]*your([\W_]|own|secret|pass|token|key|api|millis|real|$)"
    r"|[\W_](goes|comes)?[\W_]{0,20}here[\W_]*$|change[\W_]?(me|it|this)|replace[\W_]?(me|it|this|with)"
    r"|your[\W_]?(own[\W_]?)?(secret|pass|token|key|api)|place[\W_]?holder|^[\W_]*x{3,}[\W_]*$"
    r"|^(example|sample|dummy)|(example|sample|dummy)$|(do[\W_]?not|never)[\W_]?use"
    r"|<[a-z][a-z _.-]+>|^[<\[{].*[>\]}]$|\$\(|\$\{|^`.*`$|openssl[\W_]rand|\.\.\.|…",
    re.DOTALL,
)
_MAKE_ONE = "make one with: openssl rand -hex 32"


def require_strong(text: str, *, kind: str, names: Collection[str] = ()) -> None:
    """Raise `ValueError` unless `text` is long enough and cannot be guessed; never quotes it.

    `kind` is what the message calls it, such as "a password"; `names` are words that count as
    known: the name of its owner.
    """
    require_own(text, kind=kind)
    if len(text) < MIN_CHARS:
        raise ValueError(
            f"{kind} has {len(text)} characters, at least {MIN_CHARS} are needed; {_MAKE_ONE}"
        )
    if len(_unit_of(text)) < MIN_CHARS or _parts_of(text, names) < _MIN_PARTS:
        raise ValueError(
            f"{kind} can be guessed: it is made of common words, repetition or sequences; "
            f"{_MAKE_ONE}"
        )


def require_own(text: str, *, kind: str) -> None:
    """Raise `ValueError` for a placeholder, which anybody can read in a document; never quotes it.

    This is all that can be asked of a key that others made.
    """
    if _PLACEHOLDERS.search(text.casefold()):
        raise ValueError(f"{kind} is a placeholder; put in your own")


def _unit_of(text: str) -> str:
    """Return the beginning that gives the text when it is repeated, or else the text itself."""
    for length in range(1, len(text) // 2 + 1):
        if text[length:] == text[:-length]:
            return text[:length]
    return text


def _parts_of(text: str, names: Collection[str]) -> int:
    """Count the independent parts, in the reading that finds fewest."""
    known = sorted({*_WORDS, *(name.casefold() for name in names if len(name) > 2)}, key=len)
    words = re.compile("|".join([*map(re.escape, reversed(known)), r"(?:19|20)\d\d"]))
    folded = text.casefold()
    return min(
        len(words.findall(spelt)) + sum(map(_parts_without_words, words.split(spelt)))
        for spelt in (folded, folded.translate(_PLAIN))
    )


def _parts_without_words(text: str) -> int:
    return min(
        _parts_in_sequences(text),
        _parts_in_sequences(text[::2]) + _parts_in_sequences(text[1::2]),
    )


def _parts_in_sequences(text: str) -> int:
    parts, run, going = int(bool(text)), 0, set[tuple[str, int]]()
    for before, here in pairwise(text):
        steps = _steps(before, here)
        run = run + 1 if steps & going else 0
        going = steps & going or steps
        parts += before != here and run < _SEQUENCE_PARTS - 1
    return parts


def _steps(before: str, here: str) -> set[tuple[str, int]]:
    """Return in which sequences these two are neighbours, and in which direction (1 or -1)."""
    return {
        (row, step)
        for row in _ROWS
        if before in row and here in row and abs(step := row.index(here) - row.index(before)) == 1
    }

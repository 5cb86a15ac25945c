"""Checks of the settings. No finding holds a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..exceptions import ConfigError
from ..finding import Finding, bad, ok, warn
from ..phones import digits_of
from ..prefetch import encode_default
from ..settings import Settings

#: A secret of chance has more different characters than this, at any length that is accepted.
_FEW_CHARACTERS = 8
_MIN_PASSWORD_CHARS = 12
_MIN_KEY_CHARS = 32
_WORDS = re.compile(r"secret|passw|change.?me|example|default|millis|test|qwert|12345", re.I)
_MAKE_ONE = "Make one with: openssl rand -hex 32"


def examine_settings(settings: Settings) -> Iterator[Finding]:
    """Look at what is set, and at what is missing."""
    yield _secrets(settings)
    if settings.secret_in_path:
        yield warn(
            "secret in path",
            "the secret may stand in the address",
            "Addresses end up in the logs of whatever stands in front of the service. Where Millis "
            "takes headers, use `millis-hooks config` and unset MILLIS_HOOKS_SECRET_IN_PATH.",
        )
    yield _password(settings)
    yield _session_key(settings)
    yield _own_numbers(settings)
    yield _retention(settings)
    yield from _fallback(settings)


def _secrets(settings: Settings) -> Finding:
    try:
        settings.require_closed()
    except ConfigError:
        return bad(
            "secrets",
            "none is set, so the service does not start",
            "export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)",
        )
    accepted = [
        *settings.accepted_secrets("prefetch"),
        *settings.accepted_secrets("end_of_call"),
    ]
    if not accepted or settings.insecure:
        return warn(
            "secrets",
            "MILLIS_HOOKS_INSECURE is set: anybody may deliver calls",
            "Unset it and set MILLIS_HOOKS_SECRETS before anybody else can reach the service.",
        )
    weak = sum(map(_is_guessable, set(accepted)))
    if weak:
        found = f"{weak} of {len(set(accepted))} could be guessed"
        return warn("secrets", found, f"{_MAKE_ONE}; both are accepted while you change over.")
    return ok("secrets", f"{len(set(accepted))} set, not to be guessed")


def _is_guessable(secret: str) -> bool:
    return len(set(secret)) <= _FEW_CHARACTERS or _WORDS.search(secret) is not None


def _password(settings: Settings) -> Finding:
    if settings.dashboard_password is None:
        return warn(
            "password",
            "none is set: nobody can sign in to the dashboard",
            "Set MILLIS_HOOKS_DASHBOARD_PASSWORD; make one with: openssl rand -base64 18",
        )
    password = settings.dashboard_password.get_secret_value()
    if len(password) < _MIN_PASSWORD_CHARS or _is_guessable(password):
        return warn(
            "password",
            "the dashboard's could be guessed",
            "Set MILLIS_HOOKS_DASHBOARD_PASSWORD anew; make one with: openssl rand -base64 18",
        )
    return ok("password", "set, not to be guessed")


def _session_key(settings: Settings) -> Finding:
    if settings.session_key is None:
        return ok("session key", "made by the service and kept in the call log")
    key = settings.session_key.get_secret_value()
    if len(key) < _MIN_KEY_CHARS or _is_guessable(key):
        return warn(
            "session key",
            "could be guessed, and who guesses it is signed in",
            f"{_MAKE_ONE}, or unset MILLIS_HOOKS_SESSION_KEY: one is then made and kept.",
        )
    return ok("session key", "set, not to be guessed")


def _own_numbers(settings: Settings) -> Finding:
    numbers = settings.own_numbers
    if not numbers:
        return warn(
            "own numbers",
            "none are set: who calls whom is not known, nor who the customer is",
            "Set MILLIS_HOOKS_OWN_NUMBERS to the numbers you have at Millis, comma separated.",
        )
    odd = sum(not 7 <= len(digits_of(number)) <= 15 for number in numbers)
    if odd:
        return warn(
            "own numbers",
            f"{odd} of {len(numbers)} are no telephone numbers",
            "Write them as +14155550199 in MILLIS_HOOKS_OWN_NUMBERS.",
        )
    return ok("own numbers", f"{len(numbers)} set")


def _retention(settings: Settings) -> Finding:
    if settings.retention_days == 0:
        return warn(
            "retention",
            "calls are kept for ever",
            "Set MILLIS_HOOKS_RETENTION_DAYS to as long as you may keep them.",
        )
    return ok("retention", f"calls are removed after {settings.retention_days} days")


def _fallback(settings: Settings) -> Iterator[Finding]:
    try:
        encode_default(settings)
    except ConfigError as error:
        yield bad("fallback", str(error), "Correct the setting: the service does not start.")

"""Checks of the settings. No finding holds a secret.

Checks of the team's application, once it is imported.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..exceptions import ConfigError, RegistrationError
from ..handlers.routing import Router
from ..settings import Settings
from ..webhooks.prefetch import encode_default
from . import Finding, bad, ok, warn


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
    if settings.is_file_public:
        yield warn(".env", "others than its owner may read it", "Run: chmod 600 .env")
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
    return ok("secrets", f"{len(set(accepted))} set")


def _password(settings: Settings) -> Finding:
    if settings.dashboard_password is None:
        return warn(
            "password",
            "none is set: nobody can sign in to the dashboard",
            "Set MILLIS_HOOKS_DASHBOARD_PASSWORD; make one with: openssl rand -base64 18",
        )
    return ok("password", "set")


def _session_key(settings: Settings) -> Finding:
    if settings.session_key is None:
        return ok("session key", "made by the service and kept in the call log")
    return ok("session key", "set")


def _own_numbers(settings: Settings) -> Finding:
    numbers = settings.own_numbers
    if not numbers:
        return warn(
            "own numbers",
            "none are set: who calls whom is not known, nor who the customer is",
            "Set MILLIS_HOOKS_OWN_NUMBERS to the numbers you have at Millis, comma separated.",
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


def examine_application(name: str, router: Router | None) -> Iterator[Finding]:
    """Look at the handlers that `name` registers."""
    if router is None:
        advice = "Name the MillisHooks itself, or the application it is mounted in."
        yield bad("application", f"{name} has no MillisHooks", advice)
        return
    try:
        router.check()
    except RegistrationError as error:
        yield bad("application", str(error), "Correct the handler: the service does not start.")
        return
    yield _handlers(name, router)


def _handlers(name: str, router: Router) -> Finding:
    registered = [handler.hook for handler in router]
    if not registered:
        return warn("application", f"{name} has no handlers", "Register one: see the README.")
    counts = {
        "prefetch": registered.count("prefetch"),
        "end-of-call": registered.count("end_of_call"),
        "parked": registered.count("parked"),
    }
    told = ", ".join(f"{count} {hook}" for hook, count in counts.items() if count)
    return ok("application", f"{name}, handlers: {told}")

"""Checks of the team's application, once it is imported."""

from __future__ import annotations

from collections.abc import Iterator

from ..exceptions import RegistrationError
from ..finding import Finding, bad, ok, warn
from ..routing import Router


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

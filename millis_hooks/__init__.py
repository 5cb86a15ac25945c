"""The receiver for Millis AI webhooks: prefetch answered in time, every end-of-call kept."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .app import MillisHooks as MillisHooks
    from .call_status import CallStatus as CallStatus
    from .call_status import Outcome as Outcome
    from .events import CostItem as CostItem
    from .events import EndOfCall as EndOfCall
    from .events import FunctionCall as FunctionCall
    from .events import Message as Message
    from .events import PrefetchRequest as PrefetchRequest
    from .events import PrefetchResponse as PrefetchResponse
    from .exceptions import ConfigError as ConfigError
    from .exceptions import MillisApiError as MillisApiError
    from .exceptions import MillisHooksError as MillisHooksError
    from .exceptions import RegistrationError as RegistrationError
    from .millis_api import MillisApi as MillisApi
    from .parked import ParkedRun as ParkedRun
    from .retries import Backoff as Backoff
    from .retries import GiveUp as GiveUp
    from .retries import Retry as Retry
    from .routing import Router as Router

_HOMES = {
    "MillisHooks": "app",
    "CallStatus": "call_status",
    "Outcome": "call_status",
    "CostItem": "events",
    "EndOfCall": "events",
    "FunctionCall": "events",
    "Message": "events",
    "PrefetchRequest": "events",
    "PrefetchResponse": "events",
    "ConfigError": "exceptions",
    "MillisApi": "millis_api",
    "MillisApiError": "exceptions",
    "MillisHooksError": "exceptions",
    "RegistrationError": "exceptions",
    "ParkedRun": "parked",
    "Backoff": "retries",
    "GiveUp": "retries",
    "Retry": "retries",
    "Router": "routing",
}

__all__ = [
    "Backoff",
    "CallStatus",
    "ConfigError",
    "CostItem",
    "EndOfCall",
    "FunctionCall",
    "GiveUp",
    "Message",
    "MillisApi",
    "MillisApiError",
    "MillisHooks",
    "MillisHooksError",
    "Outcome",
    "ParkedRun",
    "PrefetchRequest",
    "PrefetchResponse",
    "RegistrationError",
    "Retry",
    "Router",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the command line needs none of them to help."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

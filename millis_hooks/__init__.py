"""The receiver for Millis AI webhooks: prefetch answered in time, every end-of-call kept."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .app import MillisHooks as MillisHooks
    from .exceptions import ConfigError as ConfigError
    from .exceptions import MillisApiError as MillisApiError
    from .exceptions import MillisHooksError as MillisHooksError
    from .exceptions import RegistrationError as RegistrationError
    from .handlers.forward import forward as forward
    from .handlers.retries import Backoff as Backoff
    from .handlers.retries import FailedRun as FailedRun
    from .handlers.retries import GiveUp as GiveUp
    from .handlers.retries import ParkedRun as ParkedRun
    from .handlers.retries import Retry as Retry
    from .handlers.routing import Router as Router
    from .handlers.variants import variant as variant
    from .millis_api import MillisApi as MillisApi
    from .protocol.call_status import CallStatus as CallStatus
    from .protocol.call_status import Outcome as Outcome
    from .protocol.events import CostItem as CostItem
    from .protocol.events import EndOfCall as EndOfCall
    from .protocol.events import FunctionCall as FunctionCall
    from .protocol.events import Message as Message
    from .protocol.functions import FunctionRequest as FunctionRequest
    from .protocol.memory import AnsweredPrefetch as AnsweredPrefetch
    from .protocol.memory import EarlierCall as EarlierCall
    from .protocol.memory import untrusted as untrusted
    from .protocol.prefetch import PrefetchRequest as PrefetchRequest
    from .protocol.prefetch import PrefetchResponse as PrefetchResponse

_HOMES = {
    "MillisHooks": "app",
    "CallStatus": "protocol.call_status",
    "Outcome": "protocol.call_status",
    "AnsweredPrefetch": "protocol.memory",
    "CostItem": "protocol.events",
    "EndOfCall": "protocol.events",
    "FunctionCall": "protocol.events",
    "Message": "protocol.events",
    "PrefetchRequest": "protocol.prefetch",
    "PrefetchResponse": "protocol.prefetch",
    "FunctionRequest": "protocol.functions",
    "EarlierCall": "protocol.memory",
    "untrusted": "protocol.memory",
    "ConfigError": "exceptions",
    "MillisApi": "millis_api",
    "MillisApiError": "exceptions",
    "MillisHooksError": "exceptions",
    "RegistrationError": "exceptions",
    "Backoff": "handlers.retries",
    "FailedRun": "handlers.retries",
    "GiveUp": "handlers.retries",
    "ParkedRun": "handlers.retries",
    "Retry": "handlers.retries",
    "Router": "handlers.routing",
    "forward": "handlers.forward",
    "variant": "handlers.variants",
}

__all__ = [
    "AnsweredPrefetch",
    "Backoff",
    "CallStatus",
    "ConfigError",
    "CostItem",
    "EarlierCall",
    "EndOfCall",
    "FailedRun",
    "FunctionCall",
    "FunctionRequest",
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
    "forward",
    "untrusted",
    "variant",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the command line needs none of them to help."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The receiver for Millis AI webhooks: prefetch answered in time, every end-of-call kept."""

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
from .exceptions import MillisHooksError as MillisHooksError
from .exceptions import RegistrationError as RegistrationError
from .routing import Router as Router
from .version import __version__ as __version__

"""For the tests of your handlers: calls rehearsed against them, in one process, without sockets.

    from millis_hooks.testing import HooksClient
    from app import hooks

    def test_a_known_caller_is_named():
        with HooksClient(hooks) as client:
            assert client.prefetch(from_phone="+14155550134").metadata == {"first_name": "Ada"}

With pytest there are fixtures that do the same, `hooks_client` and `simulate_call`; say once where
the application is, in pyproject.toml or in pytest.ini:

    [tool.pytest.ini_options]
    millis_hooks_app = "app.py"

    def test_a_booking_reaches_the_crm(simulate_call):
        booked = simulate_call("scenarios/booking.toml")    # or a shipped one, such as "inbound"
        assert not booked.unmet
        assert booked.run("sync_crm").state == "succeeded"

Everything is real but Millis: settings, the call log (in a folder that is thrown away), handlers on
their own thread, retries. Handlers see a call of Millis' unless the test says `sandbox=True`. What
they ask of Millis is in `hooks_client.millis_requests`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..handlers.made_up_calls import MillisRequest as MillisRequest
    from ..protocol.samples import CallContent as CallContent
    from ..protocol.samples import end_of_call_body as end_of_call_body
    from ..protocol.samples import prefetch_query as prefetch_query
    from ..sandbox.scenario import Scenario as Scenario
    from ..sandbox.scenario import load_scenario as load_scenario
    from ..sandbox.simulator import HandledCall as HandledCall
    from ..sandbox.simulator import Simulation as Simulation
    from ..sandbox.transport import Answer as Answer
    from .client import FunctionReply as FunctionReply
    from .client import HooksClient as HooksClient
    from .client import PrefetchReply as PrefetchReply
    from .client import SimulateCall as SimulateCall

_HOMES = {
    "Answer": "sandbox.transport",
    "CallContent": "protocol.samples",
    "HandledCall": "sandbox.simulator",
    "FunctionReply": "testing.client",
    "HooksClient": "testing.client",
    "MillisRequest": "handlers.made_up_calls",
    "PrefetchReply": "testing.client",
    "Scenario": "sandbox.scenario",
    "SimulateCall": "testing.client",
    "Simulation": "sandbox.simulator",
    "end_of_call_body": "protocol.samples",
    "load_scenario": "sandbox.scenario",
    "prefetch_query": "protocol.samples",
}

__all__ = [
    "Answer",
    "CallContent",
    "FunctionReply",
    "HandledCall",
    "HooksClient",
    "MillisRequest",
    "PrefetchReply",
    "Scenario",
    "SimulateCall",
    "Simulation",
    "end_of_call_body",
    "load_scenario",
    "prefetch_query",
]


def __getattr__(name: str) -> object:
    """Import a name when it is first used: pytest loads the plugin beside it with every run."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"millis_hooks.{_HOMES[name]}"), name)

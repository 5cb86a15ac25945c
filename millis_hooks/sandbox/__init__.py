"""A stand-in for Millis: a call runs here as it runs there, and calls the team's real webhooks.

One call is a `Session`. It is told everything by a `SessionSpec` (agent, metadata, numbers, format
of the end-of-call, faults) and by a `Policy`, which holds what Millis does not document. Who talks
is an `Agent`: it drives a `Conversation`, in which a caller is heard, the agent says something and
functions are called, and it returns the `Ending`. Requests go out by a `Transport`, over HTTP or
into an ASGI application without sockets; time passes by a `Clock`. What happens is a `Step` each in
the session's `StepLog`, which pages, commands and tests show.

    async with over_http() as transport:            # or in_process(app)
        session = Session(spec, ScriptedAgent(script), transport)
        session.log.listen(print)                   # or: async for step in session.log.follow()
        result = await session.run()

`session.hang_up(status)` ends it from elsewhere. A `Scenario`, read from TOML, is a spec, a script
and what is expected of them; on a `Stage`, which is a receiver and the way to it, it is rehearsed
once or a thousand times. `webhooks.Marker` tells the receiver that a call is rehearsed.
"""

from __future__ import annotations

from .agent import Agent as Agent
from .agent import Conversation as Conversation
from .agent import Ending as Ending
from .agent import Line as Line
from .agent import Script as Script
from .agent import ScriptedAgent as ScriptedAgent
from .agent import ToolUse as ToolUse
from .call_spec import Faults as Faults
from .call_spec import SessionSpec as SessionSpec
from .clock import Clock as Clock
from .clock import LiveClock as LiveClock
from .clock import SkippingClock as SkippingClock
from .policy import Policy as Policy
from .scenario import Scenario as Scenario
from .scenario import load_scenario as load_scenario
from .scenario import shipped_scenarios as shipped_scenarios
from .session import Session as Session
from .session import SessionResult as SessionResult
from .simulator import Simulation as Simulation
from .simulator import Stage as Stage
from .steps import Step as Step
from .steps import StepLog as StepLog
from .transport import Answer as Answer
from .transport import Request as Request
from .transport import Transport as Transport
from .transport import TransportError as TransportError
from .transport import in_process as in_process
from .transport import over_http as over_http

"""A local emulator of Millis: it simulates whole calls and sends the team's real webhooks.

A `Scenario` is one call: who calls, with which agent, what is said, and what is expected of it. A
`Simulator` runs scenarios against a receiver of webhooks. One call is a `Session`, through which an
`Agent` talks; requests go out by a `Transport`, and everything that happens is a `Step` of the
session's `StepLog`.

    async with over_http() as transport:            # or in_process(app)
        session = Session(spec, scripted(script), transport)
        session.log.listen(print)                   # or: async for step in session.log.follow()
        await session.run()

`emulator` is the network side of it: Millis' HTTP API and websocket on this machine.

Import from the modules: only what tests of handlers need is importable from here.
"""

from __future__ import annotations

from .transport import Answer as Answer
from .transport import TransportError as TransportError

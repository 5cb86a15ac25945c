"""The doors of Millis' that calls come in by, on this machine: what a client of it talks to.

Everything is below one address, as at Millis: `{base}/millis` is the websocket that the Web SDK
and native clients open, `{base}/start_outbound_call`, `{base}/agents` and the rest are its HTTP
API, and `{base}/agents/embedded` is the widget. `{base}/as/{scenario}` has all of it once more,
where calls go as that shipped scenario has them.

Source of what is known: docs.millis.ai (its OpenAPI file, integration/native-apps-with-websocket,
integration/custom-llm, integration/embeddable-call-widget) and the published `@millisai/web-sdk`.
"""

from __future__ import annotations

from .app import StandIn as StandIn
from .sessions import Switchboard as Switchboard

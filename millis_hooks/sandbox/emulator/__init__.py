"""Millis on this machine, for Millis' own clients: its HTTP API, its websocket and the widget.

Everything is below one address, as at Millis: `{base}/millis` is the websocket that the Web SDK
and native clients open, `{base}/start_outbound_call`, `{base}/agents` and the rest are its HTTP
API, and `{base}/agents/embedded` is the widget. Below `{base}/as/{scenario}` calls go as that
shipped scenario does, below `{base}/with/{policy}` by those settings of the policy.

Source: docs.millis.ai (its OpenAPI file, integration/native-apps-with-websocket,
integration/custom-llm, integration/embeddable-call-widget) and the published `@millisai/web-sdk`.
"""

"""How a server tells its application that it is about to stop: a key of the `state` in the scope of
each request (https://asgi.readthedocs.io/en/latest/specs/lifespan.html#lifespan-state)."""

STOPPING = "millis_hooks.stopping"

"""A client of Millis' HTTP API, and what it fills in of calls whose end-of-call never came."""

"""Load against millis_hooks and against what teams write instead."""

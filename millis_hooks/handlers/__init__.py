"""Handlers: the team's functions, how they are registered, and how they are run."""

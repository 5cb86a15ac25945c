"""Looks a service over: its settings, its disk, its call log, its clock, and the way to it.

Every check is a function that yields findings; none of them changes anything.
"""

from ..finding import Finding, State

__all__ = ["Finding", "State"]

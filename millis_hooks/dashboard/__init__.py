"""The pages an operator looks at: a Starlette application to be mounted anywhere.

It reads the call log; signing in and out, and replays, are all it writes.
"""

from .pages import DashboardSettings as DashboardSettings
from .replays import Replay as Replay
from .site import dashboard as dashboard

"""The pages an operator looks at: a Starlette application to be mounted anywhere.

It reads the call log. It writes who signs in and out, replays, deletions, and the record of what
operators do.
"""

from .call_actions import Forgetting as Forgetting
from .call_actions import Replay as Replay
from .connection_test import Trials as Trials
from .pages import DashboardSettings as DashboardSettings
from .setup import Setup as Setup
from .site import dashboard as dashboard

"""The pages an operator looks at: a Starlette application to be mounted anywhere.

It reads the call log. It writes who signs in and out, replays, deletions, and the record of what
operators do.
"""

from .forgetting import Forgetting as Forgetting
from .pages import DashboardSettings as DashboardSettings
from .replays import Replay as Replay
from .setup import Setup as Setup
from .site import dashboard as dashboard
from .trials import Trials as Trials
from .webhook_api import Webhooks as Webhooks

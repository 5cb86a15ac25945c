"""The dashboard: a Starlette application that can be mounted anywhere.

It reads the call log, and writes sessions of operators, replays, deletions and the audit log.
"""

from .call_actions import CallActions as CallActions
from .connection_test import ConnectionTest as ConnectionTest
from .pages import DashboardSettings as DashboardSettings
from .setup import Setup as Setup
from .site import dashboard as dashboard

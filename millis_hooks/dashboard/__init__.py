"""The pages an operator looks at: a Starlette application to be mounted anywhere.

It only reads the call log; signing in and out is all it writes.
"""

from .pages import DashboardSettings as DashboardSettings
from .site import dashboard as dashboard

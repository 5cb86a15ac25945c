"""Operators of the dashboard: accounts, sign-in, sessions, and the audit log.

All of it is kept in the call log, so every process that serves the log knows the same.
"""

from .accounts import OPERATOR as OPERATOR
from .accounts import Account as Account
from .accounts import Operator as Operator
from .accounts import Role as Role
from .audit import COMMAND_LINE as COMMAND_LINE
from .audit import Action as Action
from .audit import AuditEntry as AuditEntry
from .service import Operators as Operators
from .service import Refused as Refused
from .service import SignedIn as SignedIn
from .sessions import KNOWN_FOR_S as KNOWN_FOR_S
from .sessions import Key as Key
from .sessions import Lasts as Lasts
from .sessions import Session as Session
from .tokens import TOKEN_PREFIX as TOKEN_PREFIX
from .tokens import ReadToken as ReadToken

"""Who may look and who may act: operators, their passwords and sessions, and what they did.

Everything is kept in the call log, so every process that serves it knows the same.
"""

from .accounts import OPERATOR as OPERATOR
from .accounts import Account as Account
from .deeds import COMMAND_LINE as COMMAND_LINE
from .deeds import Action as Action
from .deeds import Deed as Deed
from .desk import Operators as Operators
from .desk import Refused as Refused
from .desk import SignedIn as SignedIn
from .desk import Turn as Turn
from .known_browsers import KNOWN_FOR_S as KNOWN_FOR_S
from .roles import Operator as Operator
from .roles import Role as Role
from .sessions import Lasts as Lasts
from .sessions import Session as Session

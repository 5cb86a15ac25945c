"""Puts on record, for operators to see, what is done by command."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from .terminal import note

if TYPE_CHECKING:
    from ..call_log.database import Database
    from ..operators import Action


def record(database: Database, action: Action, subject: str | None = None) -> None:
    """Write down what a command did; a log that only can be read does not keep it from doing so."""
    from sqlalchemy.exc import SQLAlchemyError

    from ..operators import COMMAND_LINE, deeds

    try:
        with database.writer.begin() as connection:
            deeds.record(connection, COMMAND_LINE, action, now=datetime.now(UTC), subject=subject)
    except SQLAlchemyError:
        note("This could not be put on record: the call log cannot be written.")

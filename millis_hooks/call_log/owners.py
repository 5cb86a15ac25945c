"""Whose a session is: the agent that began it. A secret that is bound to an agent is good for that
agent's sessions alone."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import SQLAlchemyError

from .digest import Digest
from .tables import calls
from .values import clean_id


def agent_of_session(reader: Engine, session_id: str) -> str | None:
    """Return the agent of a session; None if it is not known, or cannot be looked up now.

    What is not known at the door is known when the delivery is processed.
    """
    found = select(calls.c.agent_id).where(calls.c.session_id == clean_id(session_id))
    try:
        with reader.connect() as connection:
            agent_id: str | None = connection.scalar(found)
    except SQLAlchemyError:
        return None
    return agent_id


def of_another_agent(connection: Connection, digests: Iterable[Digest]) -> set[int]:
    """Return the deliveries whose session another agent began than the one of their secret."""
    bound = [digest for digest in digests if digest.secret_agent is not None and digest.call]
    sessions = {digest.call["session_id"] for digest in bound}
    if not sessions:
        return set()
    known = select(calls.c.session_id, calls.c.agent_id).where(calls.c.session_id.in_(sessions))
    agents = {row.session_id: row.agent_id for row in connection.execute(known)}
    return {
        digest.delivery_id
        for digest in bound
        if agents.get(digest.call["session_id"]) not in (None, digest.secret_agent)
    }

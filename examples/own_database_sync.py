"""Counts each customer's calls by SQLAlchemy's ORM, in plain functions, each call once.

export SHOP_DATABASE_URL=sqlite:///shop.db    # or postgresql+psycopg://...
millis-hooks dev examples/own_database_sync.py
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from millis_hooks import EndOfCall, MillisHooks


class Base(DeclarativeBase):
    """The tables of your application."""


class Customer(Base):
    """A customer and how often they were on the phone."""

    __tablename__ = "customers"
    phone: Mapped[str] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(default=0)


class Handled(Base):
    """A call that a handler is done with, by the handler's idempotency key."""

    __tablename__ = "handled"
    key: Mapped[str] = mapped_column(primary_key=True)


@asynccontextmanager
async def database() -> AsyncIterator[sessionmaker[Session]]:
    """Keep one pool of connections, which is safe to use from every handler's thread."""
    engine = create_engine(os.environ.get("SHOP_DATABASE_URL", "sqlite:///shop.db"))
    Base.metadata.create_all(engine)  # in your own project, a migration does this
    yield sessionmaker(engine)
    engine.dispose()


hooks = MillisHooks(lifespan=database)


@hooks.on_end_of_call(channel="phone")
def count_call(call: EndOfCall) -> None:
    """Count the call for its customer."""
    if call.customer_phone is None or call.dry_run:
        return
    make_session: sessionmaker[Session] = call.state
    # One transaction: either the call is counted and marked as handled, or neither. Of two
    # attempts at the same time one fails at the primary key, and its next attempt ends here.
    with make_session.begin() as session:
        if session.get(Handled, call.idempotency_key) is not None:
            return
        session.add(Handled(key=call.idempotency_key))
        customer = session.get(Customer, call.customer_phone, with_for_update=True)
        if customer is None:
            customer = Customer(phone=call.customer_phone, calls=0)
            session.add(customer)
        customer.calls += 1

"""A call is the same in whatever order and chunks its deliveries come: earlier ones are not read
again where the row of the call says all they tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import Delivery, insert_deliveries
from millis_hooks.call_log.processing import Processor
from millis_hooks.call_log.projection import Digest, digest_delivery
from millis_hooks.call_log.search import call_search
from millis_hooks.call_log.sessions import SessionReader
from millis_hooks.call_log.tables import call_metadata, calls, cost_items, deliveries, inbox
from millis_hooks.call_log.writer import Writer
from support.storage import NOW, ended, opened, prefetched, writing

pytestmark = pytest.mark.both_databases

NUMBERS = st.sampled_from([None, "+15550100", "+15550199"])
AGENTS = st.sampled_from([None, "A", "B"])
SOURCES = st.sampled_from([None, "sandbox"])
SESSION, SESSIONS = "-order", count()


def prefetch(agent: str | None, number: str | None, kept: str | None) -> Delivery:
    said = {"session_id": SESSION, "agent_id": agent, "from": number}
    query = "&".join(f"{name}={value}" for name, value in said.items() if value)
    return prefetched(query=query.replace("+", "%2B"), latency_ms=3.0, kept=kept)


def function() -> Delivery:
    body = json.dumps({"session_id": SESSION}).encode()
    called = ended(body=body, outcome="answered", function="note", content_type="application/json")
    return called._replace(kind="function")


def end(said: dict[str, Any], source: str | None) -> Delivery:
    body = json.dumps({"session_id": SESSION, **said}).encode()
    return ended(body=body, source=source)


ENDS = st.builds(
    end,
    st.fixed_dictionaries(
        {},
        optional={
            "agent_id": AGENTS,
            "voip": st.fixed_dictionaries({}, optional={"from": NUMBERS, "to": NUMBERS}),
            "call_status": st.sampled_from(["user-ended", "registered", "chat_completion"]),
            "cost_breakdown": st.just([{"type": "llm", "credit": 0.5}]),
            "metadata": st.sampled_from([{}, {"plan": "gold"}, {"keep.plan": "sent"}]),
            "chat": st.just([{"role": "user", "content": "A table by the window"}]),
        },
    ),
    SOURCES,
)
KEPT = st.sampled_from([None, None, '{"plan": "B"}'])
#: The deliveries of a session, in the order in which they are received.
DELIVERIES = st.lists(
    st.builds(prefetch, AGENTS, NUMBERS, KEPT) | st.builds(function) | ENDS,
    min_size=2,
    max_size=5,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    with opened(tmp_path_factory.mktemp("log")) as database, writing(database) as writer:
        yield Log(database, writer)


class Log:
    def __init__(self, database: Database, writer: Writer) -> None:
        self.database = database
        self.processor = Processor(database, writer, runs_for=lambda call: ["notify"])

    def store(self, *batch: Delivery) -> None:
        with self.database.writer.begin() as connection:
            insert_deliveries(connection, batch)

    def process(self, *batch: Delivery) -> None:
        self.store(*batch)
        while self.processor.process_chunk():
            pass

    def call_of(self, chunks: Sequence[Sequence[Delivery]]) -> Any:
        """Process chunk after chunk as a session of its own, and return what its call is then."""
        session = f"-s{next(SESSIONS)}"
        for chunk in chunks:
            self.process(*(of_session(each, session) for each in chunk))
        (call,) = self._found(calls, "session_id", session)
        bodies = {
            each["id"]: each["body"] for each in self._found(deliveries, "session_id", session)
        }
        id_, end_id = call.pop("id"), call.pop("delivery_id")
        of_call = [self._found(each, "call_id", id_) for each in (cost_items, call_metadata)]
        (found,) = self._found(call_search, "rowid", id_)
        whole = [call, bodies.get(end_id), of_call, found["folded"]]
        return str(whole).replace(f"'call_id': {id_},", "").replace(session, SESSION)

    def _found(self, table: Any, name: str, value: object) -> list[dict[str, Any]]:
        with self.database.reader.connect() as connection:
            found = connection.execute(select(table).where(table.c[name] == value))
            return [row._asdict() for row in found]


def of_session(delivery: Delivery, session: str) -> Delivery:
    query, body = delivery.query, delivery.body.replace(SESSION.encode(), session.encode())
    query = query and query.replace(SESSION, session)
    return delivery._replace(session_id=session, query=query, body=body)


@given(data=st.data(), batch=DELIVERIES)
def test_a_call_is_the_same_in_whatever_order_and_chunks_its_deliveries_come(
    log: Log, data: st.DataObject, batch: list[Delivery]
) -> None:
    batch = [
        each._replace(received_at=NOW + timedelta(minutes=minute))
        for minute, each in enumerate(batch)
    ]
    arrived = data.draw(st.permutations(batch))
    cuts = [0, *sorted(data.draw(st.sets(st.integers(1, len(batch) - 1)))), len(batch)]
    chunks = [arrived[start:end] for start, end in pairwise(cuts)]
    assert log.call_of(chunks) == log.call_of([batch])


@pytest.mark.parametrize(("earlier", "later"), [(0, 1), (1, 0)])
def test_what_the_row_of_a_call_says_is_not_read_again(log: Log, earlier: int, later: int) -> None:
    session = f"-s{next(SESSIONS)}"
    both = prefetched(session), ended(session)
    log.process(both[earlier])
    read: list[str] = []

    def to_digest(row: Any) -> Digest:
        read.append(row.kind)
        return digest_delivery(row, own_numbers=frozenset())

    log.store(both[later])
    with log.database.writer.begin() as connection:
        waiting = list(connection.scalars(select(inbox.c.delivery_id)))
        SessionReader(to_digest, lambda call: ["notify"]).read(connection, waiting)
    assert read == [both[later].kind]
    log.process()

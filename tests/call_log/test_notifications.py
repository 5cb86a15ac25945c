"""On PostgreSQL a replica hears by name what another has done, and misses nothing for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.change_feed import LONGEST_ID, REFRESH, Change, read_note, write_note
from millis_hooks.call_log.postgres import LISTENING
from millis_hooks.call_log.tables import rejections
from support import databases
from support.databases import url_in
from support.sites import Site, following, next_event
from support.storage import NOW, ended, prefetched
from support.waiting import eventually


@pytest.fixture(scope="module", params=["postgresql"])
def database_kind(request: pytest.FixtureRequest) -> Iterator[databases.Kind]:
    with databases.on(request.param):
        yield "postgresql"


class Replica:
    """A process on the call log, as far as changes go."""

    def __init__(self, url: str) -> None:
        self.log = CallLog(url, runs_for=lambda call: ["sync_crm"])
        self.heard: list[Change] = []

    def record(self, *changes: Any) -> None:
        for delivery in changes:
            self.log.writer.record(delivery)

    def ask(self, question: str, **values: Any) -> Any:
        with self.log.database.writer.begin() as connection:
            return connection.execute(text(question), values).scalar()


@contextmanager
def replicas(folder: Path) -> Iterator[tuple[Replica, Replica]]:
    one, other = Replica(url_in(folder)), Replica(url_in(folder))
    try:
        yield one, other
    finally:
        one.log.close()
        other.log.close()


@contextmanager
def watching(replica: Replica) -> Iterator[Callable[[Change], bool]]:
    """Have a page open there; yield what tells whether it was told of a change by now."""
    with replica.log.feed.subscribe(lambda: None) as subscription:

        def was_told(change: Change) -> bool:
            replica.heard.extend(subscription.take())
            return change in replica.heard

        eventually(lambda: was_told(REFRESH))
        replica.heard.clear()
        yield was_told


def listeners(replica: Replica, look: str = "count(*)") -> Any:
    """Ask about the connections that listen, of all replicas."""
    return replica.ask(
        f"SELECT {look} FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = :name",
        name=LISTENING,
    )


def test_a_page_is_told_by_name_what_another_replica_received(tmp_path: Path) -> None:
    with replicas(tmp_path) as (one, other), watching(other) as was_told:
        one.record(prefetched("-a"), ended("-b"))
        eventually(lambda: was_told(Change("started", "-a")))
        eventually(lambda: was_told(Change("ended", "-b")))
        assert REFRESH not in other.heard


def test_what_a_replica_tells_it_is_not_told_again(tmp_path: Path) -> None:
    with replicas(tmp_path) as (one, other), watching(one) as one_was, watching(other) as other_was:
        one.log.feed.publish([Change("runs", "-a")])
        eventually(lambda: other_was(Change("runs", "-a")))
        other.log.feed.publish([Change("runs", "-b")])
        eventually(lambda: one_was(Change("runs", "-b")))
        assert one.heard == [Change("runs", "-a"), Change("runs", "-b")]


def test_a_replica_that_was_cut_off_listens_again(tmp_path: Path) -> None:
    with replicas(tmp_path) as (one, other), watching(other) as was_told:
        assert listeners(one, "count(pg_terminate_backend(pid))") == 1
        eventually(lambda: was_told(REFRESH))
        one.record(ended("-a"))
        eventually(lambda: was_told(Change("ended", "-a")))


def test_a_change_without_a_notification_is_noticed(tmp_path: Path) -> None:
    refused = {"received_at": NOW, "last_at": NOW, "webhook": "prefetch", "method": "GET"}
    refused |= {"status_code": 401, "reason": "", "query": "", "headers": "[]", "times": 1}
    with replicas(tmp_path) as (one, other), watching(other) as was_told:
        one.log.writer.run(lambda connection: connection.execute(insert(rejections), refused))
        eventually(lambda: was_told(REFRESH))


def test_a_replica_listens_only_while_a_page_is_open(tmp_path: Path) -> None:
    with replicas(tmp_path) as (one, other):
        one.record(ended("-a"))
        assert listeners(one) == 0
        with watching(other):
            assert listeners(one) == 1


def test_a_replica_stops_while_its_page_is_open(tmp_path: Path) -> None:
    with replicas(tmp_path) as (one, other), watching(other):
        other.log.close()
        eventually(lambda: listeners(one) == 0)


def test_a_page_follows_what_another_process_receives(tmp_path: Path) -> None:
    site = Site(tmp_path, "")
    with site.serving() as server, site.serving() as another, following(server) as stream:
        another.deliver("-s1")
        assert any("-s1" in next_event(stream) for _ in range(5))


@pytest.mark.parametrize(
    "changes",
    [(), (REFRESH,), (Change("runs"), Change("ended", "-s1")), (Change("ended", "\x00'\ud800😀"),)],
)
def test_a_note_says_what_was_written_into_it(changes: tuple[Change, ...]) -> None:
    assert read_note(write_note("-me", changes)) == ("-me", changes)


def test_a_note_has_the_size_postgresql_takes() -> None:
    many = tuple(Change("ended", "😀" * (LONGEST_ID - 1) + str(number)) for number in range(20))
    note = write_note("me", many)
    assert len(note.encode()) < 8000
    assert read_note(note) == ("me", (REFRESH,))


@pytest.mark.parametrize("note", ["", "[", "[1]", "7", '["x", [1]]', '["x", [["ended"]]]', "null"])
def test_an_unreadable_notification_counts_as_any_change(note: str) -> None:
    assert read_note(note) == (None, (REFRESH,))


def test_an_unknown_kind_is_taken_for_any_change() -> None:
    assert read_note('["x", [["new", "-s1"], ["ended", 7]]]') == ("x", (REFRESH, REFRESH))

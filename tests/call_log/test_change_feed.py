"""Subscribers are told what changes in the call log, by this process or another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, delete, insert, update

from millis_hooks.call_log import CallLog
from millis_hooks.call_log.change_feed import (
    LONGEST_ID,
    MOST_WAITING,
    REFRESH,
    Change,
    ChangeFeed,
    OtherProcesses,
    Subscription,
)
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import insert_deliveries
from millis_hooks.call_log.tables import attempts, calls, handler_runs, inbox, keys, rejections
from millis_hooks.call_log.writer import Writer
from support.databases import url_in
from support.storage import NOW, ended, opened, prefetched, writing
from support.waiting import eventually


def nothing() -> None:
    pass


def test_every_listener_gets_a_change() -> None:
    feed = ChangeFeed()
    with feed.subscribe(nothing) as one, feed.subscribe(nothing) as other:
        feed.publish([Change("started", "-s1"), Change("ended", "-s2")])
        assert one.take() == other.take() == (Change("started", "-s1"), Change("ended", "-s2"))
        assert one.take() == ()


def test_the_same_change_is_reported_once() -> None:
    feed = ChangeFeed()
    with feed.subscribe(nothing) as subscription:
        for _ in range(3):
            feed.publish([Change("runs", "-s1")])
        assert subscription.take() == (Change("runs", "-s1"),)


def test_a_slow_listener_is_told_to_refresh() -> None:
    feed = ChangeFeed()
    with feed.subscribe(nothing) as subscription:
        feed.publish(Change("ended", f"-{number}") for number in range(MOST_WAITING + 1))
        feed.publish([Change("ended", "-last")])
        assert subscription.take() == (REFRESH,)


def test_a_listener_is_woken_once_until_it_takes() -> None:
    feed, woken = ChangeFeed(), []
    with feed.subscribe(lambda: woken.append(1)) as subscription:
        for number in range(3):
            feed.publish([Change("ended", f"-{number}")])
        assert len(woken) == 1
        subscription.take()
        feed.publish([Change("ended", "-3")])
        assert len(woken) == 2


def test_changes_without_listeners_are_not_even_read() -> None:
    def changes() -> Iterator[Change]:
        raise AssertionError("nobody wants to know")
        yield

    feed = ChangeFeed()
    with feed.subscribe(nothing):
        assert feed.subscribers == 1
    feed.publish(changes())
    assert feed.subscribers == 0


def test_a_long_id_is_not_passed_on() -> None:
    feed = ChangeFeed()
    with feed.subscribe(nothing) as subscription:
        feed.publish([Change("ended", "x" * (LONGEST_ID + 1))])
        assert subscription.take() == (Change("ended"),)


def test_listeners_are_reported_when_nothing_more_will_come() -> None:
    feed, woken = ChangeFeed(), threading.Event()
    with feed.subscribe(woken.set) as subscription:
        feed.close()
        assert subscription.is_closed
        assert woken.is_set()
    with feed.subscribe(nothing) as late:
        assert late.is_closed


@contextmanager
def logging_to(folder: Path) -> Iterator[CallLog]:
    log = CallLog(url_in(folder), runs_for=lambda call: ["sync_crm"])
    try:
        yield log
    finally:
        log.close()


def hear(subscription: Subscription, *changes: Change) -> None:
    """Wait for these changes."""
    heard: list[Change] = []

    def has_heard() -> bool:
        heard.extend(subscription.take())
        return [each for each in heard if each in changes] == [*changes]

    eventually(has_heard)


def test_a_call_is_reported_when_it_starts_and_when_it_ends(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, log.feed.subscribe(nothing) as subscription:
        for delivery in (prefetched("-a"), ended("-a"), ended("-b", b"{")):
            log.writer.record(delivery)
        hear(subscription, Change("started", "-a"), Change("ended", "-a"), Change("unparsed", "-b"))


def test_runs_are_reported_by_session(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, log.feed.subscribe(nothing) as subscription:
        log.writer.record(ended("-a"))
        hear(subscription, Change("ended", "-a"))
        log.tell_of_runs([1])
        hear(subscription, Change("runs", "-a"))


def test_the_call_log_stops_while_someone_listens(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, log.feed.subscribe(nothing) as subscription:
        log.close()
        assert subscription.is_closed


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


@contextmanager
def looking(database: Database) -> Iterator[tuple[Writer, Callable[[], tuple[Change, ...]]]]:
    """Look once; yield the writer, and what looks again and returns what was told."""
    feed = ChangeFeed()
    with writing(database) as writer, feed.subscribe(nothing) as subscription:
        others = OtherProcesses(writer, feed)

        def look() -> tuple[Change, ...]:
            others.look()
            return subscription.take()

        look()
        yield writer, look


RUN = {"call_id": 1, "handler": "greet", "hook": "end_of_call", "is_latest": True}
RUN |= {"is_replay": False, "state": "pending", "created_at": NOW, "state_since": NOW, "spent": 0}
ATTEMPT = {"run_id": 1, "number": 1, "started_at": NOW}
REFUSED = {"received_at": NOW, "webhook": "prefetch", "method": "GET"}
REFUSED |= {"status_code": 401, "reason": "", "query": "", "headers": "[]"}


@pytest.mark.both_databases
def test_each_thing_another_process_does_is_reported(database: Database, tmp_path: Path) -> None:
    steps: list[Callable[[Connection], object]] = [
        lambda c: insert_deliveries(c, [ended()]),
        lambda c: (
            c.execute(insert(calls).values(session_id="-s1", received_at=NOW)),
            c.execute(delete(inbox)),
        ),
        lambda c: c.execute(insert(handler_runs).values(RUN)),
        lambda c: (
            c.execute(update(handler_runs).values(state="running")),
            c.execute(insert(attempts).values(ATTEMPT)),
        ),
        lambda c: c.execute(update(handler_runs).values(state="succeeded")),
        lambda c: c.execute(insert(rejections).values(REFUSED)),
    ]
    with opened(tmp_path) as another, looking(database) as (_, look):
        for step in steps:
            with another.writer.begin() as connection:
                step(connection)
            assert {each.kind for each in look()} == {
                "started",
                "function",
                "ended",
                "unparsed",
                "runs",
                "rejected",
            }
            assert look() == ()


def test_what_this_process_writes_is_not_told_twice(database: Database) -> None:
    key = insert(keys).values(name="ours", value=b"x")
    with looking(database) as (writer, look):
        writer.run(lambda connection: connection.execute(key))
        assert look() == ()


def test_a_log_that_cannot_be_asked_says_nothing(database: Database) -> None:
    with looking(database) as (writer, look):
        writer.close()
        assert look() == ()


@pytest.mark.both_databases
def test_two_processes_learn_of_each_others_calls(tmp_path: Path) -> None:
    with (
        logging_to(tmp_path) as one,
        logging_to(tmp_path) as other,
        other.feed.subscribe(nothing) as subscription,
    ):
        one.writer.record(prefetched())
        hear(subscription, Change("started"))

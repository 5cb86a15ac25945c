"""Who listens is told what changes in the call log, whoever changed it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert

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
from millis_hooks.call_log.tables import keys
from millis_hooks.call_log.writer import Writer
from support.databases import url_in
from support.storage import ended, opened, prefetched, writing
from support.waiting import eventually

pytestmark = pytest.mark.both_databases


def nothing() -> None:
    pass


def test_every_listener_gets_a_change() -> None:
    feed = ChangeFeed()
    with feed.subscribe(nothing) as one, feed.subscribe(nothing) as other:
        feed.publish([Change("started", "-s1"), Change("ended", "-s2")])
        assert one.take() == other.take() == (Change("started", "-s1"), Change("ended", "-s2"))
        assert one.take() == ()


def test_the_same_change_is_told_once() -> None:
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


def test_listeners_are_told_when_nothing_more_will_come() -> None:
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


@contextmanager
def listening(log: CallLog) -> Iterator[Subscription]:
    """Listen, once what happens elsewhere is heard, too."""
    with log.feed.subscribe(nothing) as subscription:
        if not log.database.is_file:
            eventually(lambda: REFRESH in subscription.take())
        yield subscription


def hear(subscription: Subscription, count: int) -> list[Change]:
    """Wait for so many changes."""
    heard: list[Change] = []

    def has_heard() -> bool:
        heard.extend(subscription.take())
        return len(heard) >= count

    eventually(has_heard)
    return heard


def test_a_call_is_told_of_when_it_starts_and_when_it_ends(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, listening(log) as subscription:
        for delivery in (prefetched("-a"), ended("-a"), ended("-b", b"{")):
            log.writer.record(delivery)
        assert hear(subscription, 3) == [
            Change("started", "-a"),
            Change("ended", "-a"),
            Change("unparsed", "-b"),
        ]


def test_runs_are_told_of_by_session(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, listening(log) as subscription:
        log.writer.record(ended("-a"))
        assert hear(subscription, 1) == [Change("ended", "-a")]
        log.tell_of_runs([1])
        assert hear(subscription, 1) == [Change("runs", "-a")]


def test_the_call_log_stops_while_somebody_listens(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, log.feed.subscribe(nothing) as subscription:
        log.close()
        assert subscription.is_closed


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


def write(writer: Writer, name: str) -> None:
    key = insert(keys).values(name=name, value=b"x")
    writer.run(lambda connection: connection.execute(key))


@pytest.mark.sqlite_only
def test_what_another_process_writes_is_told(database: Database, tmp_path: Path) -> None:
    feed = ChangeFeed()
    with (
        opened(tmp_path) as another,
        writing(database) as writer,
        writing(another) as their_writer,
        feed.subscribe(nothing) as subscription,
    ):
        others = OtherProcesses(writer, feed)
        others.look()
        write(their_writer, "theirs")
        others.look()
        assert subscription.take() == (REFRESH,)
        others.look()
        assert subscription.take() == ()


@pytest.mark.sqlite_only
def test_what_this_process_writes_is_not_told_twice(database: Database) -> None:
    feed = ChangeFeed()
    with writing(database) as writer, feed.subscribe(nothing) as subscription:
        others = OtherProcesses(writer, feed)
        others.look()
        write(writer, "ours")
        others.look()
        assert subscription.take() == ()


@pytest.mark.sqlite_only
def test_a_log_that_cannot_be_asked_says_nothing(database: Database) -> None:
    feed = ChangeFeed()
    with writing(database) as writer, feed.subscribe(nothing) as subscription:
        writer.close()
        OtherProcesses(writer, feed).look()
        assert subscription.take() == ()


@pytest.mark.sqlite_only
def test_two_processes_learn_of_each_others_calls(tmp_path: Path) -> None:
    with (
        logging_to(tmp_path) as one,
        logging_to(tmp_path) as other,
        other.feed.subscribe(nothing) as subscription,
    ):

        def is_told() -> bool:
            one.writer.record(prefetched())
            return REFRESH in subscription.take()

        eventually(is_told)

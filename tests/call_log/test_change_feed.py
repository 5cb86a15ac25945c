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
    Announcer,
    Change,
    Elsewhere,
    Listener,
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
    news = Announcer()
    with news.listen(nothing) as one, news.listen(nothing) as other:
        news.tell([Change("started", "-s1"), Change("ended", "-s2")])
        assert one.take() == other.take() == (Change("started", "-s1"), Change("ended", "-s2"))
        assert one.take() == ()


def test_the_same_change_is_told_once() -> None:
    news = Announcer()
    with news.listen(nothing) as listener:
        for _ in range(3):
            news.tell([Change("runs", "-s1")])
        assert listener.take() == (Change("runs", "-s1"),)


def test_a_slow_listener_is_told_to_refresh() -> None:
    news = Announcer()
    with news.listen(nothing) as listener:
        news.tell(Change("ended", f"-{number}") for number in range(MOST_WAITING + 1))
        news.tell([Change("ended", "-last")])
        assert listener.take() == (REFRESH,)


def test_a_listener_is_woken_once_until_it_takes() -> None:
    news, woken = Announcer(), []
    with news.listen(lambda: woken.append(1)) as listener:
        for number in range(3):
            news.tell([Change("ended", f"-{number}")])
        assert len(woken) == 1
        listener.take()
        news.tell([Change("ended", "-3")])
        assert len(woken) == 2


def test_changes_without_listeners_are_not_even_read() -> None:
    def changes() -> Iterator[Change]:
        raise AssertionError("nobody wants to know")
        yield

    news = Announcer()
    with news.listen(nothing):
        assert news.listeners == 1
    news.tell(changes())
    assert news.listeners == 0


def test_a_long_id_is_not_passed_on() -> None:
    news = Announcer()
    with news.listen(nothing) as listener:
        news.tell([Change("ended", "x" * (LONGEST_ID + 1))])
        assert listener.take() == (Change("ended"),)


def test_listeners_are_told_when_nothing_more_will_come() -> None:
    news, woken = Announcer(), threading.Event()
    with news.listen(woken.set) as listener:
        news.close()
        assert listener.is_closed
        assert woken.is_set()
    with news.listen(nothing) as late:
        assert late.is_closed


@contextmanager
def logging_to(folder: Path) -> Iterator[CallLog]:
    log = CallLog(url_in(folder), runs_for=lambda call: ["sync_crm"])
    try:
        yield log
    finally:
        log.close()


@contextmanager
def listening(log: CallLog) -> Iterator[Listener]:
    """Listen, once what happens elsewhere is heard, too."""
    with log.news.listen(nothing) as listener:
        if not log.database.is_file:
            eventually(lambda: REFRESH in listener.take())
        yield listener


def hear(listener: Listener, count: int) -> list[Change]:
    """Wait for so many changes."""
    heard: list[Change] = []

    def has_heard() -> bool:
        heard.extend(listener.take())
        return len(heard) >= count

    eventually(has_heard)
    return heard


def test_a_call_is_told_of_when_it_starts_and_when_it_ends(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, listening(log) as listener:
        for delivery in (prefetched("-a"), ended("-a"), ended("-b", b"{")):
            log.writer.record(delivery)
        assert hear(listener, 3) == [
            Change("started", "-a"),
            Change("ended", "-a"),
            Change("unparsed", "-b"),
        ]


def test_runs_are_told_of_by_session(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, listening(log) as listener:
        log.writer.record(ended("-a"))
        assert hear(listener, 1) == [Change("ended", "-a")]
        log.tell_of_runs([1])
        assert hear(listener, 1) == [Change("runs", "-a")]


def test_the_call_log_stops_while_somebody_listens(tmp_path: Path) -> None:
    with logging_to(tmp_path) as log, log.news.listen(nothing) as listener:
        log.close()
        assert listener.is_closed


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


def write(writer: Writer, name: str) -> None:
    key = insert(keys).values(name=name, value=b"x")
    writer.run(lambda connection: connection.execute(key))


@pytest.mark.sqlite_only
def test_what_another_process_writes_is_told(database: Database, tmp_path: Path) -> None:
    news = Announcer()
    with (
        opened(tmp_path) as another,
        writing(database) as writer,
        writing(another) as their_writer,
        news.listen(nothing) as listener,
    ):
        elsewhere = Elsewhere(writer, news)
        elsewhere.look()
        write(their_writer, "theirs")
        elsewhere.look()
        assert listener.take() == (REFRESH,)
        elsewhere.look()
        assert listener.take() == ()


@pytest.mark.sqlite_only
def test_what_this_process_writes_is_not_told_twice(database: Database) -> None:
    news = Announcer()
    with writing(database) as writer, news.listen(nothing) as listener:
        elsewhere = Elsewhere(writer, news)
        elsewhere.look()
        write(writer, "ours")
        elsewhere.look()
        assert listener.take() == ()


@pytest.mark.sqlite_only
def test_a_log_that_cannot_be_asked_says_nothing(database: Database) -> None:
    news = Announcer()
    with writing(database) as writer, news.listen(nothing) as listener:
        writer.close()
        Elsewhere(writer, news).look()
        assert listener.take() == ()


@pytest.mark.sqlite_only
def test_two_processes_learn_of_each_others_calls(tmp_path: Path) -> None:
    with (
        logging_to(tmp_path) as one,
        logging_to(tmp_path) as other,
        other.news.listen(nothing) as listener,
    ):

        def is_told() -> bool:
            one.writer.record(prefetched())
            return REFRESH in listener.take()

        eventually(is_told)

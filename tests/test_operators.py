"""Who gets into the dashboard, for how long, and how guessing is slowed down."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select
from stored_calls import NOW, StoredCalls

from millis_hooks.call_log.tables import operator_sessions
from millis_hooks.operators import Guesses, Operator, Operators, Refused, SignedIn

PASSWORD = "pässwörd ☎"


class Desk:
    """Operators with a clock that is set by hand."""

    def __init__(self, stored: StoredCalls) -> None:
        self.stored = stored
        self.now = NOW
        self.operators = self.made_with(PASSWORD)

    def made_with(self, password: SecretStr | str | None, key: bytes = b"key") -> Operators:
        return Operators(
            self.stored.database.reader,
            write=self.stored.write,
            signing_key=key,
            password=password,
            now=lambda: self.now,
        )

    def sign_in(self, *, keep: bool = False) -> str:
        outcome = self.operators.log_in("admin", PASSWORD, keep=keep)
        assert isinstance(outcome, SignedIn)
        return outcome.cookie


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    stored = StoredCalls(tmp_path)
    yield Desk(stored)
    stored.database.close()


def test_the_right_password_opens_a_session(desk: Desk) -> None:
    assert desk.operators.resume(desk.sign_in()) == Operator("admin")


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("admin", "wrong"),
        ("root", PASSWORD),
        ("", ""),
        ("admin", ""),
        ("ädmin", "\x00"),
        ("admin", "\ud800"),
    ],
)
def test_anything_else_is_refused_in_the_same_way(desk: Desk, username: str, password: str) -> None:
    assert desk.operators.log_in(username, password) == Refused()


@pytest.mark.parametrize("password", [None, "", SecretStr("")])
def test_without_a_password_nobody_gets_in(desk: Desk, password: SecretStr | str | None) -> None:
    operators = desk.made_with(password)
    assert not operators.has_password
    assert operators.log_in("admin", "") == Refused()


def test_a_secret_password_works_like_a_plain_one(desk: Desk) -> None:
    assert isinstance(desk.made_with(SecretStr("x")).log_in("admin", "x"), SignedIn)


@pytest.mark.parametrize(
    ("keep", "lasts"), [(False, timedelta(hours=12)), (True, timedelta(days=30))]
)
def test_a_session_ends_by_itself(desk: Desk, keep: bool, lasts: timedelta) -> None:
    cookie = desk.sign_in(keep=keep)
    desk.now = NOW + lasts - timedelta(seconds=1)
    assert desk.operators.resume(cookie)
    desk.now = NOW + lasts
    assert desk.operators.resume(cookie) is None


def test_only_a_kept_session_outlives_the_browser(desk: Desk) -> None:
    kept = desk.operators.log_in("admin", PASSWORD, keep=True)
    assert isinstance(kept, SignedIn)
    assert kept.max_age_s == 30 * 24 * 3600
    plain = desk.operators.log_in("admin", PASSWORD)
    assert isinstance(plain, SignedIn)
    assert plain.max_age_s is None


def test_signing_out_ends_the_session_for_every_copy_of_the_cookie(desk: Desk) -> None:
    cookie = desk.sign_in()
    desk.operators.log_out(cookie)
    assert desk.operators.resume(cookie) is None


def test_signing_out_leaves_other_sessions_alone(desk: Desk) -> None:
    one, other = desk.sign_in(), desk.sign_in()
    desk.operators.log_out(one)
    assert desk.operators.resume(other)


@pytest.mark.parametrize("cookie", [None, "", "x", "a.b.c", "é", "\ud800", '"admin".sig'])
def test_a_cookie_that_is_none_of_ours_is_nobody(desk: Desk, cookie: str | None) -> None:
    assert desk.operators.resume(cookie) is None
    desk.operators.log_out(cookie)


def test_a_cookie_cannot_be_altered(desk: Desk) -> None:
    cookie = desk.sign_in()
    flipped = ("A" if cookie[3] != "A" else "B").join((cookie[:3], cookie[4:]))
    assert desk.operators.resume(flipped) is None


@pytest.mark.parametrize(("password", "key"), [("new", b"key"), (PASSWORD, b"another key")])
def test_a_new_password_or_key_ends_every_session(desk: Desk, password: str, key: bytes) -> None:
    cookie = desk.sign_in()
    assert desk.made_with(password, key).resume(cookie) is None


def test_the_call_log_holds_no_session_id_in_the_clear(desk: Desk) -> None:
    cookie = desk.sign_in()
    with desk.stored.database.reader.connect() as connection:
        stored = connection.scalar(select(operator_sessions.c.id_hash))
    assert stored is not None
    assert stored not in cookie
    assert cookie.split(".")[0].strip('"') not in stored


def test_sessions_that_are_over_are_removed_at_the_next_sign_in(desk: Desk) -> None:
    desk.sign_in()
    desk.now = NOW + timedelta(days=1)
    desk.sign_in()
    with desk.stored.database.reader.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(operator_sessions)) == 1


def test_guessing_is_slowed_down_for_the_one_who_guesses(desk: Desk) -> None:
    for _ in range(5):
        assert desk.operators.log_in("admin", "guess", client="192.0.2.1") == Refused()
    refused = desk.operators.log_in("admin", PASSWORD, client="192.0.2.1")
    assert isinstance(refused, Refused)
    assert refused.retry_after_s > 0
    assert isinstance(desk.operators.log_in("admin", PASSWORD, client="192.0.2.2"), SignedIn)


def test_nobody_is_locked_out(desk: Desk) -> None:
    for _ in range(100):
        outcome = desk.operators.log_in("admin", "guess", client="192.0.2.1")
        assert isinstance(outcome, Refused)
        assert outcome.retry_after_s <= 60
        desk.now += timedelta(seconds=outcome.retry_after_s)
    desk.now += timedelta(seconds=60)
    assert isinstance(desk.operators.log_in("admin", PASSWORD, client="192.0.2.1"), SignedIn)


def guess(guesses: Guesses, client: str, at: datetime = NOW) -> None:
    for _ in range(6):
        guesses.add(client, at)


def test_the_right_password_and_time_make_failures_forgotten() -> None:
    guesses = Guesses()
    guess(guesses, "a")
    assert guesses.wait_s("a", NOW) == 4
    assert guesses.wait_s("a", NOW + timedelta(seconds=3)) == 1
    assert guesses.wait_s("a", NOW + timedelta(minutes=16)) == 0
    guesses.forget("a")
    assert guesses.wait_s("a", NOW) == 0


def test_an_ipv6_subscriber_is_one_client() -> None:
    guesses = Guesses()
    guess(guesses, "2001:db8:1:2::1")
    assert guesses.wait_s("2001:db8:1:2:ffff::9", NOW) > 0
    assert guesses.wait_s("2001:db8:1:3::1", NOW) == 0


def test_remembering_clients_takes_bounded_memory() -> None:
    guesses = Guesses()
    guess(guesses, "first")
    for number in range(5000):
        guesses.add(f"client {number}", NOW)
    assert guesses.wait_s("first", NOW) == 0

"""The throttle slows down guessing, and excludes no operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from millis_hooks.environment.addresses import network_of
from millis_hooks.operators import Operator, Operators, Refused, SignedIn, accounts
from millis_hooks.operators.accounts import hash_password
from millis_hooks.operators.throttle import Throttle
from support.stored_calls import NOW, StoredCalls

PASSWORD = "the password of admin"
ANNAS = "the password of anna"
HOME, OFFICE, ELSEWHERE = "192.0.2.1", "198.51.100.7", "203.0.113.9"

numbers = itertools.count()


class Door:
    """Where people sign in. Whoever guesses does so until they have to wait."""

    def __init__(self, folder: Path) -> None:
        self.stored = StoredCalls(folder)
        self.now = NOW
        self.looked_at = 0
        self.operators = Operators(
            self.stored.database.reader,
            write=self.stored.write,
            signing_key=b"key",
            password=PASSWORD,
            now=lambda: self.now,
        )

    def enter(
        self,
        password: str = PASSWORD,
        *,
        name: str = "admin",
        client: str = HOME,
        known: str | None = None,
    ) -> SignedIn | Refused:
        return self.operators.log_in(name, password, client=client, known_browser=known)

    def known(self, name: str = "admin", password: str = PASSWORD, client: str = HOME) -> str:
        signed_in = self.enter(password, name=name, client=client)
        assert isinstance(signed_in, SignedIn)
        return signed_in.known_browser

    def guess(
        self, times: int = 1, *, client: str = HOME, name: str = "admin", known: str | None = None
    ) -> int:
        """Guess something new each time, and return how often it was looked at."""
        outcomes = [
            self.enter(f"guess {next(numbers)}", name=name, client=client, known=known)
            for _ in range(times)
        ]
        return outcomes.count(Refused())


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    # What is slow about a password is not what these are about.
    monkeypatch.setattr("millis_hooks.operators.accounts.is_password", _is_annas)
    door = Door(tmp_path)
    yield door
    door.stored.database.close()


def _is_annas(password_hash: str | None, password: str) -> bool:
    return password_hash is not None and password == ANNAS


def add_anna(door: Door) -> None:
    hashed = hash_password(ANNAS)
    door.stored.write(
        lambda connection: accounts.add(
            connection, "anna", role="view", password_hash=hashed, now=NOW
        )
    )


def is_in(outcome: SignedIn | Refused) -> bool:
    return isinstance(outcome, SignedIn)


def test_wrong_passwords_are_throttled(door: Door) -> None:
    assert door.guess(100) == 5
    assert door.enter() == Refused(1)
    door.now += timedelta(minutes=1)
    assert is_in(door.enter())


def test_an_address_guesses_once_a_second(door: Door) -> None:
    door.guess(100)
    looked_at = 0
    for _ in range(200):
        looked_at += door.guess(3)
        door.now += timedelta(milliseconds=100)
    assert looked_at <= 20


def test_a_name_is_guessed_once_a_second_from_all_addresses_together(door: Door) -> None:
    assert sum(door.guess(client=f"10.0.{n}.1") for n in range(200)) == 50
    door.now += timedelta(seconds=10)
    assert sum(door.guess(client=f"10.1.{n}.1") for n in range(200)) == 10


@pytest.mark.parametrize("rounds", [3, 60])
def test_signing_in_between_does_not_speed_up_guessing(door: Door, rounds: int) -> None:
    add_anna(door)
    annas = door.known("anna", ANNAS)
    looked_at = 0
    for _ in range(rounds):
        looked_at += door.guess(3, known=annas)
        door.enter(ANNAS, name="anna", known=annas)
        door.enter(ANNAS, name="anna")
    assert looked_at == 5


def test_a_right_password_costs_no_try(door: Door) -> None:
    assert all(is_in(door.enter()) for _ in range(50))
    assert door.guess(10) == 5


def test_a_known_browser_signs_in_while_its_address_is_throttled(door: Door) -> None:
    known = door.known()
    door.guess(500)
    assert is_in(door.enter(known=known))


def test_a_known_browser_signs_in_while_its_name_is_throttled(door: Door) -> None:
    known = door.known(client=OFFICE)
    for n in range(70):
        door.guess(client=f"10.0.{n}.1")
    assert is_in(door.enter(client=ELSEWHERE, known=known))


def test_a_new_browser_at_a_usual_address_is_not_throttled_by_name(door: Door) -> None:
    door.known(client="2001:db8:1:2::1")
    for n in range(70):
        door.guess(client=f"10.0.{n}.1")
    assert door.enter(client=ELSEWHERE) == Refused(1)
    assert is_in(door.enter(client="2001:db8:1:2::9"))


def test_a_known_browser_guesses_no_faster_than_another(door: Door) -> None:
    known = door.known()
    assert door.guess(100, known=known) == 5
    assert door.enter(known=known) == Refused(1)


def test_a_browser_known_to_one_name_is_a_stranger_to_another(door: Door) -> None:
    add_anna(door)
    annas = door.known("anna", ANNAS)
    door.guess(100, client=OFFICE)
    assert door.enter(client=OFFICE, known=annas) == Refused(1)


@pytest.mark.parametrize("forged", ["", "x", "a.b", "é.\ud800", "admin", "..", "a" * 5000])
def test_the_cookie_of_a_known_browser_cannot_be_forged(door: Door, forged: str) -> None:
    door.guess(100)
    assert door.enter(known=forged) == Refused(1)


def test_after_a_new_password_no_browser_is_known(door: Door) -> None:
    add_anna(door)
    annas = door.known("anna", ANNAS)
    door.guess(100)
    assert is_in(door.enter(ANNAS, name="anna", known=annas))
    hashed = hash_password("another password of anna")
    door.stored.write(lambda connection: accounts.set_password(connection, "anna", hashed))
    assert door.enter(ANNAS, name="anna", known=annas) == Refused(1)


def test_repeating_one_wrong_password_delays_no_other(door: Door) -> None:
    for _ in range(200):
        door.enter("the password of last year")
        door.now += timedelta(milliseconds=50)
    assert is_in(door.enter())
    assert is_in(door.enter(client=ELSEWHERE))


@pytest.mark.parametrize("guesses_a_second", [1, 20, 1000])
def test_a_new_browser_signs_in_at_the_second_try_while_its_address_is_throttled(
    door: Door, guesses_a_second: int
) -> None:
    door.guess(50)
    assert door.enter() == Refused(1)
    for _ in range(2):
        door.now += timedelta(seconds=1)
        door.guess(guesses_a_second)
    assert is_in(door.enter())


def test_repeated_guesses_do_not_speed_up_guessing(door: Door) -> None:
    door.guess(100)
    looked_at = 0
    for number in range(100):
        outcomes = [door.enter(f"again {number}") for _ in range(5)]
        looked_at += outcomes.count(Refused())
        door.now += timedelta(milliseconds=100)
    assert looked_at <= 11


def test_confirming_has_tries_of_its_own(door: Door) -> None:
    operator = Operator("admin", session="a session")
    door.guess(100)
    assert door.operators.confirm(operator, PASSWORD) is None
    refused = [door.operators.confirm(operator, f"guess {n}") for n in range(9)]
    assert refused.count(Refused()) == 5
    assert is_in(door.enter(client=ELSEWHERE))


def test_a_clock_set_back_does_not_lengthen_the_throttle(door: Door) -> None:
    door.guess(100)
    door.now -= timedelta(hours=1)
    assert is_in(door.enter())


def test_remembering_takes_bounded_memory() -> None:
    throttle = Throttle()
    for number in range(20_000):
        throttle.take([("address", str(number)), ("name", str(number))], "guess", NOW)
        throttle.take([("name", "admin")], str(number), NOW)
        throttle.wait_s([("name", "admin")], str(number), NOW)
        throttle.note_wrong(str(number))
    assert max(len(kept) for kept in throttle._whole_at.values()) == 4096
    assert len(throttle._wrong) == 4096
    assert len(throttle._waiting) == 16_384


def test_an_ipv6_subscriber_is_one_client() -> None:
    assert network_of("2001:db8:1:2::1") == network_of("2001:db8:1:2:ffff::9")
    assert network_of("2001:db8:1:2::1") != network_of("2001:db8:1:3::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("testclient") == "testclient"

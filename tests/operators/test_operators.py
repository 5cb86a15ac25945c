"""Accounts, sign-in, sessions and the audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr
from sqlalchemy import func, select

from millis_hooks.call_log.tables import audit_log, operator_sessions, operators
from millis_hooks.call_log.upkeep.retention import prune
from millis_hooks.exceptions import StorageError
from millis_hooks.operators import (
    AuditEntry,
    Lasts,
    Operator,
    Operators,
    Refused,
    Role,
    SignedIn,
    accounts,
)
from millis_hooks.operators.accounts import hash_password, is_password
from support.stored_calls import NOW, StoredCalls

PASSWORD = "pässwörd ☎"
ANNAS = "the password of anna"
ADMIN = Operator("admin")


class Desk:
    """Operators with a clock that is set by hand."""

    def __init__(self, stored: StoredCalls) -> None:
        self.stored = stored
        self.now = NOW
        self.operators = self.made_with(PASSWORD)

    def made_with(
        self, password: SecretStr | str | None, key: bytes = b"key", lasts: Lasts | None = None
    ) -> Operators:
        return Operators(
            self.stored.database.reader,
            write=self.stored.write,
            signing_key=key,
            password=password,
            now=lambda: self.now,
            lasts=lasts,
        )

    def sign_in(
        self, name: str = "admin", password: str = PASSWORD, *, keep: bool = False, client: str = ""
    ) -> str:
        outcome = self.operators.log_in(name, password, keep=keep, client=client)
        assert isinstance(outcome, SignedIn)
        return outcome.cookie

    def add(self, name: str = "anna", role: Role = "view", password: str = ANNAS) -> None:
        hashed = hash_password(password)
        added = self.stored.write(
            lambda connection: accounts.add(
                connection, name, role=role, password_hash=hashed, now=NOW
            )
        )
        assert added

    def operator(self, cookie: str) -> Operator:
        operator = self.operators.resume(cookie)
        assert operator is not None
        return operator

    def done(self, to: Operator = ADMIN) -> list[tuple[str | None, str, str | None]]:
        return [(each.operator, each.action, each.subject) for each in self.audit_log(to)]

    def audit_log(self, to: Operator = ADMIN) -> tuple[AuditEntry, ...]:
        return self.operators.audit_log(to, size=1000)

    def guess(self, times: int, *, name: str = "admin", clients: int = 1) -> None:
        for number in range(times):
            client = f"192.0.2.{number % clients}"
            self.operators.log_in(name, "guess", client=client)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    stored = StoredCalls(tmp_path)
    yield Desk(stored)
    stored.database.close()


@pytest.mark.both_databases
def test_the_right_password_opens_a_session(desk: Desk) -> None:
    assert desk.operators.resume(desk.sign_in()) == ADMIN


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("admin", "wrong"),
        ("root", PASSWORD),
        ("anna", PASSWORD),
        ("admin", ANNAS),
        ("", ""),
        ("admin", ""),
        ("ädmin", "\x00"),
        ("admin", "\ud800"),
        ("' OR 1=1 --", PASSWORD),
    ],
)
def test_any_other_sign_in_is_refused_in_the_same_way(
    desk: Desk, username: str, password: str
) -> None:
    desk.add()
    assert desk.operators.log_in(username, password) == Refused()


@pytest.mark.parametrize("password", [None, "", SecretStr("")])
def test_without_a_password_sign_in_is_refused(
    desk: Desk, password: SecretStr | str | None
) -> None:
    operators = desk.made_with(password)
    assert not operators.has_password
    assert operators.log_in("admin", "") == Refused()


def test_a_secret_password_works_like_a_plain_one(desk: Desk) -> None:
    assert isinstance(desk.made_with(SecretStr("x")).log_in("admin", "x"), SignedIn)


@pytest.mark.both_databases
def test_a_named_operator_signs_in_however_the_name_is_written(desk: Desk) -> None:
    desk.add("anna", "view")
    assert desk.operator(desk.sign_in(" Anna", ANNAS)) == Operator("anna", "view")
    assert desk.operators.are_named


def test_named_operators_need_no_password_in_the_settings(desk: Desk) -> None:
    desk.operators = desk.made_with(None)
    desk.add("anna")
    assert desk.operators.has_password
    assert desk.operator(desk.sign_in("anna", ANNAS)).name == "anna"


def test_an_accented_password_is_the_same_from_every_keyboard(desk: Desk) -> None:
    desk.add("zoe", password="caf\u00e9 caf\u00e9")
    assert desk.sign_in("zoe", "cafe\u0301 cafe\u0301")


def test_admin_is_listed_where_there_is_a_password_for_it(desk: Desk) -> None:
    desk.add("anna")
    assert [each.name for each in desk.operators.accounts()] == ["admin", "anna"]
    assert [each.name for each in desk.made_with(None).accounts()] == ["anna"]


@pytest.mark.both_databases
def test_an_operator_removed_during_sign_in_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.add("anna")

    def remove_and_say_yes(*_: object) -> bool:
        desk.stored.write(lambda connection: accounts.remove(connection, "anna"))
        return True

    monkeypatch.setattr("millis_hooks.operators.accounts.is_password", remove_and_say_yes)
    assert desk.operators.log_in("anna", ANNAS) == Refused()


def test_an_unreadable_call_log_raises_storage_error(desk: Desk) -> None:
    with desk.stored.database.writer.begin() as connection:
        connection.exec_driver_sql("DROP TABLE operators")
    with pytest.raises(StorageError, match="operators could not be read"):
        desk.operators.log_in("anna", ANNAS)


def test_passwords_are_kept_as_hashes_alone(desk: Desk) -> None:
    desk.add()
    with desk.stored.database.reader.connect() as connection:
        kept = connection.scalar(select(operators.c.password_hash)) or ""
    assert kept.startswith("$argon2id$")
    assert is_password(kept, ANNAS)
    assert not is_password("no hash at all", ANNAS)


def test_a_hash_costs_the_recommended_memory(real_hasher: Callable[[], PasswordHasher]) -> None:
    assert real_hasher().hash("a password").startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_an_unknown_name_costs_one_hash_like_a_known_one(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.add()
    hashed: list[str | None] = []

    def note(password_hash: str | None, password: str) -> bool:
        hashed.append(password_hash)
        return is_password(password_hash, password)

    monkeypatch.setattr("millis_hooks.operators.accounts.is_password", note)
    for name in ("admin", "anna", "nobody", "no name at all"):
        desk.operators.log_in(name, "guess")
    assert len(hashed) == 4


@pytest.mark.parametrize("name", ["", " ", "a b", "-anna", "a" * 65, "a\nb", "änna", "a/b"])
def test_invalid_names_are_refused(name: str) -> None:
    assert accounts.clean_name(name) is None


def test_the_name_admin_is_reserved(desk: Desk) -> None:
    added = desk.stored.write(
        lambda connection: accounts.add(
            connection, "admin", role="operate", password_hash="x", now=NOW
        )
    )
    assert not added


def test_an_idle_session_ends(desk: Desk) -> None:
    cookie = desk.sign_in()
    desk.now += timedelta(hours=12) - timedelta(seconds=1)
    assert desk.operators.resume(cookie, is_use=False)
    desk.now += timedelta(seconds=1)
    assert desk.operators.resume(cookie) is None


def test_a_session_in_use_is_extended_up_to_its_longest_time(desk: Desk) -> None:
    cookie = desk.sign_in()
    for _ in range(59):
        desk.now += timedelta(hours=12) - timedelta(seconds=1)
        assert desk.operators.resume(cookie)
    desk.now = NOW + timedelta(days=30)
    assert desk.operators.resume(cookie) is None


def test_a_kept_session_has_no_idle_limit(desk: Desk) -> None:
    cookie = desk.sign_in(keep=True)
    desk.now = NOW + timedelta(days=30) - timedelta(seconds=1)
    assert desk.operators.resume(cookie)
    desk.now = NOW + timedelta(days=30)
    assert desk.operators.resume(cookie) is None


def test_how_long_sessions_last_can_be_set(desk: Desk) -> None:
    lasts = Lasts(idle=timedelta(hours=1), longest=timedelta(minutes=30))
    desk.operators = desk.made_with(PASSWORD, lasts=lasts)
    cookie = desk.sign_in()
    desk.now += timedelta(minutes=30)
    assert desk.operators.resume(cookie) is None


def test_only_a_kept_session_outlives_the_browser(desk: Desk) -> None:
    kept = desk.operators.log_in("admin", PASSWORD, keep=True)
    assert isinstance(kept, SignedIn)
    assert kept.max_age_s == 30 * 24 * 3600
    plain = desk.operators.log_in("admin", PASSWORD)
    assert isinstance(plain, SignedIn)
    assert plain.max_age_s is None


@pytest.mark.both_databases
def test_the_last_use_is_written_once_a_minute(desk: Desk) -> None:
    cookie = desk.sign_in()

    def seen() -> datetime:
        return desk.operators.sessions(ADMIN)[0].last_seen_at

    desk.now += timedelta(seconds=59)
    desk.operators.resume(cookie)
    assert seen() == NOW
    desk.now += timedelta(seconds=1)
    desk.operators.resume(cookie, is_use=False)
    assert seen() == NOW
    desk.operators.resume(cookie)
    assert seen() == desk.now


@pytest.mark.both_databases
def test_operators_may_read_while_the_log_cannot_be_written(desk: Desk) -> None:
    cookie = desk.sign_in()

    def refuse(*_: object) -> None:
        raise StorageError("the disk is full")

    desk.operators._write = refuse  # type: ignore[assignment]
    desk.now += timedelta(minutes=5)
    assert desk.operators.resume(cookie)


@pytest.mark.both_databases
def test_signing_out_ends_the_session_for_every_copy_of_the_cookie(desk: Desk) -> None:
    cookie = desk.sign_in()
    desk.operators.log_out(cookie)
    assert desk.operators.resume(cookie) is None


def test_signing_out_leaves_other_sessions_alone(desk: Desk) -> None:
    one, other = desk.sign_in(), desk.sign_in()
    desk.operators.log_out(one)
    assert desk.operators.resume(other)


def test_signing_in_again_replaces_the_session(desk: Desk) -> None:
    first = desk.sign_in()
    second = desk.operators.log_in("admin", PASSWORD, instead_of=first)
    assert isinstance(second, SignedIn)
    assert desk.operators.resume(first) is None
    assert desk.operators.resume(second.cookie)


@pytest.mark.parametrize("cookie", [None, "", "x", "a.b.c", "é", "\ud800", "a.\ud800", '"admin".x'])
def test_a_foreign_cookie_is_refused(desk: Desk, cookie: str | None) -> None:
    assert desk.operators.resume(cookie) is None
    desk.operators.log_out(cookie)


@pytest.mark.parametrize("place", [3, -3])
def test_a_cookie_cannot_be_altered(desk: Desk, place: int) -> None:
    letters = list(desk.sign_in())
    letters[place] = "A" if letters[place] != "A" else "B"
    assert desk.operators.resume("".join(letters)) is None


@pytest.mark.parametrize(("password", "key"), [("new", b"key"), (PASSWORD, b"another key")])
def test_a_new_password_or_key_ends_every_session(desk: Desk, password: str, key: bytes) -> None:
    cookie = desk.sign_in()
    assert desk.made_with(password, key).resume(cookie) is None


def test_a_new_password_of_admin_leaves_named_operators_signed_in(desk: Desk) -> None:
    desk.add()
    cookie = desk.sign_in("anna", ANNAS)
    assert desk.made_with("another").resume(cookie)


def test_a_changed_password_or_a_removed_operator_ends_their_sessions(desk: Desk) -> None:
    desk.add("anna")
    desk.add("ben")
    annas, bens, admins = desk.sign_in("anna", ANNAS), desk.sign_in("ben", ANNAS), desk.sign_in()
    desk.stored.write(lambda connection: accounts.set_password(connection, "anna", "x"))
    desk.stored.write(lambda connection: accounts.remove(connection, "ben"))
    assert [desk.operators.resume(cookie) for cookie in (annas, bens)] == [None, None]
    assert [session.operator for session in desk.operators.sessions(ADMIN)] == ["admin"]
    assert desk.operators.resume(admins)


@pytest.mark.both_databases
def test_an_operator_added_again_has_no_old_session(desk: Desk) -> None:
    desk.add("anna")
    cookie = desk.sign_in("anna", ANNAS)
    desk.stored.write(lambda connection: accounts.remove(connection, "anna"))
    desk.add("anna")
    assert desk.operators.resume(cookie) is None


@pytest.mark.both_databases
def test_a_changed_role_holds_at_once(desk: Desk) -> None:
    desk.add("anna", "operate")
    cookie = desk.sign_in("anna", ANNAS)
    desk.stored.write(lambda connection: accounts.set_role(connection, "anna", "view"))
    assert not desk.operator(cookie).may_operate


def test_the_call_log_holds_no_session_id_in_the_clear(desk: Desk) -> None:
    cookie = desk.sign_in()
    with desk.stored.database.reader.connect() as connection:
        stored = connection.scalar(select(operator_sessions.c.id_hash))
    assert stored is not None
    assert stored not in cookie
    assert cookie.split(".")[0] not in stored


@pytest.mark.both_databases
def test_expired_sessions_are_removed_at_the_next_sign_in(desk: Desk) -> None:
    desk.sign_in()
    desk.now = NOW + timedelta(days=1)
    desk.sign_in()
    with desk.stored.database.reader.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(operator_sessions)) == 1


@pytest.mark.both_databases
def test_sessions_are_listed_with_address_and_browser(desk: Desk) -> None:
    desk.operators.log_in("admin", PASSWORD, client="192.0.2.1", browser="Firefox/1\x00\ud800" * 99)
    [session] = desk.operators.sessions(ADMIN)
    assert (session.operator, session.client) == ("admin", "192.0.2.1")
    assert (session.browser or "").startswith("Firefox/1")
    assert len(session.browser or "") <= 300


def test_operators_end_any_session_and_viewers_their_own(desk: Desk) -> None:
    desk.add("anna", "view")
    admins, annas = desk.sign_in(), desk.sign_in("anna", ANNAS)
    admin, anna = desk.operator(admins), desk.operator(annas)
    assert [each.operator for each in desk.operators.sessions(anna)] == ["anna"]
    assert not desk.operators.end_session(anna, admin.session)
    assert desk.operators.end_session(admin, anna.session)
    assert desk.operators.resume(annas) is None
    assert desk.done()[0] == ("admin", "end_session", "anna")


def test_signing_out_everywhere_ends_own_sessions_alone(desk: Desk) -> None:
    desk.add("anna", "view")
    cookies = [desk.sign_in(), desk.sign_in(), desk.sign_in("anna", ANNAS)]
    desk.operators.end_sessions(ADMIN)
    resumed = [desk.operators.resume(cookie) for cookie in cookies]
    assert resumed == [None, None, Operator("anna", "view")]


def test_a_password_is_recent_for_a_quarter_of_an_hour(desk: Desk) -> None:
    cookie = desk.sign_in()
    desk.now += timedelta(minutes=15)
    assert not desk.operator(cookie).has_confirmed(desk.now)
    assert desk.operators.confirm(desk.operator(cookie), PASSWORD) is None
    assert desk.operator(cookie).has_confirmed(desk.now)


def test_confirming_with_a_wrong_password_counts_as_a_guess(desk: Desk) -> None:
    operator = desk.operator(desk.sign_in())
    desk.now += timedelta(minutes=15)
    refused = [desk.operators.confirm(operator, "guess") for _ in range(6)]
    assert refused[0] == Refused()
    assert refused[5] is not None
    assert refused[5].retry_after_s > 0


def test_actions_of_operators_are_recorded(desk: Desk) -> None:
    cookie = desk.sign_in(client="192.0.2.1")
    desk.operators.record(ADMIN, "replay", subject="-call\x00" + 300 * "x", client="192.0.2.1")
    desk.operators.log_out(cookie)
    actions = [(each.action, (each.subject or "")[:5]) for each in reversed(desk.audit_log())]
    assert actions == [("sign_in", ""), ("replay", "-call"), ("sign_out", "")]
    assert max(len(each.subject or "") for each in desk.audit_log()) == 200


def test_a_viewer_sees_only_their_own_sessions(desk: Desk) -> None:
    desk.add("anna", "view")
    desk.sign_in()
    anna = desk.operator(desk.sign_in("anna", ANNAS))
    assert desk.done(anna) == [("anna", "sign_in", None)]
    assert len(desk.done()) == 2


@pytest.mark.both_databases
def test_the_audit_log_is_read_page_by_page(desk: Desk) -> None:
    for number in range(5):
        desk.operators.record(ADMIN, "replay", subject=str(number))
    first = desk.operators.audit_log(ADMIN, size=2)
    rest = desk.operators.audit_log(ADMIN, before=first[-1].id, size=9)
    assert [each.subject for each in (*first, *rest)] == ["4", "3", "2", "1", "0"]


@pytest.mark.both_databases
def test_refused_sign_ins_are_counted_by_client_and_hour(desk: Desk) -> None:
    desk.guess(3)
    desk.now += timedelta(hours=2)
    desk.guess(1)
    assert [(each.action, each.times, each.client) for each in desk.audit_log()] == [
        ("refused", 1, "192.0.2.0"),
        ("refused", 3, "192.0.2.0"),
    ]


def test_an_unknown_name_is_not_recorded(desk: Desk) -> None:
    desk.guess(1, name="my password by mistake")
    desk.guess(1, name="nobody")
    assert [(each.operator, each.times) for each in desk.audit_log()] == [(None, 2)]


@pytest.mark.both_databases
def test_guesses_from_many_clients_take_few_rows(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.operators.accounts.is_password", lambda *_: False)
    desk.guess(200, name="nobody", clients=200)
    assert len(desk.audit_log()) <= 51


@pytest.mark.both_databases
def test_the_audit_log_is_pruned_with_the_calls(desk: Desk) -> None:
    desk.sign_in()
    desk.now += timedelta(days=1)
    desk.operators.record(ADMIN, "replay")
    before = NOW + timedelta(hours=1)
    list(prune(desk.stored.database.reader, desk.stored.write, before=before, now=desk.now))
    with desk.stored.database.reader.connect() as connection:
        assert connection.scalars(select(audit_log.c.action)).all() == ["replay"]


def test_a_full_disk_is_reported_only_after_the_right_password(desk: Desk) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("The disk is full.")

    desk.operators._write = refuse  # type: ignore[assignment]
    assert desk.operators.log_in("admin", "guess") == Refused()
    with pytest.raises(StorageError, match="disk is full"):
        desk.operators.log_in("admin", PASSWORD)

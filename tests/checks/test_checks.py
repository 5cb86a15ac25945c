"""The checks of `doctor` and the Setup page."""

from __future__ import annotations

import json
import shutil
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import insert
from typer.testing import CliRunner, Result

from millis_hooks import MillisHooks
from millis_hooks.call_log.locks import FileHolder, has_wal_reset_bug
from millis_hooks.call_log.migrations import HEAD
from millis_hooks.call_log.tables import inbox
from millis_hooks.checks import CheckResult
from millis_hooks.checks.database import (
    check_clock,
    check_numbers,
    check_runner,
    check_schema,
    check_sqlite,
    check_work,
)
from millis_hooks.checks.installation import (
    check_application,
    check_disk,
    check_file_system,
    check_free_space,
    check_installation,
    check_settings,
    check_sync,
)
from millis_hooks.checks.reachability import check_certificate, check_reachability
from millis_hooks.cli.commands import app
from millis_hooks.settings import Settings
from support.databases import url_in
from support.faults import damage
from support.sites import Site
from support.stored_calls import NOW, StoredCalls

STRONG = "0f4c1d7b9a3e58261cd4f7a0b95e3d82"
GB = 10**9
Run = Callable[..., Result]


def by_name(results: Iterable[CheckResult]) -> dict[str, CheckResult]:
    """The results by their names, the worst of each."""
    ranked = sorted(results, key=lambda result: ("ok", "warn", "bad").index(result.state))
    return {result.name: result for result in ranked}


def now() -> datetime:
    return NOW


def states(results: Iterable[CheckResult]) -> dict[str, str]:
    return {name: result.state for name, result in by_name(results).items()}


def settings(folder: Path, **given: Any) -> Settings:
    known: dict[str, Any] = {
        "secrets": STRONG,
        "dashboard_password": STRONG[:18],
        "own_numbers": "+14155550199",
        "database_url": url_in(folder),
    }
    return Settings.load(**(known | given))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StoredCalls]:
    stored = StoredCalls(tmp_path)
    yield stored
    stored.database.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `doctor` where everything is in order but for what a test does."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "SECRETS": STRONG,
        "DASHBOARD_PASSWORD": STRONG[:18],
        "OWN_NUMBERS": "+14155550199",
        "DATABASE_URL": url_in(tmp_path),
    }.items():
        monkeypatch.setenv(f"MILLIS_HOOKS_{name}", value)
    return lambda *args: CliRunner().invoke(app, ["doctor", *args])


def test_a_call_log_in_order_has_nothing_bad(tmp_path: Path, log: StoredCalls) -> None:
    log.add_delivery(outcome="stored")
    results = by_name(check_installation(settings(tmp_path), now))
    assert [result for result in results.values() if result.state == "bad"] == []
    assert {"schema", "journal", "integrity", "clock", "inbox", "rights"} <= results.keys()
    assert results["clock"].found == "agrees with the newest delivery"


def test_a_delivery_received_during_the_checks_is_not_a_wrong_clock(
    tmp_path: Path, log: StoredCalls
) -> None:
    times = [NOW]
    for result in check_installation(settings(tmp_path), lambda: times[-1]):
        if result.name == "integrity":
            times.append(NOW + timedelta(minutes=2))
            log.add_delivery(outcome="stored", received_at=times[-1])
        assert (result.name, result.state) != ("clock", "bad")
    assert len(times) == 2


def test_every_problem_has_advice(tmp_path: Path) -> None:
    results = list(check_installation(Settings.load(database_url=url_in(tmp_path)), now))
    assert all(result.advice for result in results if result.state != "ok")


def test_a_missing_call_log_is_not_created(tmp_path: Path) -> None:
    results = by_name(check_installation(settings(tmp_path), now))
    assert results["call log"].found.startswith("none yet")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_bad(tmp_path: Path) -> None:
    results = by_name(check_installation(settings(tmp_path / "nowhere"), now))
    assert results["folder"].state == "bad"
    assert "call log" not in results


def test_checks_change_nothing(tmp_path: Path, log: StoredCalls) -> None:
    log.database.close()
    before = (tmp_path / "log.db").read_bytes()
    list(check_installation(settings(tmp_path), now))
    assert (tmp_path / "log.db").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "name", "state"),
    [
        ({"secrets": ""}, "secrets", "bad"),
        ({"secrets": "", "insecure": True}, "secrets", "warn"),
        ({}, "secrets", "ok"),
        ({"secret_in_path": True}, "secret in path", "warn"),
        ({"dashboard_password": None}, "password", "warn"),
        ({"session_key": STRONG}, "session key", "ok"),
        ({"own_numbers": ""}, "own numbers", "warn"),
        ({"retention_days": 0}, "retention", "warn"),
        ({"prefetch_fallback": "default"}, "fallback", "bad"),
    ],
)
def test_settings_are_checked(tmp_path: Path, given: dict[str, Any], name: str, state: str) -> None:
    results = by_name(check_settings(settings(tmp_path, **given)))
    assert results[name].state == state


def test_a_readable_env_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("MILLIS_HOOKS_RETENTION_DAYS=7\n")
    for mode, is_told in ((0o644, True), (0o600, False)):
        (tmp_path / ".env").chmod(mode)
        assert (".env" in by_name(check_settings(settings(tmp_path)))) is is_told


def test_no_result_shows_a_secret(tmp_path: Path) -> None:
    told = list(check_settings(settings(tmp_path, secrets=STRONG, session_key=STRONG)))
    assert STRONG not in str(told)


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_the_releases_with_the_wal_reset_bug_are_known(
    version: tuple[int, ...], has_it: bool
) -> None:
    assert has_wal_reset_bug(version) is has_it
    [result] = [each for each in check_sqlite(version) if each.name == "SQLite"]
    assert (result.state, bool(result.link)) == ("ok", has_it)


@pytest.mark.parametrize(
    ("version", "state"),
    [(None, "ok"), ("0001", "warn"), (HEAD, "ok"), ("9999", "bad")],
)
def test_the_schema_is_compared(version: str | None, state: str) -> None:
    assert check_schema(version).state == state


def test_a_damaged_call_log_is_bad(tmp_path: Path, log: StoredCalls) -> None:
    for _ in range(200):
        log.add_delivery(outcome="stored", body=b"." * 1000)
    log.database.close()
    file = tmp_path / "log.db"
    damage(file, from_byte=file.stat().st_size - 100_000)
    results = by_name(check_installation(settings(tmp_path), now))
    assert results["integrity"].state == "bad"
    assert "integrity" not in by_name(check_installation(settings(tmp_path), now, reads_all=False))


def test_a_file_that_is_not_a_call_log_is_bad(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_text("minutes of the meeting" * 100)
    result = by_name(check_installation(settings(tmp_path), now))["call log"]
    assert (result.state, "is not a call log" in result.found) == ("bad", True)


def test_a_changed_journal_mode_is_reported(tmp_path: Path, log: StoredCalls) -> None:
    log.database.close()
    with closing(sqlite3.connect(tmp_path / "log.db")) as other:
        other.execute("PRAGMA journal_mode=DELETE")
    assert by_name(check_installation(settings(tmp_path), now))["journal"].state == "warn"


@pytest.mark.parametrize(
    ("line", "states"),
    [
        ("server:/data /data/calls nfs4 rw 0 0", ["bad"]),
        ("tmpfs /data tmpfs rw 0 0", ["warn"]),
        ("overlay / overlay rw 0 0", ["warn"]),
        ("/dev/sda1 /data ext4 rw 0 0", []),
    ],
)
def test_disks_that_lose_calls_are_reported(line: str, states: list[str]) -> None:
    mounts = f"/dev/sdb1 / ext4 rw 0 0\n{line}\nproc /proc proc rw 0 0\n"
    assert [each.state for each in check_file_system(Path("/data/calls"), mounts)] == states


def test_systems_without_a_list_of_mounts_are_not_checked() -> None:
    assert list(check_file_system(Path("/data"), "")) == []


@pytest.mark.parametrize(
    ("free", "taken", "state"),
    [(GB // 20, 0, "bad"), (GB // 2, 0, "warn"), (5 * GB, 6 * GB, "warn"), (5 * GB, GB, "ok")],
)
def test_free_space_is_compared_with_the_size_of_the_call_log(
    free: int, taken: int, state: str
) -> None:
    assert check_free_space(free, taken).state == state


@pytest.mark.parametrize(("step_s", "state"), [(0.004, "ok"), (0.2, "warn")])
def test_a_slow_sync_is_reported(tmp_path: Path, step_s: float, state: str) -> None:
    ticks = count(step=step_s)
    result = check_sync(tmp_path, sync=lambda _: None, clock=lambda: next(ticks))
    assert result.state == state
    assert f"{step_s * 1000:.1f} ms" in result.found


def test_a_sync_that_fails_is_bad(tmp_path: Path) -> None:
    def fail(_file: int) -> None:
        raise OSError(5, "Input/output error")

    assert check_sync(tmp_path, sync=fail).found.endswith("Input/output error")


def test_readable_files_are_reported(tmp_path: Path, log: StoredCalls) -> None:
    (tmp_path / "log.db").chmod(0o644)
    rights = by_name(check_disk(tmp_path / "log.db"))["rights"]
    assert (rights.state, rights.advice) == ("warn", f"Run: chmod 600 {tmp_path / 'log.db'}")


def test_unwritable_files_are_bad(
    tmp_path: Path, log: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert states(check_disk(tmp_path / "log.db"))["rights"] == "bad"


def test_an_unwritable_folder_is_named(
    tmp_path: Path, log: StoredCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)
    results = by_name(check_installation(settings(tmp_path), now))
    assert results["rights"].found == f"{tmp_path} cannot be written by this user"
    assert results["call log"].found.startswith(f"The folder {tmp_path} cannot be written")


def test_a_sqlite_that_cannot_search_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millis_hooks.checks.database._can_search", lambda: False)
    assert states(check_sqlite((3, 33, 0)))["search"] == "bad"


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(-3600, "ok"), (4, "ok"), (30, "warn"), (3600, "bad")]
)
def test_the_clock_is_compared_with_the_newest_delivery(
    log: StoredCalls, ahead_s: float, state: str
) -> None:
    log.add_delivery(outcome="stored", received_at=NOW + timedelta(seconds=ahead_s))
    with log.database.reader.connect() as connection:
        assert states(check_clock(connection, now)) == {"clock": state}


def test_a_call_that_began_after_its_end_means_that_the_clock_is_behind(log: StoredCalls) -> None:
    delivery_id = log.add_delivery(outcome="stored")
    log.add_call(delivery_id=delivery_id, started_at=NOW + timedelta(minutes=20))
    with log.database.reader.connect() as connection:
        assert (
            "Millis began a call 30 min after"
            in by_name(check_clock(connection, now))["clock"].found
        )


def test_an_empty_call_log_has_no_result_for_the_clock(log: StoredCalls) -> None:
    with log.database.reader.connect() as connection:
        assert list(check_clock(connection, now)) == []


def test_waiting_deliveries_and_runs_are_counted(log: StoredCalls) -> None:
    delivery_id = log.add_delivery(outcome="stored", received_at=NOW - timedelta(hours=1))
    log.write(lambda connection: connection.execute(insert(inbox), {"delivery_id": delivery_id}))
    log.add_delivery(outcome="unparsed")
    log.add_handler("sync_crm")
    call = log.add_call()
    log.add_run(call, "sync_crm", "failed")
    log.add_run(call, "gone", "pending", state_since=NOW - timedelta(hours=1))
    with log.database.reader.connect() as connection:
        results = by_name(check_work(connection, NOW))
    assert {result.state for result in results.values()} == {"warn"}
    assert results["inbox"].found.startswith("1 deliveries wait to be read, the oldest since 2026")
    assert results["failed runs"].found.startswith("1 run gave up")
    assert results["failed runs"].page == "calls"
    assert results["pending runs"].found.startswith("1, the oldest since 2026-11-21 13:20")
    assert results["unknown handlers"].found.endswith("no longer has: gone (1)")


def test_the_runner_is_recognized_by_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "log.db-runner"
    assert check_runner(lock).state == "warn"
    assert not lock.exists()
    holder = FileHolder(lock)
    holder.hold()
    assert check_runner(lock).state == "ok"
    holder.let_go()
    assert check_runner(lock).state == "warn"
    assert holder.hold()
    holder.let_go()


def test_the_application_is_checked(tmp_path: Path) -> None:
    hooks = MillisHooks(secrets=STRONG, database_url=url_in(tmp_path))
    assert check_application("app:hooks", hooks.router).state == "warn"
    hooks.on_prefetch(name="greet")(lambda call: None)
    result = check_application("app:hooks", hooks.router)
    assert (result.state, result.found) == ("ok", "app:hooks, handlers: 1 prefetch")
    hooks.on_parked(name="alert", handler="nobody")(lambda failed: None)
    assert check_application("app:hooks", hooks.router).state == "bad"
    assert check_application("app:other", None).state == "bad"


LOCAL, PUBLIC = "http://127.0.0.1:8000", "http://hooks.example.com"


class Doors:
    """A service as it answers from outside; a test changes one answer."""

    def __init__(self, **changed: httpx2.Response | Exception) -> None:
        self.asked: list[tuple[str, str]] = []
        self._answers: dict[str, httpx2.Response | Exception] = {
            "healthz": httpx2.Response(200, json={"status": "alive"}),
            "readyz": httpx2.Response(200, json={"status": "ready"}),
            "prefetch": httpx2.Response(401),
            "end_of_call": httpx2.Response(401),
            **changed,
        }

    def examine(self, base: str = LOCAL) -> list[CheckResult]:
        with httpx2.Client(transport=httpx2.MockTransport(self._answer)) as client:
            return list(check_reachability(client, Settings.load(), base, now))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.asked.append((request.method, path))
        answer = self._answers[path.rsplit("/", 1)[-1].replace("-", "_")]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_reachable_closed_service_is_ok() -> None:
    doors = Doors()
    assert set(states(doors.examine()).values()) == {"ok"}
    assert doors.asked == [
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/millis/prefetch"),
        ("POST", "/millis/end-of-call"),
    ]


@pytest.mark.parametrize(
    ("changed", "name", "told"),
    [
        ({"healthz": httpx2.ConnectError("refused")}, "reach", "Start the service"),
        ({"healthz": httpx2.ReadTimeout("late")}, "reach", "Check the port"),
        (
            {"healthz": httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")},
            "certificate",
            "Get a publicly trusted certificate",
        ),
        (
            {"healthz": httpx2.Response(301, headers={"location": "https://x.example"})},
            "reach",
            "Give Millis the address",
        ),
        ({"healthz": httpx2.Response(404)}, "reach", "Correct the address"),
        ({"readyz": httpx2.Response(503)}, "readiness", "The service's log"),
        ({"readyz": httpx2.ConnectError("gone")}, "reach", "Start the service"),
        ({"prefetch": httpx2.Response(200)}, "prefetch", "Set MILLIS_HOOKS_SECRETS"),
        ({"prefetch": httpx2.Response(404)}, "prefetch", "Check MILLIS_HOOKS_PREFIX"),
        ({"end_of_call": httpx2.Response(200)}, "end-of-call", "Set MILLIS_HOOKS_SECRETS"),
        ({"end_of_call": httpx2.ReadTimeout("late")}, "reach", "Check the port"),
    ],
)
def test_an_unreachable_or_open_service_is_bad(
    changed: dict[str, httpx2.Response | Exception], name: str, told: str
) -> None:
    result = by_name(Doors(**changed).examine())[name]
    assert result.state == "bad"
    assert result.advice.startswith(told)


def test_after_an_open_webhook_no_end_of_call_is_sent() -> None:
    doors = Doors(prefetch=httpx2.Response(200))
    doors.examine()
    assert ("POST", "/millis/end-of-call") not in doors.asked


@pytest.mark.parametrize(("location", "is_known"), [("/login", False), ("/voice/login", True)])
def test_pages_that_do_not_know_their_path_are_reported(location: str, is_known: bool) -> None:
    doors = Doors(calls=httpx2.Response(303, headers={"location": location}))
    results = by_name(doors.examine(f"{LOCAL}/voice"))
    assert ("path" not in results) == is_known
    assert is_known or "MILLIS_HOOKS_PUBLIC_URL=http://127.0.0.1:8000/voice" in str(results["path"])


def test_an_unencrypted_public_address_is_bad() -> None:
    assert states(Doors().examine(PUBLIC))["encryption"] == "bad"


@pytest.mark.parametrize(("days", "state"), [(-1, "warn"), (3, "warn"), (60, "ok")])
def test_a_certificate_that_expires_soon_is_reported(days: int, state: str) -> None:
    assert check_certificate(NOW + timedelta(days=days), NOW).state == state


class Alive(BaseHTTPRequestHandler):
    """Answers everything as /healthz does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"alive")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """One that is good for two days, made by nobody that is trusted."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    made = tmp_path / "certificate.pem"
    key = tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(made)]
    subprocess.run([*command, *named, *files], check=True, capture_output=True)
    made.write_text(made.read_text() + key.read_text())
    return made


@pytest.fixture
def encrypted(certificate: Path) -> Iterator[str]:
    """The address of a server with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HTTPServer(("localhost", 0), Alive) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_untrusted_certificate_is_bad(run: Run, encrypted: str) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in run("--url", encrypted, "--json").stdout


def test_the_expiry_of_a_certificate_is_read_from_the_connection(
    certificate: Path, encrypted: str
) -> None:
    trusting = ssl.create_default_context(cafile=certificate)
    with httpx2.Client(verify=trusting, trust_env=False) as client:
        checked = check_reachability(client, Settings.load(), encrypted, lambda: datetime.now(UTC))
        results = by_name(checked)
    assert results["certificate"].advice.startswith("Renew it")


def test_the_command_checks_a_running_service(run: Run, tmp_path: Path) -> None:
    site = Site(tmp_path, "")
    with site.serving() as server:
        server.deliver("-s1")
        result = run("--url", server.address, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["bad"]) == (0, 0)
    assert {"reach", "readiness", "prefetch", "end-of-call", "runner"} <= {
        check["name"] for check in report["checks"]
    }


def test_the_command_ends_with_1_if_anything_is_bad(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().exit_code == 0
    monkeypatch.delenv("MILLIS_HOOKS_SECRETS")
    result = run()
    assert result.exit_code == 1
    assert "BAD   secrets" in result.stdout
    assert "→ export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)" in result.stdout
    assert "1 bad" in result.stdout


def test_the_command_checks_the_application(run: Run, tmp_path: Path) -> None:
    (tmp_path / "looked_at.py").write_text(
        "from millis_hooks import MillisHooks\nhooks = MillisHooks()\n"
        "@hooks.on_prefetch\ndef greet(call): ...\n"
    )
    assert "looked_at:hooks, handlers: 1 prefetch" in run("looked_at.py").stdout
    broken = run("missing.py")
    assert (broken.exit_code, "There is no file missing.py" in broken.stdout) == (1, True)


def test_the_command_takes_only_web_addresses(run: Run) -> None:
    result = run("--url", "hooks.example.com")
    assert result.exit_code == 2
    assert "begins with https://" in result.stderr


def test_a_wrong_setting_is_a_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_SECRETS", "short")
    result = run()
    assert result.exit_code == 1
    assert "a secret has 5 characters" in result.stdout


def test_a_number_on_nearly_every_call_is_probably_the_teams_own(tmp_path: Path) -> None:
    stored = StoredCalls(tmp_path)
    for number in range(20):
        own = "+14155550190" if number else "+14155550191"
        stored.add_call(f"-{number}", from_phone=f"+1206555{number:04}", to_phone=own)
    with stored.database.reader.connect() as connection:
        (found,) = check_numbers(connection)
    assert found.found == "+14155550190 is on one side of 95% of calls. Yours?"
    assert "MILLIS_HOOKS_OWN_NUMBERS=+14155550190" in found.advice
    stored.database.close()
